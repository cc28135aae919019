"""Tokens for ARM: of a service principal from Entra ID, or of the machine's managed identity from IMDS.

One token is cached and renewed before it expires; concurrent callers share one request. A refusal is remembered for a
moment, so that a hundred targets do not repeat the same request a hundred times.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from podidentity.azure.certificates import Certificate
from podidentity.azure.cloud_config import CloudConfig
from podidentity.azure.entra import Application, Entra
from podidentity.azure.management import read_response
from podidentity.core.tokens.imds import TOKEN_PATH
from podidentity.errors import AzureError, ConfigurationError
from podidentity.http import access_token, json_object, retry_after_seconds

RENEW_SECONDS = 300.0
"""A token is renewed when it is valid for less than this: a PATCH must not outlive it."""
LAST_SECONDS = 30.0
"""While no new token is to be had, the old one is used until it is valid for less than this."""
REFUSAL_SECONDS = 5.0
"""How long a refusal is remembered when the answer has no Retry-After."""
IMDS_HOST = "169.254.169.254"
IMDS = f"http://{IMDS_HOST}"
_MESSAGE_CHARACTERS = 600
TokenAndLifetime = tuple[str, float]
"""A token, and for how many seconds it is valid."""


class ArmCredential:
    """Tokens for ARM as the identity that azure.json names. `imds` is the Instance Metadata Service's base URL."""

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
        """Take over a changed azure.json: the next token is a new one."""
        self._config = config
        self._token, self._expires_at, self._refusal = "", 0.0, None

    def note_refused(self, token: str) -> None:
        """Note that ARM did not accept `token`: the next one will be a new one."""
        if token == self._token:
            self._token, self._expires_at = "", 0.0

    async def token(self) -> str:
        """Return a token that is valid for `LAST_SECONDS` at least. Raises AzureError with the issuer's reason."""
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

    async def _fetch(self, config: CloudConfig) -> TokenAndLifetime:
        if config.managed_identity:
            return await self._from_imds(config)
        return await (self._with_secret(config) if config.client_secret else self._with_certificate(config))

    async def _with_secret(self, config: CloudConfig) -> TokenAndLifetime:
        """Ask Entra ID with the client secret.

        learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow
        """
        form = {
            "grant_type": "client_credentials",
            "client_id": config.client_id,
            "client_secret": config.client_secret,
            "scope": f"{config.cloud.audience}/.default",
        }
        url = f"{config.cloud.login}/{config.tenant_id}/oauth2/v2.0/token"
        return await self._ask(self._http.build_request("POST", url, data=form), "Entra ID")

    async def _with_certificate(self, config: CloudConfig) -> TokenAndLifetime:
        """Ask Entra ID with the certificate; its file is read each time, as certificates are renewed in place."""
        try:
            archive = await asyncio.to_thread(Path(config.certificate_path).read_bytes)
            certificate = Certificate(archive, config.certificate_password.encode())
            issuer = Application(config.cloud.login, config.tenant_id, config.client_id, certificate)
            token = await Entra().token(issuer, config.cloud.audience)
        except (OSError, ConfigurationError) as error:
            raise AzureError(
                f"the certificate {config.certificate_path} cannot be used: {_reason(error)}; "
                f"correct {config.certificate_origin}"
            ) from error
        return token.access_token, float(token.expires_in_seconds)

    async def _from_imds(self, config: CloudConfig) -> TokenAndLifetime:
        query = {"api-version": "2018-02-01", "resource": config.cloud.audience}
        identity = config.user_assigned_identity
        if identity:
            query["msi_res_id" if identity.startswith("/") else "client_id"] = identity
        url = self._imds + TOKEN_PATH
        request = self._http.build_request("GET", url, params=query, headers={"Metadata": "true"})
        return await self._ask(request, "IMDS")

    async def _ask(self, request: httpx2.Request, issuer: str) -> TokenAndLifetime:
        try:
            answer = await read_response(self._http, request)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise AzureError(
                f"{issuer} gave no token for ARM: {error!r}; check the network and {self._config.origin}"
            ) from error
        body = json_object(answer.content)
        if not answer.is_success:
            words = body.get("error_description") or body.get("error") or answer.reason_phrase
            message = " ".join(str(words)[:_MESSAGE_CHARACTERS].split())
            raise AzureError(
                f"{issuer} refused a token for ARM: {message}; check {self._config.origin}",
                status=answer.status_code,
                code=str(body.get("error", ""))[:_MESSAGE_CHARACTERS],
                retry_after_seconds=retry_after_seconds(answer),
            )
        try:
            return access_token(body), float(int(body["expires_in"]))
        except (KeyError, TypeError, ValueError):
            raise AzureError(f"{issuer} answered without a token for ARM; check the endpoints of the cloud") from None


def _reason(error: OSError | ConfigurationError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
