"""Vaults as ARM sees them: made, changed, deleted, recovered, purged. Called by `arm_resources`.

A deleted vault keeps its secrets for its retention and its name is taken until it is purged.
"""

import datetime as dt
import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers
from podidentity.lab.azure.state import Deleted, Json, State

TYPE = "Microsoft.KeyVault/vaults"
RETENTION_DAYS = 90
_NAME = re.compile(r"[A-Za-z](?!.*--)[A-Za-z0-9-]{1,22}[A-Za-z0-9]")


async def serve(request: Request, path: str, state: State, now: float) -> Response:
    """GET, PUT, PATCH and DELETE of one vault; its access policies."""
    parts = path.split("/")
    key = "/".join(parts[:9]).lower()
    if request.method == "PUT" and len(parts) == 9:
        new = key not in state.vaults
        body = await request.json()
        state.vaults[key] = _recovered(state, path) if _mode(body) == "recover" else _made(state, path, body)
        return JSONResponse(state.vaults[key], 201 if new else 200)
    if key not in state.vaults:
        message = f"The Resource '{TYPE}/{parts[8]}' under resource group '{parts[4]}' was not found."
        raise answers.arm(404, "ResourceNotFound", message)
    if request.method == "DELETE":
        delete(state, key, now)
        return Response(status_code=200)
    if request.method == "PATCH":
        body = await request.json()
        state.vaults[key]["properties"] |= body.get("properties") or {}
        state.vaults[key]["tags"] = body.get("tags") or state.vaults[key]["tags"]
    if len(parts) > 9:
        return await _policies(request, parts[9:], state.vaults[key])
    return JSONResponse(state.vaults[key])


async def serve_deleted(request: Request, parts: list[str], state: State) -> Response:
    """Deleted vaults of the subscription: list, show, purge; and whether a name is free."""
    rest = [part.lower() for part in parts[5:]]
    if rest == ["checknameavailability"]:
        name = str((await request.json())["name"])
        free = name.lower() not in state.deleted_vaults and not any(
            one["name"].lower() == name.lower() for one in state.vaults.values()
        )
        return JSONResponse({"nameAvailable": free, **({} if free else {"reason": "AlreadyExists"})})
    if rest == ["deletedvaults"]:
        return JSONResponse({"value": [_deleted(state, name) for name in state.deleted_vaults]})
    if rest in (["managedhsms"], ["deletedmanagedhsms"]):  # `az keyvault list-deleted` asks for both
        return JSONResponse({"value": []})
    name = rest[3] if len(rest) > 3 and rest[0] == "locations" and rest[2] == "deletedvaults" else ""
    if name not in state.deleted_vaults:
        message = f"The vault '{name}' is not among the deleted ones."
        raise answers.arm(404, "DeletedVaultNotFound", message)
    if rest[4:] == ["purge"] and request.method == "POST":
        _purge(state, name)
        return Response(status_code=200)
    return JSONResponse(_deleted(state, name))


def delete(state: State, key: str, now: float) -> None:
    """Delete a vault; it can be recovered."""
    gone = state.vaults.pop(key)
    state.deleted_vaults[gone["name"].lower()] = Deleted(gone, int(now))


def _mode(body: Json) -> str:
    return str((body.get("properties") or {}).get("createMode", "")).lower()


def _made(state: State, path: str, body: Json) -> Json:
    name = path.rsplit("/", 1)[1]
    if not _NAME.fullmatch(name):
        message = f"The vault name '{name}' is invalid: 3 to 24 letters, digits and single hyphens, a letter first."
        raise answers.arm(400, "VaultNameNotValid", message)
    taken = {one["name"].lower(): key for key, one in state.vaults.items()}
    if taken.get(name.lower(), path.lower()) != path.lower():
        message = f"The vault name '{name}' is already in use. Vault names are globally unique."
        raise answers.arm(409, "VaultAlreadyExists", message)
    if name.lower() in state.deleted_vaults:
        message = f"A vault with the same name '{name}' already exists in deleted state. Recover or purge it."
        raise answers.arm(409, "ConflictError", message)
    given = body.get("properties", {})
    defaults = {"accessPolicies": [], "enableRbacAuthorization": True, "enableSoftDelete": True}
    properties = {**defaults, "softDeleteRetentionInDays": RETENTION_DAYS, **given, "provisioningState": "Succeeded"}
    properties["vaultUri"] = f"https://{name.lower()}.vault.azure.net/"
    shown = {"id": path, "name": name, "type": TYPE, "location": body.get("location", "")}
    return {**shown, "tags": body.get("tags") or {}, "properties": properties}


def _recovered(state: State, path: str) -> Json:
    name = path.rsplit("/", 1)[1].lower()
    if name not in state.deleted_vaults:
        raise answers.arm(404, "DeletedVaultNotFound", f"The vault '{name}' is not among the deleted ones.")
    return state.deleted_vaults.pop(name).resource


def _purge(state: State, name: str) -> None:
    protected = state.deleted_vaults[name].resource["properties"].get("enablePurgeProtection")
    if protected:
        message = f"The vault '{name}' has purge protection: it goes when its retention is over."
        raise answers.arm(403, "Forbidden", message)
    del state.deleted_vaults[name]
    for key in [key for key in state.secrets if key.startswith(f"{name}/")]:
        del state.secrets[key]
        state.deleted_secrets.pop(key, None)


def _deleted(state: State, name: str) -> Json:
    one = state.deleted_vaults[name]
    when = dt.datetime.fromtimestamp(one.deleted_at, dt.UTC)
    resource = one.resource
    properties = {
        "vaultId": resource["id"],
        "location": resource["location"],
        "deletionDate": when.isoformat(),
        "scheduledPurgeDate": (when + dt.timedelta(days=RETENTION_DAYS)).isoformat(),
        "tags": resource["tags"],
    }
    base = f"/subscriptions/{state.settings.subscription_id}/providers/Microsoft.KeyVault"
    where = f"{base}/locations/{resource['location']}/deletedVaults/{resource['name']}"
    return {
        "id": where,
        "name": resource["name"],
        "type": "Microsoft.KeyVault/deletedVaults",
        "properties": properties,
    }


async def _policies(request: Request, rest: list[str], vault: Json) -> Response:
    """`accessPolicies/add`, `replace` and `remove`."""
    if rest[0].lower() != "accesspolicies" or request.method != "PUT":
        raise answers.arm(404, "NotFound", f"The lab has no '{'/'.join(rest)}' of a vault.")
    given = (await request.json())["properties"]["accessPolicies"]
    named = {one["objectId"] for one in given}
    kept = [one for one in vault["properties"]["accessPolicies"] if one["objectId"] not in named]
    vault["properties"]["accessPolicies"] = kept if rest[-1].lower() == "remove" else [*kept, *given]
    shown = {"accessPolicies": vault["properties"]["accessPolicies"]}
    return JSONResponse({"id": vault["id"], "name": vault["name"], "type": TYPE, "properties": shown})
