"""Federated credentials of identities (ARM) and applications (Graph): who may write them, what they may say, how often.

Rules and limits: learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations.
"""

import asyncio
import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, arm_resources, roles, throttling
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import FederatedCredential, Json, Principal, State

KIND = "federatedIdentityCredentials"
CREDENTIALS = 20
"""The most that one application or identity may have."""
CHARACTERS = 600
"""The most that issuer, subject and audience may have each."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{2,119}")
_EXPRESSION_VERSION = "2025-01-31-preview"


class Federation:
    """Credentials below user-assigned identities, in ARM."""

    def __init__(self, state: State, faults: Faults, buckets: throttling.Buckets, clock: Callable[[], float]) -> None:
        self._state = state
        self._faults = faults
        self._buckets = buckets
        self._clock = clock
        self._busy: set[str] = set()

    async def serve(self, request: Request, caller: Principal, path: str) -> Response:
        """Answer one request; `path` is an identity's with `KIND` and perhaps a name."""
        parts = path.split("/")
        owner = "/".join(parts[:9])
        action = {"GET": "read", "DELETE": "delete"}.get(request.method, "write")
        roles.require(self._state, caller, f"{arm_resources.IDENTITY_TYPE}/{KIND}/{action}", owner)
        identity = arm_resources.find(self._state.identities, owner)
        self._throttle(owner, action)
        name = parts[10] if len(parts) > 10 else ""
        if action == "read":
            return _read(identity, self._credentials(identity), name)
        if not name or request.method not in {"PUT", "DELETE"}:
            raise answers.arm(405, "MethodNotAllowed", "Federated credentials take GET, PUT and DELETE.")
        return await self._write(request, identity, name)

    async def _write(self, request: Request, identity: Json, name: str) -> Response:
        key = identity["id"].lower()
        if key in self._busy:
            message = f"Too many concurrent writes below the managed identity '{identity['name']}': write one by one."
            raise answers.arm(409, "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity", message)
        self._busy.add(key)
        try:
            credentials = self._credentials(identity)
            if request.method == "DELETE":
                await asyncio.sleep(self._faults.federation_write_seconds)
                return Response(status_code=200 if credentials.pop(name, None) else 204)
            new = name not in credentials
            body = (await request.json())["properties"]
            check_expression(body, request.query_params.get("api-version", ""))
            credential = parse(name, body, self._clock() + self._faults.federation_delay_seconds)
            await asyncio.sleep(self._faults.federation_write_seconds)
            add(credentials, credential)
        finally:
            self._busy.discard(key)
        return JSONResponse(_document(identity, credential), 201 if new else 200)

    def _credentials(self, identity: Json) -> dict[str, FederatedCredential]:
        return self._state.principals[identity["properties"]["principalId"]].federated

    def _throttle(self, owner: str, action: str) -> None:
        if not self._faults.throttle:
            return
        now = self._clock()
        if action == "read":
            self._buckets.take(owner, throttling.FEDERATED_READS, now)
            return
        self._buckets.take(owner, throttling.FEDERATED_WRITES, now)
        self._buckets.take("/".join(owner.split("/")[:3]), throttling.FEDERATED_WRITES_OF_ALL, now)


def check_expression(body: Json, version: str) -> None:
    """Refuse a claims matching expression: no issuer of a cluster may have one, and only the preview knows them."""
    if not body.get("claimsMatchingExpression"):
        return
    message = f"The api-version '{version}' does not know claimsMatchingExpression."
    if version == _EXPRESSION_VERSION:
        message = f"The issuer '{body.get('issuer')}' is not supported with claimsMatchingExpression."
    raise answers.arm(400, "BadRequest", message)


def parse(name: str, body: Json, effective_at: float) -> FederatedCredential:
    """Return the credential of a body. Refuses with 400 what Azure does not take."""
    audiences = list(body["audiences"])
    if not _NAME.fullmatch(name):
        message = (
            f"The name '{name}' must have 3 to 120 letters, digits, '-' and '_', and begin with a letter or digit."
        )
        raise answers.arm(400, "BadRequest", message)
    if len(audiences) != 1:
        raise answers.arm(400, "BadRequest", f"A federated credential has one audience, not {len(audiences)}.")
    for field, value in (("issuer", body["issuer"]), ("subject", body["subject"]), ("audience", audiences[0])):
        if not isinstance(value, str) or not 0 < len(value) <= CHARACTERS:
            raise answers.arm(400, "BadRequest", f"The {field} must be text of 1 to {CHARACTERS} characters.")
    if not body["issuer"].startswith("https://"):
        raise answers.arm(400, "BadRequest", f"The issuer '{body['issuer']}' must be an https URL.")
    return FederatedCredential(name, body["issuer"], body["subject"], audiences, effective_at)


def add(credentials: dict[str, FederatedCredential], credential: FederatedCredential) -> None:
    """Add or replace one. Refuses the 21st, and a second one for the same issuer and subject, with 400."""
    rest_of_credentials = [item for item in credentials.values() if item.name != credential.name]
    if len(rest_of_credentials) >= CREDENTIALS:
        message = f"Too many Federated Identity Credentials: at most {CREDENTIALS} can be on one identity."
        raise answers.arm(400, "BadRequest", message)
    if any((item.issuer, item.subject) == (credential.issuer, credential.subject) for item in rest_of_credentials):
        message = "Issuer and subject combination already exists for this Managed Identity."
        raise answers.arm(400, "BadRequest", message)
    credentials[credential.name] = credential


def _read(identity: Json, credentials: dict[str, FederatedCredential], name: str) -> Response:
    if not name:
        return JSONResponse({"value": [_document(identity, credential) for credential in credentials.values()]})
    if name not in credentials:
        message = f"The Resource '{arm_resources.IDENTITY_TYPE}/{identity['name']}/{KIND}/{name}' was not found."
        raise answers.arm(404, "ResourceNotFound", message)
    return JSONResponse(_document(identity, credentials[name]))


def _document(identity: Json, credential: FederatedCredential) -> Json:
    properties = {"issuer": credential.issuer, "subject": credential.subject, "audiences": credential.audiences}
    return {
        "id": f"{identity['id']}/{KIND}/{credential.name}",
        "name": credential.name,
        "type": f"{arm_resources.IDENTITY_TYPE}/{KIND}",
        "properties": properties,
    }
