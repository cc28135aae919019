"""Tokens for ARM: of a service principal from Entra ID, or of the machine's managed identity from IMDS.

One token is kept and renewed while it still lasts; called by `compute` before each request.
"""

import time
from collections.abc import Callable
from typing import Any

import httpx2

from podidentity.azure.cloud_config import CloudConfig
from podidentity.errors import AzureError

RENEW_SECONDS = 300.0
"""A token is replaced when it has less than this left: a PATCH must not outlive it."""
_IMDS = "http://169.254.169.254/metadata/identity/oauth2/token"


class ArmCredential:
    """Whoever MIC is, as azure.json says."""

    def __init__(
        self, config: CloudConfig, http: httpx2.AsyncClient, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._http = http
        self._wall_clock = wall_clock
        self._token = ""
        self._expires_at = 0.0

    async def token(self) -> str:
        """Give a token that is good for a while. Raises AzureError, whose sentence says who refused and why."""
        now = self._wall_clock()
        if now > self._expires_at - RENEW_SECONDS:
            found = await (self._from_imds() if self._config.managed_identity else self._from_entra())
            try:
                self._token, lifetime = str(found["access_token"]), float(found["expires_in"])
            except (KeyError, TypeError, ValueError):
                raise AzureError("the answer to the request for an ARM token holds no token; is that Azure?") from None
            self._expires_at = now + lifetime
        return self._token

    def refused(self, token: str) -> None:
        """ARM did not take this token: the next one will be a new one."""
        if token == self._token:
            self._expires_at = 0.0

    async def _from_entra(self) -> dict[str, Any]:
        """Client credentials: learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow."""
        config = self._config
        form = {
            "grant_type": "client_credentials",
            "client_id": config.client_id,
            "client_secret": config.client_secret,
            "scope": f"{config.cloud.audience}/.default",
        }
        url = f"{config.cloud.login}/{config.tenant_id}/oauth2/v2.0/token"
        return await self._ask(self._http.build_request("POST", url, data=form), "Entra ID")

    async def _from_imds(self) -> dict[str, Any]:
        config = self._config
        query = {"api-version": "2018-02-01", "resource": config.cloud.audience}
        if config.user_assigned_client_id:
            query["client_id"] = config.user_assigned_client_id
        request = self._http.build_request("GET", _IMDS, params=query, headers={"Metadata": "true"})
        return await self._ask(request, "IMDS")

    async def _ask(self, request: httpx2.Request, who: str) -> dict[str, Any]:
        try:
            answer = await self._http.send(request)
            found: dict[str, Any] = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise AzureError(f"{who} gave no token for ARM: {error!r}") from error
        if answer.is_error:
            told = found.get("error_description", found.get("error", ""))
            raise AzureError(f"{who} refused a token for ARM: {told}; check azure.json", status=answer.status_code)
        return found
