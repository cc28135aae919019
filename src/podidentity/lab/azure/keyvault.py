"""Key Vault's secrets: challenge, token, then access policy or role, as the vault was made."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers, roles
from podidentity.lab.azure.entra import HOST as LOGIN_HOST
from podidentity.lab.azure.entra import Entra
from podidentity.lab.azure.state import AzureSettings, Json, Principal, SecretVersion, State, new_id

SUFFIX = ".vault.azure.net"
AUDIENCE = "https://vault.azure.net"
_ACTIONS = {
    "get": "microsoft.keyvault/vaults/secrets/getSecret/action",
    "list": "microsoft.keyvault/vaults/secrets/readMetadata/action",
}


class KeyVault:
    """All vaults of the lab; the host name says which."""

    def __init__(self, settings: AzureSettings, state: State, entra: Entra, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._state = state
        self._entra = entra
        self._clock = clock

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        vault = self._vault(request.headers["host"].split(":")[0])
        caller = self._caller(request)
        request.state.who = caller.client_id
        parts = [part for part in request.url.path.split("/") if part]
        if not parts or parts[0] != "secrets":
            raise answers.arm(404, "NotFound", f"The lab's vaults hold secrets only, not '{request.url.path}'.")
        if request.method == "PUT":
            self._require(vault, caller, "set")
            return JSONResponse(self._set(request, vault, parts[1], await request.json()))
        if request.method != "GET":
            raise answers.arm(405, "MethodNotAllowed", "The lab's vaults take GET and PUT.")
        if len(parts) == 1:
            self._require(vault, caller, "list")
            return JSONResponse({"value": self._list(request, vault), "nextLink": None})
        self._require(vault, caller, "get")
        return JSONResponse(self._get(request, vault, parts[1], parts[2] if len(parts) > 2 else ""))

    def _vault(self, host: str) -> Json:
        name = host.removesuffix(SUFFIX)
        found = next((one for one in self._state.vaults.values() if one["name"].lower() == name.lower()), None)
        if found is None:
            raise answers.arm(404, "VaultNotFound", f"There is no vault '{name}' in the lab.")
        return found

    def _caller(self, request: Request) -> Principal:
        _, _, token = request.headers.get("authorization", "").partition(" ")
        claims = self._entra.verify(token, AUDIENCE) if token else None
        principal = self._state.principals.get(claims["oid"]) if claims else None
        if principal is None:
            where = f'Bearer authorization="https://{LOGIN_HOST}/{self._settings.tenant_id}", resource="{AUDIENCE}"'
            why = (
                "AKV10022: Invalid audience, signature or time of the token."
                if token
                else "AKV10000: Request is missing a Bearer or PoP token."
            )
            raise answers.arm(401, "Unauthorized", why, {"WWW-Authenticate": where})
        return principal

    def _require(self, vault: Json, caller: Principal, permission: str) -> None:
        properties = vault["properties"]
        if properties["enableRbacAuthorization"]:
            action = _ACTIONS.get(permission, "microsoft.keyvault/vaults/secrets/setSecret/action")
            granted = roles.allowed(self._state, caller, action, vault["id"], on_data=True)
        else:
            granted = any(
                {"all", permission} & {name.lower() for name in policy["permissions"].get("secrets") or ()}
                for policy in properties["accessPolicies"]
                if policy["objectId"] == caller.object_id
            )
        if not granted:
            message = (
                f"The user, group or application 'appid={caller.client_id};oid={caller.object_id}' does not have "
                f"secrets {permission} permission on key vault '{vault['name']};location={vault['location']}'."
            )
            raise answers.arm(403, "Forbidden", message)

    def _set(self, request: Request, vault: Json, name: str, body: Json) -> Json:
        made = SecretVersion(
            new_id().replace("-", ""), str(body.get("value", "")), int(self._clock()), body.get("tags") or {}
        )
        self._state.secrets.setdefault((vault["name"].lower(), name.lower()), []).append(made)
        return _shown(request, name, made)

    def _get(self, request: Request, vault: Json, name: str, version: str) -> Json:
        versions = self._state.secrets.get((vault["name"].lower(), name.lower()), [])
        found = next((one for one in reversed(versions) if version in {"", one.version}), None)
        if found is None:
            message = (
                f"A secret with (name/id) {name}{'/' if version else ''}{version} was not found in this key vault."
            )
            raise answers.arm(404, "SecretNotFound", message)
        return _shown(request, name, found)

    def _list(self, request: Request, vault: Json) -> list[Json]:
        own = vault["name"].lower()
        names = [(name, versions[-1]) for (of, name), versions in self._state.secrets.items() if of == own]
        return [
            {key: value for key, value in _shown(request, name, last).items() if key != "value"} for name, last in names
        ]


def _shown(request: Request, name: str, version: SecretVersion) -> Json:
    times = {"created": version.created, "updated": version.created}
    attributes = {"enabled": True, **times, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90}
    where = f"https://{request.headers['host']}/secrets/{name}/{version.version}"
    return {"value": version.value, "id": where, "attributes": attributes, "tags": version.tags}
