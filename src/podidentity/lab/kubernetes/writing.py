"""Writes: create, update, patch, delete, with defaults, schemas and definitions in step. Called by `api`."""

import json
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.kubernetes import admission, patching, protobuf, schemas
from podidentity.lab.kubernetes.kinds import CRD, Kind, Kinds, from_definition
from podidentity.lab.kubernetes.places import Place
from podidentity.lab.kubernetes.reading import chosen_by
from podidentity.lab.kubernetes.statuses import ApiError, beyond_the_lab, not_found
from podidentity.lab.kubernetes.storage import Storage

Json = dict[str, Any]
DONE: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


class Writing:
    """Answers everything that changes objects; constructed by `api`."""

    def __init__(self, storage: Storage, kinds: Kinds) -> None:
        self._storage = storage
        self._kinds = kinds

    async def create(self, request: Request, place: Place) -> Response:
        """A new object."""
        _refuse_dry_run(request)
        obj = await read_body(request)
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

    async def update(self, request: Request, place: Place) -> Response:
        """An object replaced."""
        _refuse_dry_run(request)
        obj = await read_body(request)
        obj["metadata"]["name"] = place.name
        if place.kind.namespaced:
            obj["metadata"]["namespace"] = place.namespace
        return JSONResponse(self._replaced(request, place, obj))

    async def patch(self, request: Request, place: Place) -> Response:
        """An object changed in parts."""
        _refuse_dry_run(request)
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
        whole = place.kind.schema is not None and "status" not in place.kind.subresources
        made = self._storage.update(place.kind.resource, self._checked(request, place.kind, obj), whole=whole)
        return self._define(place.kind, made)

    async def delete(self, request: Request, place: Place) -> Response:
        """One object gone, or on its way."""
        _refuse_dry_run(request)
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

    async def delete_collection(self, request: Request, place: Place) -> Response:
        """All chosen objects gone, or on their way."""
        chosen = chosen_by(request)
        for obj in self._storage.list(place.kind.resource, place.namespace):
            if chosen(obj):
                self._storage.delete(place.kind.resource, obj["metadata"].get("namespace"), obj["metadata"]["name"])
        return JSONResponse(DONE)

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


def _refuse_dry_run(request: Request) -> None:
    if request.query_params.get("dryRun"):
        raise beyond_the_lab("dry runs on the server")


async def read_body(request: Request) -> Json:
    """The object that a request carries. Raises ApiError 400 or 415."""
    raw = await request.body()
    if "protobuf" in request.headers.get("content-type", ""):
        return protobuf.read(raw)
    try:
        obj = yaml.safe_load(raw) if "yaml" in request.headers.get("content-type", "") else json.loads(raw)
    except (ValueError, yaml.YAMLError) as error:
        raise ApiError(400, f"the object provided cannot be decoded: {error}") from None
    if not isinstance(obj, dict):
        raise ApiError(400, "the object provided is not an object")
    return obj
