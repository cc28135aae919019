"""Key Vault's secrets: their versions, deletion and recovery, as `https://NAME.vault.azure.net` serves them.

The vaults themselves are made through ARM (`arm_vaults`); who may do what is decided in `keyvault_rights`.
"""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.keyvault_rights import Rights
from podidentity_lab.azure.state import Json, SecretVersion, State, new_id

SUFFIX = ".vault.azure.net"
RETENTION_SECONDS = 90 * 86_400
_LONGEST_VALUE = 25_000  # learn.microsoft.com/azure/key-vault/secrets/about-secrets: 25 kB


class KeyVault:
    """The secrets of all vaults; the host name of a request says which vault."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._state = state
        self._faults = faults
        self._clock = clock
        self._rights = Rights(state, entra)

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        vault = self._vault(request.headers["host"].split(":")[0])
        caller = self._rights.caller(request)
        request.state.client_id = caller.client_id
        if self._faults.keyvault_statuses:
            raise answers.asked_for(self._faults.keyvault_statuses.pop(0), self._faults.headers())
        parts = [part for part in request.url.path.split("/") if part]
        if not parts or parts[0].lower() not in {"secrets", "deletedsecrets"}:
            raise answers.arm(404, "NotFound", f"The lab's vaults hold secrets only, not '{request.url.path}'.")
        serve = self._secrets if parts[0].lower() == "secrets" else self._deleted_secrets
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
                secret = self._find(vault, name, version)
                _change(secret, await request.json())
                return JSONResponse(_short(_document(request, name, secret)))
            case "GET", "versions":
                versions = self._versions(vault, name)
                return JSONResponse(self._page(request, [(name, secret) for secret in versions], versioned=True))
            case "GET", _:
                return JSONResponse(self._get(request, vault, name, version))
        raise answers.arm(405, "MethodNotAllowed", f"{request.method} is not for '{request.url.path}'.")

    async def _deleted_secrets(self, request: Request, vault: Json, parts: list[str]) -> Response:
        prefix = f"{vault['name'].lower()}/"
        if not parts:
            names = [key.removeprefix(prefix) for key in self._state.deleted_secrets if key.startswith(prefix)]
            return JSONResponse(
                {"value": [self._deleted_document(request, vault, name) for name in names], "nextLink": None}
            )
        name, key = parts[0], prefix + parts[0].lower()
        if key not in self._state.deleted_secrets:
            raise answers.arm(404, "SecretNotFound", f"Deleted Secret not found: {name}")
        match request.method, parts[1:]:
            case "GET", []:
                return JSONResponse(self._deleted_document(request, vault, name))
            case "DELETE", []:
                del self._state.deleted_secrets[key], self._state.secrets[key]
                return Response(status_code=204)
            case "POST", ["recover"]:
                del self._state.deleted_secrets[key]
                return JSONResponse(_short(_document(request, name, self._state.secrets[key][-1])))
        raise answers.arm(405, "MethodNotAllowed", f"{request.method} is not for '{request.url.path}'.")

    def _vault(self, host: str) -> Json:
        name = host.lower().removesuffix(SUFFIX)
        vault = next(
            (candidate for candidate in self._state.vaults.values() if candidate["name"].lower() == name), None
        )
        if vault is None:
            raise answers.arm(404, "VaultNotFound", f"There is no vault '{name}' in the lab.")
        return vault

    def _versions(self, vault: Json, name: str) -> list[SecretVersion]:
        key = f"{vault['name'].lower()}/{name.lower()}"
        return [] if key in self._state.deleted_secrets else self._state.secrets.get(key, [])

    def _newest(self, vault: Json) -> list[tuple[str, SecretVersion]]:
        prefix = f"{vault['name'].lower()}/"
        names = [key.removeprefix(prefix) for key in self._state.secrets if key.startswith(prefix)]
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
        if len(value) > _LONGEST_VALUE:
            raise answers.arm(400, "BadParameter", f"The secret's value is longer than {_LONGEST_VALUE} characters.")
        secret = SecretVersion(new_id().replace("-", ""), value, int(self._clock()))
        _change(secret, body)
        self._state.secrets.setdefault(key, []).append(secret)
        return _document(request, name, secret)

    def _find(self, vault: Json, name: str, version: str) -> SecretVersion:
        versions = self._versions(vault, name)
        secret = next((candidate for candidate in reversed(versions) if version in {"", candidate.version}), None)
        if secret is None:
            message = (
                f"A secret with (name/id) {name}{'/' if version else ''}{version} was not found in this key vault. If "
                "you recently deleted this secret you may be able to recover it."
            )
            raise answers.arm(404, "SecretNotFound", message)
        return secret

    def _get(self, request: Request, vault: Json, name: str, version: str) -> Json:
        secret = self._find(vault, name, version)
        if not secret.enabled:
            message = "Operation get is not allowed on a disabled secret."
            raise answers.arm(403, "Forbidden", message, innererror={"code": "SecretDisabled"})
        return _document(request, name, secret)

    def _delete(self, request: Request, vault: Json, name: str) -> Json:
        self._find(vault, name, "")
        self._state.deleted_secrets[f"{vault['name'].lower()}/{name.lower()}"] = int(self._clock())
        return self._deleted_document(request, vault, name)

    def _deleted_document(self, request: Request, vault: Json, name: str) -> Json:
        key = f"{vault['name'].lower()}/{name.lower()}"
        deleted_at = self._state.deleted_secrets[key]
        content = _short(_document(request, name, self._state.secrets[key][-1]))
        recovery_id = f"https://{request.headers['host']}/deletedsecrets/{name}"
        return {
            **content,
            "recoveryId": recovery_id,
            "deletedDate": deleted_at,
            "scheduledPurgeDate": deleted_at + RETENTION_SECONDS,
        }

    def _page(self, request: Request, secrets: list[tuple[str, SecretVersion]], *, versioned: bool = False) -> Json:
        items = [_short(_document(request, name, item)) for name, item in secrets]
        if not versioned:
            for item in items:
                item["id"] = item["id"].rsplit("/", 1)[0]
        return {"value": items, "nextLink": None}


def _permission(method: str, parts: list[str]) -> str:
    """Return the permission that a request needs, by its name in access policies."""
    is_deleted = parts[0].lower() == "deletedsecrets"
    if method == "DELETE":
        return "purge" if is_deleted else "delete"
    if method == "POST":
        return "recover"
    if method in {"PUT", "PATCH"}:
        return "set"
    lists = len(parts) == 1 or parts[2:] == ["versions"]
    return "list" if lists else "get"


def _change(secret: SecretVersion, body: Json) -> None:
    attributes = body.get("attributes") or {}
    secret.enabled = bool(attributes.get("enabled", secret.enabled))
    secret.not_before = int(attributes.get("nbf") or secret.not_before)
    secret.expires = int(attributes.get("exp") or secret.expires)
    secret.tags = body.get("tags") or secret.tags
    secret.content_type = str(body.get("contentType") or secret.content_type)


def _document(request: Request, name: str, secret: SecretVersion) -> Json:
    times = {"created": secret.created_at, "updated": secret.created_at}
    times |= {key: value for key, value in (("nbf", secret.not_before), ("exp", secret.expires)) if value}
    attributes = {"enabled": secret.enabled, **times, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90}
    secret_id = f"https://{request.headers['host']}/secrets/{name}/{secret.version}"
    kind = {"contentType": secret.content_type} if secret.content_type else {}
    return {"value": secret.value, "id": secret_id, "attributes": attributes, "tags": secret.tags, **kind}


def _short(content: Json) -> Json:
    """Return a secret's document without its value: in lists, and when it is deleted."""
    return {key: value for key, value in content.items() if key != "value"}
