"""Key Vault's secrets: challenge, token, then access policy or role, as the vault was made.

Data only; vaults themselves are `arm_vaults`, and who may do what is `keyvault_rights`.
"""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers
from podidentity.lab.azure.entra import Entra
from podidentity.lab.azure.faults import Faults
from podidentity.lab.azure.keyvault_rights import Rights
from podidentity.lab.azure.state import Json, SecretVersion, State, new_id

SUFFIX = ".vault.azure.net"
RETENTION_SECONDS = 90 * 86_400
_TOO_LONG = 25_000  # learn.microsoft.com/azure/key-vault/secrets/about-secrets: 25 kB


class KeyVault:
    """All vaults of the lab; the host name says which."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._state = state
        self._faults = faults
        self._clock = clock
        self._rights = Rights(state, entra)

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        vault = self._vault(request.headers["host"].split(":")[0])
        caller = self._rights.caller(request)
        request.state.who = caller.client_id
        if self._faults.keyvault_statuses:
            raise answers.asked_for(self._faults.keyvault_statuses.pop(0), self._faults.headers())
        parts = [part for part in request.url.path.split("/") if part]
        if not parts or parts[0].lower() not in {"secrets", "deletedsecrets"}:
            raise answers.arm(404, "NotFound", f"The lab's vaults hold secrets only, not '{request.url.path}'.")
        serve = self._secrets if parts[0].lower() == "secrets" else self._deleted
        permission = _permission(request.method, parts)
        self._rights.require(vault, caller, permission, parts[1] if len(parts) > 1 else "")
        return await serve(request, vault, parts[1:])

    async def _secrets(self, request: Request, vault: Json, parts: list[str]) -> Response:
        if not parts:
            return JSONResponse(self._page(request, self._newest(vault)))
        name, version = parts[0], parts[1] if len(parts) > 1 else ""
        match request.method, version:
            case "PUT", "":
                return JSONResponse(self._set(request, vault, name, await request.json()))
            case "DELETE", "":
                return JSONResponse(self._delete(request, vault, name))
            case "PATCH", _:
                found = self._find(vault, name, version)
                _change(found, await request.json())
                return JSONResponse(_short(_shown(request, name, found)))
            case "GET", "versions":
                versions = self._versions(vault, name)
                return JSONResponse(self._page(request, [(name, one) for one in versions], versioned=True))
            case "GET", _:
                return JSONResponse(self._get(request, vault, name, version))
        raise answers.arm(405, "MethodNotAllowed", f"{request.method} is not for '{request.url.path}'.")

    async def _deleted(self, request: Request, vault: Json, parts: list[str]) -> Response:
        own = f"{vault['name'].lower()}/"
        if not parts:
            names = [key.removeprefix(own) for key in self._state.deleted_secrets if key.startswith(own)]
            return JSONResponse({"value": [self._gone(request, vault, name) for name in names], "nextLink": None})
        name, key = parts[0], own + parts[0].lower()
        if key not in self._state.deleted_secrets:
            raise answers.arm(404, "SecretNotFound", f"Deleted Secret not found: {name}")
        match request.method, parts[1:]:
            case "GET", []:
                return JSONResponse(self._gone(request, vault, name))
            case "DELETE", []:
                del self._state.deleted_secrets[key], self._state.secrets[key]
                return Response(status_code=204)
            case "POST", ["recover"]:
                del self._state.deleted_secrets[key]
                return JSONResponse(_short(_shown(request, name, self._state.secrets[key][-1])))
        raise answers.arm(405, "MethodNotAllowed", f"{request.method} is not for '{request.url.path}'.")

    def _vault(self, host: str) -> Json:
        name = host.lower().removesuffix(SUFFIX)
        found = next((one for one in self._state.vaults.values() if one["name"].lower() == name), None)
        if found is None:
            raise answers.arm(404, "VaultNotFound", f"There is no vault '{name}' in the lab.")
        return found

    def _versions(self, vault: Json, name: str) -> list[SecretVersion]:
        key = f"{vault['name'].lower()}/{name.lower()}"
        return [] if key in self._state.deleted_secrets else self._state.secrets.get(key, [])

    def _newest(self, vault: Json) -> list[tuple[str, SecretVersion]]:
        own = f"{vault['name'].lower()}/"
        names = [key.removeprefix(own) for key in self._state.secrets if key.startswith(own)]
        return [(name, versions[-1]) for name in names if (versions := self._versions(vault, name))]

    def _set(self, request: Request, vault: Json, name: str, body: Json) -> Json:
        key = f"{vault['name'].lower()}/{name.lower()}"
        if key in self._state.deleted_secrets:
            message = (
                f"Secret {name} is currently in a deleted but recoverable state, and its name cannot be reused; in "
                "this state, the secret can only be recovered or purged."
            )
            raise answers.arm(409, "Conflict", message, innererror={"code": "ObjectIsDeletedButRecoverable"})
        value = str(body["value"])
        if len(value) > _TOO_LONG:
            raise answers.arm(400, "BadParameter", f"The secret's value is longer than {_TOO_LONG} characters.")
        made = SecretVersion(new_id().replace("-", ""), value, int(self._clock()))
        _change(made, body)
        self._state.secrets.setdefault(key, []).append(made)
        return _shown(request, name, made)

    def _find(self, vault: Json, name: str, version: str) -> SecretVersion:
        versions = self._versions(vault, name)
        found = next((one for one in reversed(versions) if version in {"", one.version}), None)
        if found is None:
            message = f"A secret with (name/id) {name}{'/' if version else ''}{version} was not found in this key vault"
            told = f"{message}. If you recently deleted this secret you may be able to recover it."
            raise answers.arm(404, "SecretNotFound", told)
        return found

    def _get(self, request: Request, vault: Json, name: str, version: str) -> Json:
        found = self._find(vault, name, version)
        if not found.enabled:
            message = "Operation get is not allowed on a disabled secret."
            raise answers.arm(403, "Forbidden", message, innererror={"code": "SecretDisabled"})
        return _shown(request, name, found)

    def _delete(self, request: Request, vault: Json, name: str) -> Json:
        self._find(vault, name, "")
        self._state.deleted_secrets[f"{vault['name'].lower()}/{name.lower()}"] = int(self._clock())
        return self._gone(request, vault, name)

    def _gone(self, request: Request, vault: Json, name: str) -> Json:
        key = f"{vault['name'].lower()}/{name.lower()}"
        at = self._state.deleted_secrets[key]
        shown = _short(_shown(request, name, self._state.secrets[key][-1]))
        where = f"https://{request.headers['host']}/deletedsecrets/{name}"
        return {**shown, "recoveryId": where, "deletedDate": at, "scheduledPurgeDate": at + RETENTION_SECONDS}

    def _page(self, request: Request, found: list[tuple[str, SecretVersion]], *, versioned: bool = False) -> Json:
        shown = [_short(_shown(request, name, one)) for name, one in found]
        if not versioned:
            for one in shown:
                one["id"] = one["id"].rsplit("/", 1)[0]
        return {"value": shown, "nextLink": None}


def _permission(method: str, parts: list[str]) -> str:
    """What a request needs, in the words of access policies."""
    deleted = parts[0].lower() == "deletedsecrets"
    if method == "DELETE":
        return "purge" if deleted else "delete"
    if method == "POST":
        return "recover"
    if method in {"PUT", "PATCH"}:
        return "set"
    lists = len(parts) == 1 or parts[2:] == ["versions"]
    return "list" if lists else "get"


def _change(one: SecretVersion, body: Json) -> None:
    attributes = body.get("attributes") or {}
    one.enabled = bool(attributes.get("enabled", one.enabled))
    one.not_before = int(attributes.get("nbf") or one.not_before)
    one.expires = int(attributes.get("exp") or one.expires)
    one.tags = body.get("tags") or one.tags
    one.content_type = str(body.get("contentType") or one.content_type)


def _shown(request: Request, name: str, one: SecretVersion) -> Json:
    times = {"created": one.created, "updated": one.created}
    times |= {key: value for key, value in (("nbf", one.not_before), ("exp", one.expires)) if value}
    attributes = {"enabled": one.enabled, **times, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90}
    where = f"https://{request.headers['host']}/secrets/{name}/{one.version}"
    kind = {"contentType": one.content_type} if one.content_type else {}
    return {"value": one.value, "id": where, "attributes": attributes, "tags": one.tags, **kind}


def _short(shown: Json) -> Json:
    """A secret without its value: in lists, and when it is deleted."""
    return {key: value for key, value in shown.items() if key != "value"}
