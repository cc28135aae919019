"""Subresources that do more than show data: logs, tokens, eviction, scale, ephemeral containers."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from podidentity.timing import render_rfc3339
from podidentity_lab.kubernetes import debugging, patching
from podidentity_lab.kubernetes.auth import LIFETIME_SECONDS, Authority
from podidentity_lab.kubernetes.controllers import disruptions
from podidentity_lab.kubernetes.places import Place
from podidentity_lab.kubernetes.statuses import ApiError, beyond_the_lab
from podidentity_lab.kubernetes.storage import Storage
from podidentity_lab.kubernetes.writing import SUCCESS, read_body, refuse_dry_run

Json = dict[str, Any]
STREAM_PARTS = {"portforward": "forwards ports", "exec": "runs programs", "attach": "attaches"}
"""What older clients ask for over SPDY, and what the lab does with it, in the words of its refusal."""
_SHORTEST_SECONDS = 600
Logs = Callable[[str, str, str, bool, int | None], AsyncIterator[bytes]]


class Subresources:
    """Answers requests for subresources."""

    def __init__(self, storage: Storage, authority: Authority, logs: Logs) -> None:
        self._storage = storage
        self._authority = authority
        self._logs = logs
        self.answers: dict[str, Callable[[Request, Place, Json], Awaitable[Response]]] = {
            "log": self._log,
            "token": self._token,
            "eviction": self._evict,
            "scale": self._scale,
            "ephemeralcontainers": self._change_ephemeral_containers,
        }

    async def serve(self, request: Request, place: Place) -> Response:
        """Answer one request for a part of an object. Raises ApiError."""
        answer = self.answers.get(place.subresource)
        if place.subresource in STREAM_PARTS:
            message = f"{STREAM_PARTS[place.subresource]} over WebSockets alone; use kubectl 1.31 or newer"
            raise ApiError(501, f"the lab's embedded Kubernetes {message}")
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
        spec = (await read_body(request)).get("spec") or {}
        seconds = int(spec.get("expirationSeconds") or LIFETIME_SECONDS)
        if seconds < _SHORTEST_SECONDS:
            message = (
                f"spec.expirationSeconds: Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            )
            raise ApiError(422, f'TokenRequest.authentication.k8s.io "{place.name}" is invalid: {message}')
        pod = self._bound_pod(place, spec["boundObjectRef"]) if spec.get("boundObjectRef") else None
        namespace = place.namespace or ""
        token = self._authority.issue(namespace, place.name, pod, spec.get("audiences") or (), seconds)
        ends = render_rfc3339(int(self._authority.now()) + seconds)
        status = {"token": token, "expirationTimestamp": ends}
        review = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": spec, "status": status}
        return JSONResponse(review, 201)

    def _bound_pod(self, place: Place, reference: Json) -> Json:
        """Return name and UID of the pod that a token is to be bound to. Raises ApiError."""
        if reference.get("kind") != "Pod":
            raise beyond_the_lab(f"tokens bound to a {reference.get('kind')}")
        pod = self._storage.get("pods", place.namespace, reference["name"])
        uid = pod["metadata"]["uid"]
        if reference.get("uid") not in {None, "", uid}:
            message = f"the UID in the bound object reference ({reference['uid']}) does not match the UID in record"
            raise ApiError(409, f'Operation cannot be fulfilled on Pod "{reference["name"]}": {message}')
        if (pod["spec"].get("serviceAccountName") or "default") != place.name:
            raise ApiError(
                400, f"cannot bind token for serviceaccount {place.name!r} to a pod of another serviceaccount"
            )
        return {"name": reference["name"], "uid": uid}

    async def _evict(self, request: Request, place: Place, pod: Json) -> Response:
        options = (await read_body(request)).get("deleteOptions") or {}
        if not options.get("dryRun"):
            disruptions.check(self._storage, pod)
            grace = options.get("gracePeriodSeconds")
            self._storage.delete(place.kind.resource, place.namespace, place.name, grace_seconds=grace)
        return JSONResponse(SUCCESS, 201)

    async def _change_ephemeral_containers(self, request: Request, place: Place, pod: Json) -> Response:
        """Answer a request that reads a pod's ephemeral containers or adds to them."""
        if request.method == "GET":
            return JSONResponse(pod)
        refuse_dry_run(request)
        if request.method == "PATCH":
            content_type = request.headers.get("content-type", "")
            change = patching.apply(pod, json.loads(await request.body()), content_type)
        else:
            change = await read_body(request)
        changed_pod = debugging.with_containers(pod, change)
        return JSONResponse(self._storage.update(place.kind.resource, changed_pod))

    async def _scale(self, request: Request, place: Place, workload: Json) -> Response:
        """Answer a request that reads or sets how many replicas there are to be (`autoscaling/v1` Scale)."""
        scale = _scale_of(workload)
        if request.method == "GET":
            return JSONResponse(scale)
        if request.method == "PATCH":
            scale_body = patching.apply(
                scale, json.loads(await request.body()), request.headers.get("content-type", "")
            )
        else:
            scale_body = await read_body(request)

        version = (scale_body.get("metadata") or {}).get("resourceVersion") or workload["metadata"]["resourceVersion"]
        replicas = int((scale_body.get("spec") or {}).get("replicas") or 0)
        spec = {**workload["spec"], "replicas": replicas}
        metadata = {**workload["metadata"], "resourceVersion": version}
        return JSONResponse(
            _scale_of(self._storage.update(place.kind.resource, {**workload, "metadata": metadata, "spec": spec}))
        )


def _scale_of(workload: Json) -> Json:
    metadata = workload["metadata"]
    fields = {name: metadata[name] for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")}
    selector = (workload["spec"].get("selector") or {}).get("matchLabels") or {}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": fields,
        "spec": {"replicas": workload["spec"].get("replicas", 1)},
        "status": {
            "replicas": (workload.get("status") or {}).get("replicas", 0),
            "selector": ",".join(f"{name}={value}" for name, value in selector.items()),
        },
    }
