"""Vaults in ARM: creating, changing, deleting, recovering and purging them.

A deleted vault keeps what it holds until it is purged, and its name stays taken for as long.
"""

import datetime as dt
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers
from podidentity_lab.azure.state import DeletedVault, Json, State

TYPE = "Microsoft.KeyVault/vaults"
RETENTION_DAYS = 90
_NAME = re.compile(r"[A-Za-z](?!.*--)[A-Za-z0-9-]{1,22}[A-Za-z0-9]")


async def serve(request: Request, path: str, state: State, now: float) -> Response:
    """Answer GET, PUT, PATCH and DELETE of one vault, and changes of its access policies."""
    parts = path.split("/")
    key = "/".join(parts[:9]).lower()
    if request.method == "PUT" and len(parts) == 9:
        new = key not in state.vaults
        body = await request.json()
        state.vaults[key] = _recover(state, path) if _mode(body) == "recover" else _new_vault(state, path, body)
        return JSONResponse(state.vaults[key], 201 if new else 200)
    if key not in state.vaults:
        message = f"The Resource '{TYPE}/{parts[8]}' under resource group '{parts[4]}' was not found."
        raise answers.arm(404, "ResourceNotFound", message)
    if request.method == "DELETE":
        delete(state, key, now)
        return Response(status_code=200)
    if request.method == "PATCH":
        body = await request.json()
        _check_properties(body.get("properties") or {})
        state.vaults[key]["properties"] |= body.get("properties") or {}
        state.vaults[key]["tags"] = body.get("tags") or state.vaults[key]["tags"]
    if len(parts) > 9:
        return await _policies(request, parts[9:], state.vaults[key])
    return JSONResponse(state.vaults[key])


async def serve_deleted(request: Request, parts: list[str], state: State) -> Response:
    """Answer requests for deleted vaults (list, show, purge), and whether a vault's name is free."""
    segments = [part.lower() for part in parts[5:]]
    if segments == ["checknameavailability"]:
        name = str((await request.json())["name"])
        free = name.lower() not in state.deleted_vaults and not any(
            vault["name"].lower() == name.lower() for vault in state.vaults.values()
        )
        return JSONResponse({"nameAvailable": free, **({} if free else {"reason": "AlreadyExists"})})
    if segments == ["deletedvaults"]:
        return JSONResponse({"value": [_deleted_document(state, name) for name in state.deleted_vaults]})
    if segments in (["managedhsms"], ["deletedmanagedhsms"]):  # `az keyvault list-deleted` asks for both
        return JSONResponse({"value": []})
    name = segments[3] if len(segments) > 3 and segments[0] == "locations" and segments[2] == "deletedvaults" else ""
    if name not in state.deleted_vaults:
        message = f"The vault '{name}' is not among the deleted ones."
        raise answers.arm(404, "DeletedVaultNotFound", message)
    if segments[4:] == ["purge"] and request.method == "POST":
        _purge(state, name)
        return Response(status_code=200)
    return JSONResponse(_deleted_document(state, name))


def delete(state: State, key: str, now: float) -> None:
    """Delete a vault; it can be recovered."""
    vault = state.vaults.pop(key)
    state.deleted_vaults[vault["name"].lower()] = DeletedVault(vault, int(now))


def _mode(body: Json) -> str:
    return str((body.get("properties") or {}).get("createMode", "")).lower()


def _new_vault(state: State, path: str, body: Json) -> Json:
    name = path.rsplit("/", 1)[1]
    if not _NAME.fullmatch(name):
        message = f"The vault name '{name}' is invalid: 3 to 24 letters, digits and single hyphens, a letter first."
        raise answers.arm(400, "VaultNameNotValid", message)
    names = {vault["name"].lower(): key for key, vault in state.vaults.items()}
    if names.get(name.lower(), path.lower()) != path.lower():
        message = f"The vault name '{name}' is already in use. Vault names are globally unique."
        raise answers.arm(409, "VaultAlreadyExists", message)
    if name.lower() in state.deleted_vaults:
        message = f"A vault with the same name '{name}' already exists in deleted state. Recover or purge it."
        raise answers.arm(409, "ConflictError", message)
    new_properties = body.get("properties") or {}
    _check_properties(new_properties)
    defaults = {"accessPolicies": [], "enableRbacAuthorization": True, "enableSoftDelete": True}
    properties = {
        **defaults,
        "softDeleteRetentionInDays": RETENTION_DAYS,
        **new_properties,
        "provisioningState": "Succeeded",
    }
    properties["vaultUri"] = f"https://{name.lower()}.vault.azure.net/"
    content = {"id": path, "name": name, "type": TYPE, "location": body.get("location", "")}
    return {**content, "tags": body.get("tags") or {}, "properties": properties}


def _check_properties(properties: Json) -> None:
    """Refuse access policies of another form, which would spoil each later request to the vault."""
    policies = properties.get("accessPolicies", [])
    if not (isinstance(policies, list) and all(_is_policy(policy) for policy in policies)):
        message = "The property 'accessPolicies' is a list of objects with 'objectId' and 'permissions'."
        raise answers.arm(400, "BadRequest", message)


def _is_policy(policy: object) -> bool:
    if not (isinstance(policy, dict) and isinstance(policy.get("objectId"), str)):
        return False
    permissions = policy.get("permissions")
    return isinstance(permissions, dict) and all(
        isinstance(names, list | None) and all(isinstance(name, str) for name in names or ())
        for names in permissions.values()
    )


def _recover(state: State, path: str) -> Json:
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
    stores: tuple[dict[str, Any], ...] = (
        state.secrets,
        state.deleted_secrets,
        state.vault_keys,
        state.deleted_vault_keys,
        state.certificates,
        state.deleted_certificates,
    )
    for store in stores:
        for key in [key for key in store if key.startswith(f"{name}/")]:
            del store[key]


def _deleted_document(state: State, name: str) -> Json:
    deleted_vault = state.deleted_vaults[name]
    when = dt.datetime.fromtimestamp(deleted_vault.deleted_at, dt.UTC)
    resource = deleted_vault.resource
    properties = {
        "vaultId": resource["id"],
        "location": resource["location"],
        "deletionDate": when.isoformat(),
        "scheduledPurgeDate": (when + dt.timedelta(days=RETENTION_DAYS)).isoformat(),
        "tags": resource["tags"],
    }
    base = f"/subscriptions/{state.settings.subscription_id}/providers/Microsoft.KeyVault"
    deleted_id = f"{base}/locations/{resource['location']}/deletedVaults/{resource['name']}"
    return {
        "id": deleted_id,
        "name": resource["name"],
        "type": "Microsoft.KeyVault/deletedVaults",
        "properties": properties,
    }


async def _policies(request: Request, segments: list[str], vault: Json) -> Response:
    """Answer `accessPolicies/add`, `replace` and `remove`."""
    if segments[0].lower() != "accesspolicies" or request.method != "PUT":
        raise answers.arm(404, "NotFound", f"The lab has no '{'/'.join(segments)}' of a vault.")
    new_policies = (await request.json())["properties"]["accessPolicies"]
    _check_properties({"accessPolicies": new_policies})
    object_ids = {policy["objectId"] for policy in new_policies}
    remaining = [policy for policy in vault["properties"]["accessPolicies"] if policy["objectId"] not in object_ids]
    vault["properties"]["accessPolicies"] = (
        remaining if segments[-1].lower() == "remove" else [*remaining, *new_policies]
    )
    properties = {"accessPolicies": vault["properties"]["accessPolicies"]}
    return JSONResponse({"id": vault["id"], "name": vault["name"], "type": TYPE, "properties": properties})
