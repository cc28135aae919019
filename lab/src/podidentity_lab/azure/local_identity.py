"""Managed identities for processes of the host: the endpoint that `podidentity lab run --identity` points clients at.

Two dialects, by path; each is one that Azure's SDKs choose by environment variables alone:

- /msi/token as App Service answers it: the secret is in the header X-IDENTITY-HEADER
  (learn.microsoft.com/azure/app-service/overview-managed-identity);
- /metadata/identity/oauth2/token as Azure Arc's agent answers it: a first request learns from the realm of a 401 which
  file to read, and the next one carries the file's content (learn.microsoft.com/azure/azure-arc/servers).

A secret is made for each identity when somebody asks for one on the lab's control socket.
"""

import json
import secrets
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.managed_tokens import ManagedTokens
from podidentity_lab.azure.state import Json, Principal, State

APP_SERVICE_PATH = "/msi/token"
ARC_PATH = "/metadata/identity/oauth2/token"
KEY_FILE = "/var/opt/azcmagent/tokens/podidentity-lab.key"
"""Clients refuse a realm outside this directory and without this ending."""

_FIELDS = {
    "client_id": "client_id",
    "clientid": "client_id",
    "object_id": "object_id",
    "principal_id": "object_id",
    "mi_res_id": "resource_id",
    "msi_res_id": "resource_id",
}
"""The parameters that name an identity, and what they name it by."""

_OTHER_IDENTITY = "No User Assigned or Delegated Managed Identity found for specified ClientId/ResourceId/PrincipalId."
_APP_SERVICE_FIELDS = ("access_token", "client_id", "expires_on", "resource", "token_type")


class LocalIdentities:
    """The endpoint, and the secrets by which it knows who asks."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._state = state
        self._tokens = ManagedTokens(state, entra, faults, clock)
        self._resource_ids: dict[str, str] = {}

    def admit(self, text: str) -> Json:
        """Return the identity that a name, client ID or ARM ID means, with its secret. Raises `LookupError`."""
        principal = self._find(text)
        secret = next((key for key, value in self._resource_ids.items() if value == principal.resource_id), "")
        if not secret:
            secret = secrets.token_urlsafe(32)
            self._resource_ids[secret] = principal.resource_id
        return {
            "secret": secret,
            "name": principal.name,
            "client_id": principal.client_id,
            "principal_id": principal.object_id,
            "resource_id": principal.resource_id,
        }

    def _find(self, text: str) -> Principal:
        managed = [principal for principal in self._state.principals.values() if _is_user_assigned(principal)]
        matches = [
            principal
            for principal in managed
            if text.lower() in (principal.name.lower(), principal.client_id.lower(), principal.resource_id.lower())
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(principal.resource_id for principal in matches)
            raise LookupError(f"identity {text!r}: several have this name; give one of {names}")
        names = ", ".join(sorted(principal.name for principal in managed))
        alternatives = f"there are {names}" if names else "there is none yet"
        raise LookupError(f"identity {text!r}: {alternatives}; make it with `az identity create` or `lab up --seed`")

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        path = request.url.path.rstrip("/").lower()
        if path == APP_SERVICE_PATH:
            return await self._app_service(request)
        if path == ARC_PATH:
            return await self._arc(request)
        raise answers.imds(404, "Not found", "not_found")

    async def _app_service(self, request: Request) -> Response:
        principal = self._principal_of(request.headers.get("x-identity-header", ""))
        if principal is None:
            return _app_service_refusal(401, "The header X-IDENTITY-HEADER is missing or is no secret of this lab.")
        try:
            answer = await self._token(request, principal)
        except answers.Refusal as refusal:
            return _app_service_form(refusal)
        return JSONResponse({name: answer[name] for name in _APP_SERVICE_FIELDS})

    async def _arc(self, request: Request) -> Response:
        if request.headers.get("metadata", "").lower() != "true":
            raise answers.imds(400, "Required metadata header not specified")
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        principal = self._principal_of(secret) if scheme.lower() == "basic" else None
        if principal is None:
            refusal = answers.imds(
                401, "Read the file that WWW-Authenticate names and send its content", "unauthorized"
            )
            refusal.response.headers["WWW-Authenticate"] = f"Basic realm={KEY_FILE}"
            return refusal.response
        answer = await self._token(request, principal)
        # Clients of late 2026 want to read which identity they named.
        selectors = {name: value for name, value in request.query_params.items() if name in _FIELDS}
        return JSONResponse({**answer, **selectors})

    async def _token(self, request: Request, principal: Principal) -> Json:
        request.state.resource = request.query_params.get("resource", "")
        request.state.client_id = principal.client_id
        self._tokens.fail_on_request()
        await self._tokens.wait()
        if not request.state.resource:
            raise answers.imds(400, "Required query variable 'resource' is missing")
        for name, value in request.query_params.items():
            field = _FIELDS.get(name.lower())
            if field and getattr(principal, field).lower() != value.lower():
                raise answers.imds(400, _OTHER_IDENTITY)
        return self._tokens.answer(request, principal)

    def _principal_of(self, secret: str) -> Principal | None:
        return self._state.identity_principal(self._resource_ids.get(secret, ""))


def _is_user_assigned(principal: Principal) -> bool:
    return "/userassignedidentities/" in principal.resource_id.lower()


def _app_service_form(refusal: answers.Refusal) -> Response:
    """Return a refusal of `answers.imds` in App Service's own form."""
    response = refusal.response
    message = json.loads(bytes(response.body))["error_description"]
    return _app_service_refusal(response.status_code, message, response.headers.get("retry-after"))


def _app_service_refusal(status: int, message: str, retry_after: str | None = None) -> JSONResponse:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return JSONResponse({"statusCode": status, "message": message}, status, headers)
