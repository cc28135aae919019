"""Tokens for ARM: of a service principal from Entra ID, or of the machine's managed identity from IMDS.

One token is kept and renewed while it still lasts; however many ask at once, it is fetched once. A refusal is
remembered for a moment: a hundred targets do not ask a hundred times what was just answered. Used by `management`.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from podidentity.azure.cloud_config import CloudConfig
from podidentity.azure.entra import Application, Certificate, Entra
from podidentity.azure.management import retry_after, whole
from podidentity.errors import AzureError, ConfigurationError

RENEW_SECONDS = 300.0
"""A token is replaced when it has less than this left: a PATCH must not outlive it."""
LAST_SECONDS = 30.0
"""While a new one cannot be had, the old one serves until it has less than this left."""
REFUSAL_SECONDS = 5.0
"""How long a refusal counts when nobody says when to come back."""
IMDS_HOST = "169.254.169.254"
IMDS = f"http://{IMDS_HOST}"
_TOLD_CHARACTERS = 600
Found = tuple[str, float]


class ArmCredential:
    """Whoever MIC is, as azure.json says. `imds` is the address of the Instance Metadata Service."""

    def __init__(
        self,
        config: CloudConfig,
        http: httpx2.AsyncClient,
        wall_clock: Callable[[], float] = time.time,
        imds: str = IMDS,
    ) -> None:
        self._config = config
        self._http = http
        self._wall_clock = wall_clock
        self._imds = imds
        self._fetching = asyncio.Lock()
        self._token = ""
        self._expires_at = 0.0
        self._refusal: AzureError | None = None
        self._refused_until = 0.0

    def use(self, config: CloudConfig) -> None:
        """Be whoever azure.json says now."""
        self._config = config
        self._token, self._expires_at, self._refusal = "", 0.0, None

    def refused(self, token: str) -> None:
        """ARM did not take this token: the next one will be a new one."""
        if token == self._token:
            self._token, self._expires_at = "", 0.0

    async def token(self) -> str:
        """Give a token that is good for a while. Raises AzureError, whose sentence says who refused and why."""
        if self._left_seconds > RENEW_SECONDS:
            return self._token
        async with self._fetching:
            if self._left_seconds <= RENEW_SECONDS:
                await self._renew()
            return self._token

    @property
    def _left_seconds(self) -> float:
        return self._expires_at - self._wall_clock()

    async def _renew(self) -> None:
        config = self._config
        try:
            if self._refusal is not None and self._wall_clock() < self._refused_until:
                raise self._refusal
            token, lifetime_seconds = await self._fetch(config)
        except AzureError as error:
            if error is not self._refusal:
                self._refusal = error
                self._refused_until = self._wall_clock() + (error.retry_after_seconds or REFUSAL_SECONDS)
            if self._left_seconds <= LAST_SECONDS:
                raise
            return
        if config is self._config:  # azure.json may have changed meanwhile
            self._token, self._expires_at = token, self._wall_clock() + lifetime_seconds
        else:
            await self._renew()

    async def _fetch(self, config: CloudConfig) -> Found:
        if config.managed_identity:
            return await self._from_imds(config)
        return await (self._with_secret(config) if config.client_secret else self._with_certificate(config))

    async def _with_secret(self, config: CloudConfig) -> Found:
        """Client credentials: learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow."""
        form = {
            "grant_type": "client_credentials",
            "client_id": config.client_id,
            "client_secret": config.client_secret,
            "scope": f"{config.cloud.audience}/.default",
        }
        url = f"{config.cloud.login}/{config.tenant_id}/oauth2/v2.0/token"
        return await self._ask(self._http.build_request("POST", url, data=form), "Entra ID")

    async def _with_certificate(self, config: CloudConfig) -> Found:
        """The file is read each time: certificates are renewed in place."""
        try:
            archive = await asyncio.to_thread(Path(config.certificate_path).read_bytes)
            certificate = Certificate(archive, config.certificate_password.encode())
            who = Application(config.cloud.login, config.tenant_id, config.client_id, certificate)
            granted = await Entra().token(who, config.cloud.audience)
        except (OSError, ConfigurationError) as error:
            raise AzureError(
                f"the certificate {config.certificate_path} cannot be used: {error}; "
                "correct aadClientCertPath and aadClientCertPassword in azure.json"
            ) from error
        return granted.access_token, float(granted.expires_in_seconds)

    async def _from_imds(self, config: CloudConfig) -> Found:
        query = {"api-version": "2018-02-01", "resource": config.cloud.audience}
        own = config.user_assigned_identity
        if own:
            query["msi_res_id" if own.startswith("/") else "client_id"] = own
        url = f"{self._imds}/metadata/identity/oauth2/token"
        request = self._http.build_request("GET", url, params=query, headers={"Metadata": "true"})
        return await self._ask(request, "IMDS")

    async def _ask(self, request: httpx2.Request, who: str) -> Found:
        try:
            answer = await whole(self._http, request)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise AzureError(f"{who} gave no token for ARM: {error!r}; check the network and azure.json") from error
        found = _object(answer)
        if not answer.is_success:
            words = found.get("error_description") or found.get("error") or answer.reason_phrase
            told = " ".join(str(words)[:_TOLD_CHARACTERS].split())
            raise AzureError(
                f"{who} refused a token for ARM: {told}; check azure.json",
                status=answer.status_code,
                code=str(found.get("error", ""))[:_TOLD_CHARACTERS],
                retry_after_seconds=retry_after(answer),
            )
        try:
            return str(found["access_token"]), float(int(found["expires_in"]))
        except (KeyError, TypeError, ValueError):
            raise AzureError(f"{who} answered without a token for ARM; check the endpoints of the cloud") from None


def _object(answer: httpx2.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
