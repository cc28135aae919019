"""Who asks a vault, and whether the vault lets them: its access policies, or roles where it was made for roles.

Refusals in Key Vault's words; the challenge of a request without a token is what SDKs learn the resource from. Called
by `keyvault`.
"""

from starlette.requests import Request

from podidentity.lab.azure import answers, roles
from podidentity.lab.azure.entra import HOST as LOGIN_HOST
from podidentity.lab.azure.entra import Entra
from podidentity.lab.azure.state import Json, Principal, State

AUDIENCE = "https://vault.azure.net"
_PREFIX = "Microsoft.KeyVault/vaults/secrets"
_ACTIONS = {
    "get": f"{_PREFIX}/getSecret/action",
    "list": f"{_PREFIX}/readMetadata/action",
    "set": f"{_PREFIX}/setSecret/action",
    "delete": f"{_PREFIX}/delete",
    "recover": f"{_PREFIX}/recover/action",
    "purge": f"{_PREFIX}/purge/action",
}


class Rights:
    """The door of every vault."""

    def __init__(self, state: State, entra: Entra) -> None:
        self._state = state
        self._entra = entra

    def caller(self, request: Request) -> Principal:
        """Who asks. Refuses with a challenge."""
        _, _, token = request.headers.get("authorization", "").partition(" ")
        claims = self._entra.verify(token, AUDIENCE) if token else "token"
        principal = None if isinstance(claims, str) else self._state.principals.get(claims["oid"])
        if principal is not None:
            return principal
        where = f'Bearer authorization="https://{LOGIN_HOST}/{self._state.settings.tenant_id}", resource="{AUDIENCE}"'
        why = _WRONG.get(claims, _NOBODY) if isinstance(claims, str) else _NOBODY
        raise answers.arm(401, "Unauthorized", why, {"WWW-Authenticate": where})

    def require(self, vault: Json, caller: Principal, permission: str, secret: str) -> None:
        """Refuse unless `caller` has `permission` on the vault, or by role on the secret."""
        if vault["properties"]["enableRbacAuthorization"]:
            self._require_role(vault, caller, permission, secret)
        else:
            self._require_policy(vault, caller, permission)

    def _require_policy(self, vault: Json, caller: Principal, permission: str) -> None:
        for policy in vault["properties"]["accessPolicies"]:
            held = {name.lower() for name in policy["permissions"].get("secrets") or ()}
            # "all" means all but purge: that one has to be given by name.
            granted = permission in held or ("all" in held and permission != "purge")
            if policy["objectId"] == caller.object_id and granted:
                return
        message = (
            f"The user, group or application '{self._named(caller)}' does not have secrets {permission} permission on "
            f"key vault '{vault['name']};location={vault['location']}'. For help resolving this issue, please see "
            "https://go.microsoft.com/fwlink/?linkid=2125287"
        )
        raise answers.arm(403, "Forbidden", message, innererror={"code": "AccessDenied"})

    def _require_role(self, vault: Json, caller: Principal, permission: str, secret: str) -> None:
        scope = f"{vault['id']}/secrets/{secret}" if secret else vault["id"]
        action = _ACTIONS[permission]
        if roles.allowed(self._state, caller, action, scope, on_data=True):
            return
        message = (
            "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role "
            f"definitions were changed recently, please observe propagation time.\r\nCaller: {self._named(caller)}\r\n"
            f"Action: '{action}'\r\nResource: '{scope}'\r\nAssignment: (not found)\r\nDenyAssignmentId: null\r\n"
            f"DecisionReason: null\r\nVault: {vault['name']};location={vault['location']}\r\n"
        )
        raise answers.arm(403, "Forbidden", message, innererror={"code": "ForbiddenByRbac"})

    def _named(self, caller: Principal) -> str:
        tenant = self._state.settings.tenant_id
        return f"appid={caller.client_id};oid={caller.object_id};iss=https://sts.windows.net/{tenant}/"


_NOBODY = "AKV10032: The token's principal is not in this tenant."
_WRONG = {
    "token": "AKV10000: Request is missing a Bearer or PoP token.",
    "audience": f"AKV10022: Invalid audience. Expected {AUDIENCE}.",
    "signature": "AKV10046: Unable to resolve the key used for signature validation.",
    "time": "Error validating token: IDX10223. The token is not within its lifetime.",
}
