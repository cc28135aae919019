"""Creates, updates, patches and deletes objects, with their defaults and schemas; serves new definitions at once."""

import copy
import json
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.kubernetes import admission, patching, protobuf, schemas
from podidentity_lab.kubernetes.kinds import CRD, Kind, Kinds, from_definition
from podidentity_lab.kubernetes.places import Place
from podidentity_lab.kubernetes.reading import chosen_by
from podidentity_lab.kubernetes.statuses import ApiError, beyond_the_lab, not_found
from podidentity_lab.kubernetes.storage import Storage

Json = dict[str, Any]
SUCCESS: Json = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


class Writing:
    """Answers everything that changes objects."""

    def __init__(self, storage: Storage, kinds: Kinds) -> None:
        self._storage = storage
        self._kinds = kinds

    async def create(self, request: Request, place: Place) -> Response:
        """Answer a request that creates an object."""
        refuse_dry_run(request)
        return JSONResponse(self._create(request, place, await read_body(request)), 201)

    def _create(self, request: Request, place: Place, obj: Json) -> Json:
        metadata = obj.setdefault("metadata", {})
        obj.setdefault("kind", place.kind.kind)
        obj.setdefault("apiVersion", place.kind.api_version)
        if place.kind.namespaced:
            metadata["namespace"] = place.namespace or metadata.get("namespace") or "default"
            namespaces = {namespace["metadata"]["name"] for namespace in self._storage.list("namespaces")}
            if metadata["namespace"] not in namespaces:
                raise not_found("namespaces", metadata["namespace"])
        obj = self._validate(request, place.kind, obj)
        admission.admit(place.kind, obj)
        result = self._storage.create(place.kind.resource, obj)
        return self._define(place.kind, result)

    async def update(self, request: Request, place: Place) -> Response:
        """Answer a request that replaces an object."""
        refuse_dry_run(request)
        obj = await read_body(request)
        obj["metadata"]["name"] = place.name
        if place.kind.namespaced:
            obj["metadata"]["namespace"] = place.namespace
        return JSONResponse(self._replace(request, place, obj))

    async def patch(self, request: Request, place: Place) -> Response:
        """Answer a request that changes parts of an object."""
        refuse_dry_run(request)
        if "apply-patch" in request.headers.get("content-type", ""):
            return await self._apply(request, place)
        current = self._storage.get(place.kind.resource, place.namespace, place.name)
        patch = json.loads(await request.body())
        patched = patching.apply(current, patch, request.headers.get("content-type", ""))
        return JSONResponse(self._replace(request, place, patched))

    async def _apply(self, request: Request, place: Place) -> Response:
        """Answer a server-side apply. Managers never conflict here: the last one has its way."""
        intent = await read_body(request)
        manager = request.query_params.get("fieldManager", "")
        if not manager:
            raise ApiError(400, 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value')
        intent.setdefault("metadata", {})["name"] = place.name
        intent["metadata"].pop("managedFields", None)
        try:
            current = self._storage.get(place.kind.resource, place.namespace, place.name)
        except ApiError:
            obj = self._create(request, place, copy.deepcopy(intent))
            self._storage.intents[obj["metadata"]["uid"], manager] = intent
            return JSONResponse(obj, 201)
        key = (current["metadata"]["uid"], manager)
        previous = self._storage.intents.get(key, {})
        obj = patching.merge_intent(current, previous, intent, is_built_in=place.kind.schema is None)
        answer = JSONResponse(self._replace(request, place, obj))
        self._storage.intents[key] = intent
        return answer

    def _replace(self, request: Request, place: Place, obj: Json) -> Json:
        current = self._storage.get(place.kind.resource, place.namespace, place.name)
        if place.subresource == "status":
            version = obj["metadata"].get("resourceVersion", "")
            obj = {**current, "status": obj.get("status", {})}
            obj["metadata"]["resourceVersion"] = version
        elif "status" in place.kind.subresources and "status" in current:
            obj = {**obj, "status": current["status"]}
        count_all_changes = place.kind.schema is not None and "status" not in place.kind.subresources
        updated = self._storage.update(
            place.kind.resource, self._validate(request, place.kind, obj), count_all_changes=count_all_changes
        )
        return self._define(place.kind, updated)

    async def delete(self, request: Request, place: Place) -> Response:
        """Answer a request that deletes an object, or marks it for deletion."""
        refuse_dry_run(request)
        options = await read_body(request) if await request.body() else {}
        grace = options.get("gracePeriodSeconds", request.query_params.get("gracePeriodSeconds"))
        current = self._storage.get(place.kind.resource, place.namespace, place.name)
        uid = (options.get("preconditions") or {}).get("uid")
        if uid and uid != current["metadata"]["uid"]:
            raise ApiError(
                409,
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {current['metadata']['uid']}",
            )
        if place.kind == CRD:
            for kind in from_definition(current):
                self._kinds.remove(kind)
        seconds = None if grace is None else int(grace)
        return JSONResponse(
            self._storage.delete(place.kind.resource, place.namespace, place.name, grace_seconds=seconds)
        )

    async def delete_collection(self, request: Request, place: Place) -> Response:
        """Answer a request that deletes all objects that its selectors choose."""
        matches = chosen_by(request)
        for obj in self._storage.list(place.kind.resource, place.namespace):
            if matches(obj):
                self._storage.delete(place.kind.resource, obj["metadata"].get("namespace"), obj["metadata"]["name"])
        return JSONResponse(SUCCESS)

    def _validate(self, request: Request, kind: Kind, obj: Json) -> Json:
        strict = request.query_params.get("fieldValidation") == "Strict"
        return schemas.admit(kind, obj, strict=strict)

    def _define(self, kind: Kind, obj: Json) -> Json:
        """Serve the kinds of a new or changed definition at once, and return it with the conditions that say so."""
        if kind != CRD:
            return obj
        for custom_kind in from_definition(obj):
            self._kinds.add(custom_kind)
        conditions = [
            {"type": name, "status": "True", "reason": "InitialNamesAccepted"}
            for name in ("NamesAccepted", "Established")
        ]
        status = {"conditions": conditions, "acceptedNames": obj["spec"]["names"], "storedVersions": ["v1"]}
        return self._storage.update(kind.resource, {**obj, "status": status})


def refuse_dry_run(request: Request) -> None:
    """Raise ApiError 501 for a dry run."""
    if request.query_params.get("dryRun"):
        raise beyond_the_lab("dry runs on the server")


async def read_body(request: Request) -> Json:
    """Return the object in a request's body. Raises ApiError 400 or 415."""
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
