"""User-assigned identities in ARM, vaults, storage accounts (`arm_vaults`, `arm_storage`), and lists of every kind."""

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, arm_machines, arm_storage, arm_vaults, filters, roles
from podidentity_lab.azure.state import Json, Principal, State, new_id

VAULT_TYPE = arm_vaults.TYPE
ACCOUNT_TYPE = arm_storage.TYPE
IDENTITY_TYPE = "Microsoft.ManagedIdentity/userAssignedIdentities"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,127}")


async def serve(request: Request, caller: Principal, path: str, state: State, now: float) -> Response:
    """Answer one request for a vault, an identity or a storage account, or for all of one kind in a resource group."""
    parts = path.split("/")
    kind = f"{parts[6]}/{parts[7]}".lower()
    types = {name.lower(): name for name in (VAULT_TYPE, IDENTITY_TYPE, ACCOUNT_TYPE)}
    if kind not in types:
        message = f"The resource type '{parts[7]}' could not be found in the namespace '{parts[6]}' in the lab."
        raise answers.arm(404, "InvalidResourceType", message)
    if kind == ACCOUNT_TYPE.lower() and len(parts) > 8:
        return await arm_storage.serve(request, caller, path, state, now)
    store = _stores(state)[kind]
    action = {"GET": "read", "DELETE": "delete"}.get(request.method, "write")
    roles.require(state, caller, f"{types[kind]}/{action}", path)
    if len(parts) == 8:
        inside = path.lower() + "/"
        return JSONResponse({"value": [resource for name, resource in store.items() if name.startswith(inside)]})
    if store is state.vaults:
        return await arm_vaults.serve(request, path, state, now)
    return await _identity(request, path, state)


async def serve_subscription(request: Request, caller: Principal, path: str, state: State) -> Response:
    """Answer for all vaults, identities or accounts of the subscription, deleted vaults, and free names."""
    parts = path.split("/")
    kind = f"{parts[4]}/{parts[5]}".lower()
    roles.require(state, caller, f"{parts[4]}/{parts[5]}/read", path)
    if kind in _stores(state):
        return JSONResponse({"value": list(_stores(state)[kind].values())})
    if kind == "microsoft.storage/checknameavailability":
        return await arm_storage.serve_name(request, state)
    if parts[4].lower() == "microsoft.keyvault":
        return await arm_vaults.serve_deleted(request, parts, state)
    raise answers.arm(404, "InvalidResourceType", f"The lab's ARM does not know the type '{kind}'.")


def serve_all(request: Request, caller: Principal, path: str, state: State) -> Response:
    """Answer for all resources below `path` without its `/resources` that the caller may read.

    `$filter` (`filters`) and `$top` narrow the list. Each has its ID, name, type, location and tags only.
    """
    if request.method != "GET":
        raise answers.arm(405, "MethodNotAllowed", f"{request.method} is not for '{path}'; lists take GET.")
    inside = path.rsplit("/", 1)[0].lower() + "/"
    tests = filters.parse(request.query_params.get("$filter", ""))
    values = [
        resource
        for resource in all_resources(state)
        if resource["id"].lower().startswith(inside)
        and filters.matches(tests, resource)
        and roles.is_allowed(state, caller, f"{resource['type']}/read", resource["id"])
    ]
    return JSONResponse({"value": values[: limit(request)]})


def all_resources(state: State) -> list[Json]:
    """Return every resource of a group as lists show it, sorted by ID."""
    resources: list[Json] = [resource for store in _stores(state).values() for resource in store.values()]
    resources += [
        {
            "id": machine.id,
            "name": machine.id.rsplit("/", 1)[1],
            "type": machine.kind,
            "location": machine.location,
            "tags": machine.creation_body.get("tags") or {},
        }
        for machine in state.machines.values()
    ]
    entries = [{key: item[key] for key in ("id", "name", "type", "location", "tags")} for item in resources]
    return sorted(entries, key=lambda entry: str(entry["id"]).lower())


def document(state: State, resource_id: str) -> Json | None:
    """Return a group, vault, identity, machine or deployment as ARM shows it, or None when there is none of this ID."""
    key = resource_id.lower()
    for store in (state.groups, state.vaults, state.identities, state.accounts):
        if key in store:
            return store[key]
    if key in state.machines:
        return arm_machines.document(state, state.machines[key])
    return state.deployments[key].document if key in state.deployments else None


def limit(request: Request) -> int | None:
    """Return how many entries a list may have (`$top`), None for all."""
    text = request.query_params.get("$top", "")
    return int(text) if text else None


def forget_group(state: State, key: str, now: float) -> None:
    """Delete a resource group and all that it contains; its vaults can be recovered, as in Azure."""
    del state.groups[key]
    inside = f"{key}/"
    for name in [name for name in state.vaults if name.startswith(inside)]:
        arm_vaults.delete(state, name, now)
    for name in [name for name in state.identities if name.startswith(inside)]:
        _forget_identity(state, name)
    for name in [name for name in state.accounts if name.startswith(inside)]:
        arm_storage.delete(state, name)
    for name in [name for name in state.machines if name.startswith(inside)]:
        del state.machines[name]
    for name in [name for name in state.roles if name.startswith(inside)]:
        del state.roles[name]
    for name in [name for name in state.deployments if name.startswith(inside)]:
        del state.deployments[name]


def _stores(state: State) -> dict[str, dict[str, Json]]:
    """Return the resources of each kind, by its lower-case type."""
    return {
        VAULT_TYPE.lower(): state.vaults,
        IDENTITY_TYPE.lower(): state.identities,
        ACCOUNT_TYPE.lower(): state.accounts,
    }


async def _identity(request: Request, path: str, state: State) -> Response:
    key = path.lower()
    if request.method == "PUT":
        new = key not in state.identities
        body = await request.json()
        state.identities[key] = _new_identity(state, path, body)
        return JSONResponse(state.identities[key], 201 if new else 200)
    if request.method == "DELETE":
        if key not in state.identities:
            return Response(status_code=204)
        _forget_identity(state, key)
        return Response(status_code=200)
    identity = find(state.identities, path)
    if request.method == "PATCH":
        identity["tags"] = (await request.json()).get("tags") or identity["tags"]
    return JSONResponse(identity)


def _new_identity(state: State, path: str, body: Json) -> Json:
    """Return the document of a PUT identity: a new one, or the current one, whose IDs stay."""
    current = state.identities.get(path.lower())
    if current is not None:
        return {**current, "tags": body.get("tags") or current["tags"]}
    name = path.rsplit("/", 1)[1]
    if not _NAME.fullmatch(name):
        message = f"The name '{name}' has 3 to 128 letters, digits, '-' and '_', and begins with a letter or digit."
        raise answers.arm(400, "InvalidResourceName", message)
    principal = Principal(new_id(), new_id(), name, resource_id=path)
    state.principals[principal.object_id] = principal
    ids = {"principalId": principal.object_id, "clientId": principal.client_id, "tenantId": state.settings.tenant_id}
    content = {"id": path, "name": name, "type": IDENTITY_TYPE, "location": body.get("location", "")}
    return {**content, "tags": body.get("tags") or {}, "properties": ids}


def _forget_identity(state: State, key: str) -> None:
    """Delete an identity. Its role assignments stay, although their principal no longer exists, as in Azure."""
    state.principals.pop(state.identities.pop(key)["properties"]["principalId"], None)


def find(store: dict[str, Json], path: str) -> Json:
    """Return the resource at an ARM path from `store`, vaults or identities. Refuses with 404."""
    resource = store.get(path.lower())
    if resource is None:
        parts = path.split("/")
        message = f"The Resource '{parts[6]}/{parts[7]}/{parts[8]}' under resource group '{parts[4]}' was not found."
        raise answers.arm(404, "ResourceNotFound", message)
    return resource
