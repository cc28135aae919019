"""Parts of objects that are more than data: logs, tokens, eviction, scale. Called by `api`."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from podidentity.lab.kubernetes import patching
from podidentity.lab.kubernetes.auth import Authority
from podidentity.lab.kubernetes.places import Place
from podidentity.lab.kubernetes.statuses import beyond_the_lab
from podidentity.lab.kubernetes.storage import Storage
from podidentity.lab.kubernetes.writing import DONE, read_body

Json = dict[str, Any]
Logs = Callable[[str, str, str, bool, int | None], AsyncIterator[bytes]]


class Subresources:
    """Answers them; constructed by `api`."""

    def __init__(self, storage: Storage, authority: Authority, logs: Logs) -> None:
        self._storage = storage
        self._authority = authority
        self._logs = logs
        self.answers: dict[str, Callable[[Request, Place, Json], Awaitable[Response]]] = {
            "log": self._log,
            "token": self._token,
            "eviction": self._evict,
            "scale": self._scale,
        }

    async def serve(self, request: Request, place: Place) -> Response:
        """Answer one request for a part of an object. Raises ApiError."""
        answer = self.answers.get(place.subresource)
        if answer is None:
            raise beyond_the_lab(f"{place.kind.plural}/{place.subresource}")
        return await answer(request, place, self._storage.get(place.kind.resource, place.namespace, place.name))

    async def _log(self, request: Request, place: Place, pod: Json) -> Response:
        query = request.query_params
        container = query.get("container") or pod["spec"]["containers"][0]["name"]
        tail = int(query["tailLines"]) if "tailLines" in query else None
        lines = self._logs(place.namespace or "", place.name, container, query.get("follow") == "true", tail)
        return StreamingResponse(lines, media_type="text/plain")

    async def _token(self, request: Request, place: Place, _account: Json) -> Response:
        audiences = ((await read_body(request)).get("spec") or {}).get("audiences") or ()
        token = self._authority.issue(place.namespace or "", place.name, audiences=audiences)
        review = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "status": {"token": token}}
        return JSONResponse(review, 201)

    async def _evict(self, _request: Request, place: Place, _pod: Json) -> Response:
        self._storage.delete(place.kind.resource, place.namespace, place.name)
        return JSONResponse(DONE, 201)

    async def _scale(self, request: Request, place: Place, workload: Json) -> Response:
        """How many replicas there are to be, as an object of its own (`autoscaling/v1` Scale)."""
        scale = _scale_of(workload)
        if request.method == "GET":
            return JSONResponse(scale)
        if request.method == "PATCH":
            wanted = patching.apply(scale, json.loads(await request.body()), request.headers.get("content-type", ""))
        else:
            wanted = await read_body(request)

        given = (wanted.get("metadata") or {}).get("resourceVersion") or workload["metadata"]["resourceVersion"]
        replicas = int((wanted.get("spec") or {}).get("replicas") or 0)
        spec = {**workload["spec"], "replicas": replicas}
        metadata = {**workload["metadata"], "resourceVersion": given}
        return JSONResponse(
            _scale_of(self._storage.update(place.kind.resource, {**workload, "metadata": metadata, "spec": spec}))
        )


def _scale_of(workload: Json) -> Json:
    metadata = workload["metadata"]
    kept = {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")}
    selector = (workload["spec"].get("selector") or {}).get("matchLabels") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept,
        "spec": {"replicas": workload["spec"].get("replicas", 1)},
        "status": {
            "replicas": (workload.get("status") or {}).get("replicas", 0),
            "selector": ",".join(f"{name}={value}" for name, value in selector.items()),
        },
    }
