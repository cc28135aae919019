"""The HTTP API: a path and a method to one operation on the storage.

Watches are streams of JSON lines. What is not here is refused with a sentence that names `--kubernetes=real`.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from podidentity.lab.kubernetes import admission, discovery, patching, schemas, selectors
from podidentity.lab.kubernetes.auth import Access, Authority, User
from podidentity.lab.kubernetes.kinds import CRD, Kind, Kinds, from_definition
from podidentity.lab.kubernetes.statuses import ApiError, beyond_the_lab, not_found
from podidentity.lab.kubernetes.storage import Storage, WatchEvent

BOOKMARK_SECONDS = 15.0
Json = dict[str, Any]
Logs = Callable[[str, str, str, bool, int | None], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Place:
    """What a path names."""

    kind: Kind
    namespace: str | None
    name: str
    subresource: str


class Api:
    """Answers requests; constructed by `kubernetes`."""

    def __init__(self, storage: Storage, kinds: Kinds, authority: Authority, logs: Logs) -> None:
        self._storage = storage
        self._kinds = kinds
        self._authority = authority
        self._logs = logs

    async def serve(self, request: Request) -> Response:
        """Answer one request; refusals are Status objects."""
        try:
            return await self._serve(request)
        except ApiError as error:
            return JSONResponse(error.body(), error.status)

    async def _serve(self, request: Request) -> Response:
        path = request.url.path.strip("/")
        if path in {"healthz", "readyz", "livez"}:
            return Response("ok")
        user = self._authority.user(request.headers.get("authorization", ""))
        if path == "apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return await self._review(request, user)
        found = discovery.document(self._kinds, path)
        if found is not None:
            return JSONResponse(found)
        place = self._place(path)
        verb = _verb(request, place)
        resource = f"{place.kind.plural}/{place.subresource}" if place.subresource else place.kind.plural
        self._authority.require(user, Access(verb, place.kind.group, resource, place.namespace or "", place.name))
        if place.subresource in {"log", "token", "binding", "eviction", "scale"}:
            return await self._subresource(request, place)
        operations: dict[str, Callable[[Request, Place], Awaitable[Response]]] = {
            "get": self._get,
            "list": self._list,
            "watch": self._watch,
            "create": self._create,
            "update": self._update,
            "patch": self._patch,
            "delete": self._delete,
            "deletecollection": self._delete_collection,
        }
        return await operations[verb](request, place)

    def _place(self, path: str) -> Place:
        parts = path.split("/")
        depth = 2 if parts[0] == "api" else 3
        where, rest = "/".join(parts[:depth]), parts[depth:]
        namespace = None
        if len(rest) >= 3 and rest[0] == "namespaces" and self._kinds.find(where, rest[2]):
            namespace, rest = rest[1], rest[2:]
        kind = self._kinds.find(where, rest[0]) if rest else None
        if kind is None:
            raise ApiError(404, "the server could not find the requested resource")
        name, subresource = (*rest[1:3], "", "")[:2]
        if subresource and subresource not in kind.subresources:
            raise beyond_the_lab(f"{kind.plural}/{subresource}")
        return Place(kind, namespace, name, subresource)

    async def _get(self, _request: Request, place: Place) -> Response:
        return JSONResponse(self._storage.get(place.kind.resource, place.namespace, place.name))

    async def _list(self, request: Request, place: Place) -> Response:
        chosen = _chosen(request)
        items = [obj for obj in self._storage.list(place.kind.resource, place.namespace) if chosen(obj)]
        metadata = {"resourceVersion": str(self._storage.revision)}
        body = {
            "kind": f"{place.kind.kind}List",
            "apiVersion": place.kind.api_version,
            "metadata": metadata,
            "items": items,
        }
        return JSONResponse(body)

    async def _watch(self, request: Request, place: Place) -> Response:
        query = request.query_params
        version = query.get("resourceVersion") or "0"
        since = int(version) if version != "0" else None
        seconds = float(query.get("timeoutSeconds") or 600)
        bookmarks = query.get("allowWatchBookmarks") == "true"
        changes = self._storage.watch(place.kind.resource, place.namespace, since)
        lines = _lines(_selected(changes, _chosen(request)), seconds, self._bookmark(place.kind) if bookmarks else None)
        return StreamingResponse(lines, media_type="application/json")

    def _bookmark(self, kind: Kind) -> Callable[[], bytes]:
        def bookmark() -> bytes:
            metadata = {"resourceVersion": str(self._storage.revision), "creationTimestamp": None}
            return _line("BOOKMARK", {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata})

        return bookmark

    async def _create(self, request: Request, place: Place) -> Response:
        obj = await _body(request)
        metadata = obj.setdefault("metadata", {})
        obj.setdefault("kind", place.kind.kind)
        obj.setdefault("apiVersion", place.kind.api_version)
        if place.kind.namespaced:
            metadata["namespace"] = place.namespace or metadata.get("namespace") or "default"
            if not any(one["metadata"]["name"] == metadata["namespace"] for one in self._storage.list("namespaces")):
                raise not_found("namespaces", metadata["namespace"])
        obj = self._checked(request, place.kind, obj)
        admission.admit(place.kind, obj)
        made = self._storage.create(place.kind.resource, obj)
        return JSONResponse(self._define(place.kind, made), 201)

    async def _update(self, request: Request, place: Place) -> Response:
        obj = await _body(request)
        obj["metadata"]["name"] = place.name
        if place.kind.namespaced:
            obj["metadata"]["namespace"] = place.namespace
        return JSONResponse(self._replaced(request, place, obj))

    async def _patch(self, request: Request, place: Place) -> Response:
        if "apply-patch" in request.headers.get("content-type", ""):
            raise beyond_the_lab("server-side apply")
        stored = self._storage.get(place.kind.resource, place.namespace, place.name)
        patch = json.loads(await request.body())
        patched = patching.apply(stored, patch, request.headers.get("content-type", ""))
        return JSONResponse(self._replaced(request, place, patched))

    def _replaced(self, request: Request, place: Place, obj: Json) -> Json:
        stored = self._storage.get(place.kind.resource, place.namespace, place.name)
        if place.subresource == "status":
            version = obj["metadata"].get("resourceVersion", "")
            obj = {**stored, "status": obj.get("status", {})}
            obj["metadata"]["resourceVersion"] = version
        elif "status" in place.kind.subresources and "status" in stored:
            obj = {**obj, "status": stored["status"]}
        made = self._storage.update(place.kind.resource, self._checked(request, place.kind, obj))
        return self._define(place.kind, made)

    async def _delete(self, request: Request, place: Place) -> Response:
        options = json.loads(await request.body() or b"{}")
        grace = options.get("gracePeriodSeconds", request.query_params.get("gracePeriodSeconds"))
        stored = self._storage.get(place.kind.resource, place.namespace, place.name)
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != stored["metadata"]["uid"]:
            raise ApiError(
                409,
                f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {stored['metadata']['uid']}",
            )
        if place.kind == CRD:
            for kind in from_definition(stored):
                self._kinds.remove(kind)
        seconds = None if grace is None else int(grace)
        return JSONResponse(
            self._storage.delete(place.kind.resource, place.namespace, place.name, grace_seconds=seconds)
        )

    async def _delete_collection(self, request: Request, place: Place) -> Response:
        chosen = _chosen(request)
        for obj in self._storage.list(place.kind.resource, place.namespace):
            if chosen(obj):
                self._storage.delete(place.kind.resource, obj["metadata"].get("namespace"), obj["metadata"]["name"])
        return JSONResponse({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    async def _subresource(self, request: Request, place: Place) -> Response:
        stored = self._storage.get(place.kind.resource, place.namespace, place.name)
        if place.subresource == "log":
            query = request.query_params
            container = query.get("container") or stored["spec"]["containers"][0]["name"]
            tail = int(query["tailLines"]) if "tailLines" in query else None
            follow = query.get("follow") == "true"
            lines = self._logs(place.namespace or "", place.name, container, follow, tail)
            return StreamingResponse(lines, media_type="text/plain")
        if place.subresource == "token":
            token = self._authority.issue(place.namespace or "", place.name)
            return JSONResponse(
                {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "status": {"token": token}}, 201
            )
        if place.subresource == "eviction":
            self._storage.delete(place.kind.resource, place.namespace, place.name)
            return JSONResponse({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}, 201)
        raise beyond_the_lab(f"{place.kind.plural}/{place.subresource}")

    async def _review(self, request: Request, user: User) -> Response:
        review = await _body(request)
        asked = review["spec"].get("resourceAttributes") or {}
        resource = "/".join(filter(None, (asked.get("resource", ""), asked.get("subresource", ""))))
        access = Access(
            asked.get("verb", ""), asked.get("group", ""), resource, asked.get("namespace", ""), asked.get("name", "")
        )
        try:
            self._authority.require(user, access)
        except ApiError as error:
            return JSONResponse({**review, "status": {"allowed": False, "reason": str(error)}}, 201)
        return JSONResponse({**review, "status": {"allowed": True}}, 201)

    def _checked(self, request: Request, kind: Kind, obj: Json) -> Json:
        strict = request.query_params.get("fieldValidation") == "Strict"
        return schemas.admit(kind, obj, strict=strict)

    def _define(self, kind: Kind, obj: Json) -> Json:
        """A new or changed definition is served at once, and says so."""
        if kind != CRD:
            return obj
        for served in from_definition(obj):
            self._kinds.add(served)
        conditions = [
            {"type": name, "status": "True", "reason": "InitialNamesAccepted"}
            for name in ("NamesAccepted", "Established")
        ]
        status = {"conditions": conditions, "acceptedNames": obj["spec"]["names"], "storedVersions": ["v1"]}
        return self._storage.update(kind.resource, {**obj, "status": status})


def _verb(request: Request, place: Place) -> str:
    match request.method:
        case "GET" if place.name:
            return "get"
        case "GET":
            return "watch" if request.query_params.get("watch") in {"true", "1"} else "list"
        case "POST":
            return "create"
        case "PUT":
            return "update"
        case "PATCH":
            return "patch"
        case "DELETE":
            return "delete" if place.name else "deletecollection"
        case other:
            raise ApiError(405, f"the server does not allow the method {other}")


async def _body(request: Request) -> Json:
    raw = await request.body()
    if "protobuf" in request.headers.get("content-type", ""):
        raise ApiError(415, "the lab's embedded Kubernetes takes JSON and YAML, not protobuf; use --kubernetes=real")
    try:
        obj = yaml.safe_load(raw) if "yaml" in request.headers.get("content-type", "") else json.loads(raw)
    except (ValueError, yaml.YAMLError) as error:
        raise ApiError(400, f"the object provided cannot be decoded: {error}") from None
    if not isinstance(obj, dict):
        raise ApiError(400, "the object provided is not an object")
    return obj


def _chosen(request: Request) -> selectors.Test:
    by_label = selectors.labels(request.query_params.get("labelSelector", ""))
    by_field = selectors.fields(request.query_params.get("fieldSelector", ""))
    return lambda obj: by_label(obj) and by_field(obj)


async def _selected(changes: AsyncIterator[WatchEvent], chosen: selectors.Test) -> AsyncIterator[WatchEvent]:
    """Only what the selectors choose; what no longer fits is told as deleted."""
    shown: set[str] = set()
    async for kind, obj in changes:
        uid = obj["metadata"]["uid"]
        if chosen(obj):
            yield WatchEvent(kind, obj)
            shown.add(uid)
        elif uid in shown or kind == "MODIFIED":
            shown.discard(uid)
            yield WatchEvent("DELETED", obj)


async def _lines(
    changes: AsyncIterator[WatchEvent], seconds: float, bookmark: Callable[[], bytes] | None
) -> AsyncIterator[bytes]:
    """A watch's body: one JSON line for each change, a bookmark when it is quiet, until its time is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    upcoming = asyncio.ensure_future(anext(changes, None))
    try:
        while (left := deadline - loop.time()) > 0:
            await asyncio.wait({upcoming}, timeout=min(left, BOOKMARK_SECONDS))
            if upcoming.done():
                event = upcoming.result()
                if event is None:
                    return
                yield _line(*event)
                upcoming = asyncio.ensure_future(anext(changes, None))
            elif bookmark is not None:
                yield bookmark()
    except ApiError as error:
        yield _line("ERROR", error.body())
    finally:
        upcoming.cancel()
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await upcoming


def _line(kind: str, obj: Json) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"
