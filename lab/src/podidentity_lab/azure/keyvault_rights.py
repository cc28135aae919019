"""Who asks a vault, and whether they may: by its access policies, or by roles where it has `enableRbacAuthorization`.

Refusals are in Key Vault's own words. A request without a token gets a challenge (RFC 6750), from which SDKs learn for
which resource to get one.
"""

from starlette.requests import Request

from podidentity_lab.azure import answers, memberships, roles
from podidentity_lab.azure.entra import HOST as LOGIN_HOST
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.state import Json, Principal, State

AUDIENCE = "https://vault.azure.net"
_PREFIX = "Microsoft.KeyVault/vaults"
_LIFE = {"delete": "delete", "recover": "recover/action", "purge": "purge/action"}
# By permission of an access policy, the data action of a role: learn.microsoft.com/azure/role-based-access-control/
# permissions/security#microsoftkeyvault.
_ACTIONS = {
    "secrets": {"get": "getSecret/action", "list": "readMetadata/action", "set": "setSecret/action", **_LIFE},
    "keys": {
        "get": "read",
        "list": "read",
        "wrapKey": "wrap/action",
        "unwrapKey": "unwrap/action",
        **{name: f"{name}/action" for name in ("create", "import", "update", "sign", "verify", "encrypt", "decrypt")},
        **_LIFE,
    },
    "certificates": {
        "get": "read",
        "list": "read",
        **{name: f"{name}/action" for name in ("create", "import", "update")},
        **_LIFE,
    },
}


def permission_of(kind: str, method: str, parts: list[str], *, is_deleted: bool) -> str:
    """Return the permission that a request needs, by its name in access policies. Refuses with 405 what none is for.

    `kind` is one of `_ACTIONS`, `parts` the path below it.
    """
    if is_deleted and method != "GET":
        permission = {"DELETE": "purge", "POST": "recover"}.get(method, "")
    elif method == "GET":
        permission = "list" if not parts or parts[1:] == ["versions"] else "get"
    elif method == "POST":
        verb = parts[-1].lower() if len(parts) > 1 else ""
        permission = next((name for name in _ACTIONS[kind] if name.lower() == verb), "")
    elif kind == "secrets":
        permission = {"PUT": "set", "PATCH": "set", "DELETE": "delete"}.get(method, "")
    else:
        permission = {"PUT": "import", "PATCH": "update", "DELETE": "delete"}.get(method, "")
    if not permission:
        raise answers.arm(405, "MethodNotAllowed", f"{method} is not for '/{'/'.join([kind, *parts])}'.")
    return permission


class Rights:
    """Authentication and authorization for every vault."""

    def __init__(self, state: State, entra: Entra) -> None:
        self._state = state
        self._entra = entra

    def caller(self, request: Request) -> Principal:
        """Return the principal of the request's token. Refuses with 401 and a challenge."""
        _, _, token = request.headers.get("authorization", "").partition(" ")
        claims = self._entra.verify(token, AUDIENCE) if token else "token"
        principal = None if isinstance(claims, str) else self._entra.principal_of(claims)
        if principal is not None:
            return principal
        challenge = (
            f'Bearer authorization="https://{LOGIN_HOST}/{self._state.settings.tenant_id}", resource="{AUDIENCE}"'
        )
        message = _TOKEN_MESSAGES.get(claims, _UNKNOWN_PRINCIPAL) if isinstance(claims, str) else _UNKNOWN_PRINCIPAL
        raise answers.arm(401, "Unauthorized", message, {"WWW-Authenticate": challenge})

    def require(self, vault: Json, caller: Principal, right: str, name: str) -> None:
        """Refuse with 403 unless `caller` has a right on the vault, or by role on the object called `name`.

        `right` is a kind and a permission: `secrets/get`, `keys/sign`.
        """
        kind, permission = right.split("/")
        if vault["properties"]["enableRbacAuthorization"]:
            action = f"{_PREFIX}/{kind}/{_ACTIONS[kind][permission]}"
            self._require_role(vault, caller, action, f"{vault['id']}/{kind}/{name}" if name else vault["id"])
        else:
            self._require_policy(vault, caller, kind, permission)

    def _require_policy(self, vault: Json, caller: Principal, kind: str, permission: str) -> None:
        holders = memberships.holders(self._state, caller.object_id)
        for policy in vault["properties"]["accessPolicies"]:
            permissions = {name.lower() for name in policy["permissions"].get(kind) or ()}
            # "all" means all but purge: that one has to be given by name.
            is_granted = permission.lower() in permissions or ("all" in permissions and permission != "purge")
            if policy["objectId"] in holders and is_granted:
                return
        message = (
            f"The user, group or application '{self._label(caller)}' does not have {kind} {permission} permission on "
            f"key vault '{vault['name']};location={vault['location']}'. For help resolving this issue, please see "
            "https://go.microsoft.com/fwlink/?linkid=2125287"
        )
        raise answers.arm(403, "Forbidden", message, innererror={"code": "AccessDenied"})

    def _require_role(self, vault: Json, caller: Principal, action: str, scope: str) -> None:
        if roles.is_allowed(self._state, caller, action, scope, on_data=True):
            return
        message = (
            "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role "
            f"definitions were changed recently, please observe propagation time.\r\nCaller: {self._label(caller)}\r\n"
            f"Action: '{action}'\r\nResource: '{scope.lower()}'\r\n"
            "Assignment: (not found)\r\nDenyAssignmentId: null\r\n"
            f"DecisionReason: 'DeniedWithNoValidRBAC' \r\nVault: {vault['name']};location={vault['location']}\r\n"
        )
        raise answers.arm(403, "Forbidden", message, innererror={"code": "ForbiddenByRbac"})

    def _label(self, caller: Principal) -> str:
        tenant = self._state.settings.tenant_id
        return f"appid={caller.client_id};oid={caller.object_id};iss=https://sts.windows.net/{tenant}/"


_UNKNOWN_PRINCIPAL = "AKV10032: The token's principal is not in this tenant."
_TOKEN_MESSAGES = {
    "token": "AKV10000: Request is missing a Bearer or PoP token.",
    "audience": f"AKV10022: Invalid audience. Expected {AUDIENCE}.",
    "signature": "AKV10046: Unable to resolve the key used for signature validation.",
    "time": "Error validating token: IDX10223. The token is not within its lifetime.",
}
