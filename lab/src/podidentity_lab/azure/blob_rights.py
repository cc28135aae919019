"""Who asks for blobs, and whether they may. Only bearer tokens count: the lab's accounts have no keys.

Containers need actions of a role, blobs data actions: learn.microsoft.com/rest/api/storageservices/
authorize-with-azure-active-directory#permissions-for-blob-service-operations.
"""

from starlette.requests import Request

from podidentity_lab.azure import answers, roles
from podidentity_lab.azure.entra import HOST as LOGIN_HOST
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.state import Json, Principal, State

AUDIENCE = "https://storage.azure.com"
SUFFIX = ".blob.core.windows.net"
_CONTAINERS = "Microsoft.Storage/storageAccounts/blobServices/containers"
_SHARED_KEY = ("sharedkey", "sharedkeylite")


class Rights:
    """Authentication and authorization for every account."""

    def __init__(self, state: State, entra: Entra) -> None:
        self._state = state
        self._entra = entra

    def caller(self, request: Request, account: Json) -> Principal:
        """Return the principal of the request's token. Refuses keys with 403, and all else with 401 and a challenge."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() in _SHARED_KEY or "sig" in request.query_params:
            message = (
                "Key based authentication is not permitted on this storage account: the lab has no account keys and no "
                "shared access signatures; use a token of Entra ID."
            )
            raise answers.storage(403, "KeyBasedAuthenticationNotPermitted", message)
        audiences = (AUDIENCE, f"https://{account['name']}{SUFFIX}")
        claims = self._entra.verify(token, *audiences) if token else "none"
        principal = None if isinstance(claims, str) else self._entra.principal_of(claims)
        if principal is not None:
            return principal
        tenant = self._state.settings.tenant_id
        challenge = f"Bearer authorization_uri=https://{LOGIN_HOST}/{tenant}/oauth2/authorize resource_id={AUDIENCE}"
        code = "NoAuthenticationInformation" if not token else "InvalidAuthenticationInfo"
        message = _TOKEN_MESSAGES.get(claims, _UNKNOWN) if isinstance(claims, str) else _UNKNOWN
        raise answers.storage(401, code, message, {"WWW-Authenticate": challenge})

    def require(self, account: Json, caller: Principal, right: str, container: str) -> None:
        """Refuse with 403 unless a role of `caller` allows `right` on the container, or on the account without one.

        `right` is a verb for containers (`containers/read`) or for what is in one (`blobs/write`).
        """
        kind, verb = right.split("/")
        scope = f"{account['id']}/blobServices/default/containers/{container}" if container else account["id"]
        action = f"{_CONTAINERS}/blobs/{verb}" if kind == "blobs" else f"{_CONTAINERS}/{verb}"
        if not roles.is_allowed(self._state, caller, action, scope, on_data=kind == "blobs"):
            message = (
                "This request is not authorized to perform this operation using this permission: "
                f"{caller.name or caller.object_id} has no role with {action} on {scope}."
            )
            raise answers.storage(403, "AuthorizationPermissionMismatch", message)


def right_of(method: str, query: dict[str, str], blob: str) -> str:
    """Return the right that a request needs, as `Rights.require` takes it; `blob` is "" for a container."""
    is_read = method in {"GET", "HEAD"}
    if blob:
        return "blobs/read" if is_read else "blobs/delete" if method == "DELETE" else "blobs/write"
    if query.get("comp") == "list" and "restype" in query:
        return "blobs/read"
    return "containers/read" if is_read else "containers/delete" if method == "DELETE" else "containers/write"


_UNKNOWN = "Server failed to authenticate the request: the token's principal is not in this tenant."
_TOKEN_MESSAGES = {
    "none": "Server failed to authenticate the request; the header WWW-Authenticate says for what to get a token.",
    "audience": f"Audience validation failed. The token must be for {AUDIENCE}.",
    "signature": "Signature validation failed.",
    "time": "Lifetime validation failed. The token is expired or not yet valid.",
}
