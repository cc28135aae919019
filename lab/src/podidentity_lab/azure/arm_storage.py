"""Storage accounts and their containers in ARM. What is in a container is `blob_storage`'s."""

import datetime as dt

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, blob_rules, roles
from podidentity_lab.azure.blob_rights import SUFFIX
from podidentity_lab.azure.blob_storage import new_container
from podidentity_lab.azure.state import Container, Json, Principal, State

TYPE = "Microsoft.Storage/storageAccounts"
_CONTAINER_TYPE = f"{TYPE}/blobServices/containers"
_CONTAINERS = ["blobservices", "default", "containers"]
_SERVICES = ("blobservices", "fileservices", "queueservices", "tableservices")


async def serve(request: Request, caller: Principal, path: str, state: State, now: float) -> Response:
    """Answer one request for an account, or for its containers."""
    parts = path.split("/")
    key, segments = "/".join(parts[:9]).lower(), [part.lower() for part in parts[9:]]
    if segments == ["listkeys"]:
        message = (
            "Key based authentication is not permitted on this storage account: the lab has no account keys; use a "
            "token of Entra ID, with azure-cli by --auth-mode login."
        )
        raise answers.arm(403, "KeyBasedAuthenticationNotPermitted", message)
    action = {"GET": "read", "DELETE": "delete"}.get(request.method, "write")
    roles.require(state, caller, f"{_CONTAINER_TYPE if segments else TYPE}/{action}", path)
    if request.method == "PUT" and not segments:
        state.accounts[key] = _account(state, path, await request.json(), now)
        return JSONResponse(state.accounts[key])
    if key not in state.accounts:
        if request.method == "DELETE" and not segments:
            return Response(status_code=204)
        message = f"The Resource '{TYPE}/{parts[8]}' under resource group '{parts[4]}' was not found."
        raise answers.arm(404, "ResourceNotFound", message)
    if segments[:3] == _CONTAINERS and len(segments) <= 4:
        return await _serve_container(
            request, state, state.accounts[key], (segments[3] if len(segments) == 4 else ""), now
        )
    if segments and not (segments[0] in _SERVICES and segments[1:] == ["default"] and request.method == "GET"):
        raise answers.arm(404, "NotFound", f"The lab's storage accounts do not have '{'/'.join(parts[9:])}'.")
    if segments:
        return JSONResponse({"id": path, "name": "default", "type": f"{TYPE}/{parts[9]}", "properties": {}})
    if request.method == "DELETE":
        delete(state, key)
        return Response(status_code=200)
    if request.method == "PATCH":
        body = await request.json()
        state.accounts[key]["tags"] = body.get("tags") or state.accounts[key]["tags"]
    return JSONResponse(state.accounts[key])


async def serve_name(request: Request, state: State) -> Response:
    """Answer whether an account's name is free."""
    name = str((await request.json())["name"])
    if not blob_rules.is_account_name(name):
        refusal = {"reason": "AccountNameInvalid", "message": _name_message(name)}
    elif _owner(state, name):
        refusal = {"reason": "AlreadyExists", "message": f"The storage account named {name} is already taken."}
    else:
        return JSONResponse({"nameAvailable": True})
    return JSONResponse({"nameAvailable": False, **refusal})


def delete(state: State, key: str) -> None:
    """Delete an account with everything in it."""
    start = f"{state.accounts.pop(key)['name']}/"
    for name in [name for name in state.containers if name.startswith(start)]:
        del state.containers[name]


async def _serve_container(request: Request, state: State, account: Json, name: str, now: float) -> Response:
    start = f"{account['name']}/"
    if not name:
        names = [key.removeprefix(start) for key in state.containers if key.startswith(start)]
        return JSONResponse({"value": [_container(account, item, state.containers[start + item]) for item in names]})
    key = start + name
    if request.method == "PUT":
        try:
            blob_rules.check_container_name(name)
        except blob_rules.BlobError as error:
            raise answers.arm(400, error.code, error.message) from None
        status = 200 if key in state.containers else 201
        container = state.containers.setdefault(key, new_container(now, {}))
        return JSONResponse(_container(account, name, container), status)
    if request.method == "DELETE":
        return Response(status_code=200 if state.containers.pop(key, None) else 204)
    if key not in state.containers:
        raise answers.arm(404, "ContainerNotFound", "The specified container does not exist.")
    return JSONResponse(_container(account, name, state.containers[key]))


def _account(state: State, path: str, body: Json, now: float) -> Json:
    """Return the document of a PUT account: a new one, or the current one with other tags."""
    name = path.rsplit("/", 1)[1]
    if not blob_rules.is_account_name(name):
        raise answers.arm(400, "AccountNameInvalid", _name_message(name))
    if _owner(state, name) not in {"", path.lower()}:
        message = f"The storage account named {name} is already taken."
        raise answers.arm(409, "StorageAccountAlreadyTaken", message)
    current = state.accounts.get(path.lower())
    if current is not None:
        return {**current, "tags": body.get("tags") or current["tags"]}
    properties = {
        "provisioningState": "Succeeded",
        "creationTime": dt.datetime.fromtimestamp(now, dt.UTC).isoformat(),
        "primaryEndpoints": {"blob": f"https://{name}{SUFFIX}/"},
        "primaryLocation": body.get("location", ""),
        "statusOfPrimary": "available",
        "supportsHttpsTrafficOnly": True,
        "minimumTlsVersion": "TLS1_2",
        "allowBlobPublicAccess": False,
        "allowSharedKeyAccess": False,
        "accessTier": "Hot",
    }
    content = {"id": path, "name": name, "type": TYPE, "location": body.get("location", "")}
    sku = {"name": (body.get("sku") or {}).get("name", "Standard_LRS"), "tier": "Standard"}
    kind = {"kind": body.get("kind", "StorageV2"), "sku": sku}
    return {**content, **kind, "tags": body.get("tags") or {}, "properties": properties}


def _container(account: Json, name: str, container: Container) -> Json:
    return {
        "id": f"{account['id']}/blobServices/default/containers/{name}",
        "name": name,
        "type": _CONTAINER_TYPE,
        "etag": container.etag,
        "properties": {"publicAccess": "None", "leaseStatus": "Unlocked", "leaseState": "Available"},
    }


def _owner(state: State, name: str) -> str:
    """Return the key of the account that has a name, or ""."""
    return next((key for key, account in state.accounts.items() if account["name"] == name), "")


def _name_message(name: str) -> str:
    return f"{name} is not a valid storage account name: use 3 to 24 lower-case letters and digits."
