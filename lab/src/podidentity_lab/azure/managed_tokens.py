"""Tokens of managed identities, as a metadata service answers them: what `imds` and `local_identity` have in common."""

import asyncio
from collections.abc import Callable

from starlette.requests import Request

from podidentity_lab.azure import answers, audiences
from podidentity_lab.azure.entra import MANAGED_LIFETIME_SECONDS, Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import Json, Principal, State

_FAULTS = {
    404: ("Identity is being updated", "not_found"),
    410: ("The metadata service is being updated; try again within 70 seconds", "gone"),
    429: ("Too many requests", "too_many_requests"),
}
_OTHER_FAULT = ("Failed to retrieve token from the Active directory. For details see logs", "unknown")


class ManagedTokens:
    """The faults and the answers of one endpoint."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._state = state
        self._entra = entra
        self._faults = faults
        self._clock = clock
        self._failing = 0.0

    def fail_on_request(self) -> None:
        """Raise the refusal that `Faults.imds_statuses` or `Faults.imds_fails` has for the next request, if any."""
        if self._faults.imds_statuses:
            status = self._faults.imds_statuses.pop(0)
            raise answers.imds(status, *_FAULTS.get(status, _OTHER_FAULT), self._faults.headers())
        self._failing = self._failing + self._faults.imds_fails if self._faults.imds_fails else 0.0
        if self._failing >= 1:  # the share of requests is answered so evenly
            self._failing -= 1
            raise answers.imds(500, *_OTHER_FAULT, self._faults.headers())

    async def wait(self) -> None:
        """Take as long as `Faults.imds_seconds` says."""
        await asyncio.sleep(self._faults.imds_seconds)

    def answer(self, request: Request, principal: Principal) -> Json:
        """Return IMDS's answer with a token of `principal` for the `resource` in the query. Raises `Refusal`."""
        resource = request.query_params.get("resource", "")
        if not audiences.is_known(self._state, resource):
            message = f"AADSTS500011: {audiences.unknown_message(principal, resource)}"
            raise answers.imds(400, message, "invalid_resource")
        now = int(self._clock())
        life = self._faults.imds_token_seconds or MANAGED_LIFETIME_SECONDS
        request.state.client_id = principal.client_id
        return {
            "access_token": self._entra.issue(principal, resource, life),
            "client_id": principal.client_id,
            "expires_in": str(life),
            "expires_on": str(now + life),
            "ext_expires_in": str(life),
            "not_before": str(now),
            "resource": resource,
            "token_type": "Bearer",
        }
