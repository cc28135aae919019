"""Vaults and user-assigned identities, with what belongs to them: federated credentials, deleted vaults. By `arm`."""

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers, arm_vaults, roles
from podidentity.lab.azure.arm_roles import quoted
from podidentity.lab.azure.assertions import FEDERATED_CREDENTIALS
from podidentity.lab.azure.state import FederatedCredential, Json, Principal, State, new_id

VAULT_TYPE = arm_vaults.TYPE
IDENTITY_TYPE = "Microsoft.ManagedIdentity/userAssignedIdentities"
_FEDERATED = "federatedIdentityCredentials"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,127}")


async def serve(request: Request, caller: Principal, path: str, state: State, now: float) -> Response:
    """Answer one request for a vault or an identity, or for all of a resource group."""
    parts = path.split("/")
    kind = f"{parts[6]}/{parts[7]}".lower()
    types = {VAULT_TYPE.lower(): VAULT_TYPE, IDENTITY_TYPE.lower(): IDENTITY_TYPE}
    if kind not in types:
        message = f"The resource type '{parts[7]}' could not be found in the namespace '{parts[6]}' in the lab."
        raise answers.arm(404, "InvalidResourceType", message)
    store = state.vaults if kind == VAULT_TYPE.lower() else state.identities
    action = {"GET": "read", "DELETE": "delete"}.get(request.method, "write")
    if len(parts) >= 10 and parts[9].lower() == _FEDERATED.lower():
        roles.require(state, caller, f"{IDENTITY_TYPE}/{_FEDERATED}/{action}", "/".join(parts[:9]))
        return await _federated(request, parts, _found(store, "/".join(parts[:9])), state)
    roles.require(state, caller, f"{types[kind]}/{action}", path)
    if len(parts) == 8:
        inside = path.lower() + "/"
        return JSONResponse({"value": [one for name, one in store.items() if name.startswith(inside)]})
    if store is state.vaults:
        return await arm_vaults.serve(request, path, state, now)
    return await _identity(request, path, state)


async def serve_subscription(request: Request, caller: Principal, path: str, state: State) -> Response:
    """Answer for all vaults or identities of the subscription, and for deleted vaults."""
    parts = path.split("/")
    kind = f"{parts[4]}/{parts[5]}".lower()
    roles.require(state, caller, f"{parts[4]}/{parts[5]}/read", path)
    if kind == VAULT_TYPE.lower():
        return JSONResponse({"value": list(state.vaults.values())})
    if kind == IDENTITY_TYPE.lower():
        return JSONResponse({"value": list(state.identities.values())})
    if parts[4].lower() == "microsoft.keyvault":
        return await arm_vaults.serve_deleted(request, parts, state)
    raise answers.arm(404, "InvalidResourceType", f"The lab's ARM does not know the type '{kind}'.")


def listed(state: State, condition: str, caller: Principal) -> list[Json]:
    """The resources that the caller may read, short, by `resourceType eq` and `name eq`."""
    kind, name = quoted(condition, "resourceType").lower(), quoted(condition, "name").lower()
    everything: list[Json] = [*state.vaults.values(), *state.identities.values()]
    everything += [
        {"id": one.id, "name": one.id.rsplit("/", 1)[1], "type": one.kind, "location": one.location}
        for one in state.machines.values()
    ]
    return [
        {key: item[key] for key in ("id", "name", "type", "location")}
        for item in everything
        if kind in {"", item["type"].lower()}
        and name in {"", item["name"].lower()}
        and roles.allowed(state, caller, f"{item['type']}/read", item["id"])
    ]


def forget_group(state: State, key: str, now: float) -> None:
    """Delete a resource group and all in it; its vaults can be recovered, as in Azure."""
    del state.groups[key]
    inside = f"{key}/"
    for name in [name for name in state.vaults if name.startswith(inside)]:
        arm_vaults.delete(state, name, now)
    for name in [name for name in state.identities if name.startswith(inside)]:
        _forget_identity(state, name)
    for name in [name for name in state.machines if name.startswith(inside)]:
        del state.machines[name]
    for name in [name for name in state.roles if name.startswith(inside)]:
        del state.roles[name]


async def _identity(request: Request, path: str, state: State) -> Response:
    key = path.lower()
    if request.method == "PUT":
        new = key not in state.identities
        body = await request.json()
        state.identities[key] = _made(state, path, body)
        return JSONResponse(state.identities[key], 201 if new else 200)
    if request.method == "DELETE":
        if key not in state.identities:
            return Response(status_code=204)
        _forget_identity(state, key)
        return Response(status_code=200)
    found = _found(state.identities, path)
    if request.method == "PATCH":
        found["tags"] = (await request.json()).get("tags") or found["tags"]
    return JSONResponse(found)


def _made(state: State, path: str, body: Json) -> Json:
    """A second PUT keeps the identity's IDs."""
    existing = state.identities.get(path.lower())
    if existing is not None:
        return {**existing, "tags": body.get("tags") or existing["tags"]}
    name = path.rsplit("/", 1)[1]
    if not _NAME.fullmatch(name):
        message = f"The name '{name}' has 3 to 128 letters, digits, '-' and '_', and begins with a letter or digit."
        raise answers.arm(400, "InvalidResourceName", message)
    principal = Principal(new_id(), new_id(), name, resource_id=path)
    state.principals[principal.object_id] = principal
    ids = {"principalId": principal.object_id, "clientId": principal.client_id, "tenantId": state.settings.tenant_id}
    shown = {"id": path, "name": name, "type": IDENTITY_TYPE, "location": body.get("location", "")}
    return {**shown, "tags": body.get("tags") or {}, "properties": ids}


def _forget_identity(state: State, key: str) -> None:
    """Its role assignments stay, of a principal that nobody is: as in Azure."""
    state.principals.pop(state.identities.pop(key)["properties"]["principalId"], None)


def _found(store: dict[str, Json], path: str) -> Json:
    found = store.get(path.lower())
    if found is None:
        parts = path.split("/")
        message = f"The Resource '{parts[6]}/{parts[7]}/{parts[8]}' under resource group '{parts[4]}' was not found."
        raise answers.arm(404, "ResourceNotFound", message)
    return found


async def _federated(request: Request, parts: list[str], identity: Json, state: State) -> Response:
    """Whose tokens an identity takes for its own."""
    credentials = state.principals[identity["properties"]["principalId"]].federated
    name = parts[10] if len(parts) > 10 else ""
    if not name:
        return JSONResponse({"value": [_credential(identity, one) for one in credentials.values()]})
    if request.method == "PUT":
        new = name not in credentials
        made = read_federated(name, (await request.json())["properties"])
        add_federated(credentials, made)
        return JSONResponse(_credential(identity, made), 201 if new else 200)
    if request.method == "DELETE":
        return Response(status_code=200 if credentials.pop(name, None) else 204)
    if name not in credentials:
        message = f"The Resource '{IDENTITY_TYPE}/{parts[8]}/{_FEDERATED}/{name}' was not found."
        raise answers.arm(404, "ResourceNotFound", message)
    return JSONResponse(_credential(identity, credentials[name]))


def read_federated(name: str, given: Json) -> FederatedCredential:
    """Read a credential's body. Refuses one whose issuer is no https URL."""
    if not str(given["issuer"]).startswith("https://"):
        raise answers.arm(400, "BadRequest", f"The issuer '{given['issuer']}' must be an https URL.")
    return FederatedCredential(name, given["issuer"], given["subject"], list(given["audiences"]))


def add_federated(credentials: dict[str, FederatedCredential], made: FederatedCredential) -> None:
    """Add or replace one. Refuses the 21st, and a second one for the same issuer and subject."""
    others = [one for one in credentials.values() if one.name != made.name]
    if len(others) >= FEDERATED_CREDENTIALS:
        message = f"Too many Federated Identity Credentials: at most {FEDERATED_CREDENTIALS} can be on one identity."
        raise answers.arm(400, "BadRequest", message)
    if any((one.issuer, one.subject) == (made.issuer, made.subject) for one in others):
        message = "Issuer and subject combination already exists for this Managed Identity."
        raise answers.arm(409, "Conflict", message)
    credentials[made.name] = made


def _credential(identity: Json, one: FederatedCredential) -> Json:
    return {
        "id": f"{identity['id']}/{_FEDERATED}/{one.name}",
        "name": one.name,
        "type": f"{IDENTITY_TYPE}/{_FEDERATED}",
        "properties": {"issuer": one.issuer, "subject": one.subject, "audiences": one.audiences},
    }
