"""Exchanges the broker's own service account token for a token of an identity, at Entra ID.

One POST of the client credentials flow with a federated credential (learn.microsoft.com/entra/workload-id/
workload-identity-federation). The kubelet renews the file with the assertion; it is read for each call. A proxy and
further certificate authorities come from the environment (HTTPS_PROXY, SSL_CERT_FILE).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from podidentity.core.model.federation import exchange_form
from podidentity.core.tokens.imds import Token
from podidentity.core.tokens.sources import FederatedIdentity, Source
from podidentity.errors import AzureError, ConfigurationError
from podidentity.http import json_object, read_body, retry_after_seconds
from podidentity.timing import Clock

TIMEOUT = httpx2.Timeout(10.0, connect=3.0)
_ANSWER_LIMIT_BYTES = 256 * 1024
_WORDS_CHARACTERS = 600  # Entra ID's own sentences have up to 500
_SILENCE_PAUSE_SECONDS = 1.0
"""So long nobody asks again, and callers are told to wait: when they come back they must not meet the same failure."""
_TRACE_HEADER = "x-ms-request-id"


class Exchange:
    """Entra ID of one cloud; `authority` is `https://HOST`, `token_file` has the broker's own token."""

    def __init__(self, client: httpx2.AsyncClient, authority: str, token_file: Path, clock: Clock) -> None:
        self._client = client
        self._authority = authority
        self._token_file = token_file
        self._clock = clock

    async def acquire(self, source: Source, resource: str) -> Token:
        """Return a token of `source` for the scope `resource`.

        Raises `AzureError` with Entra ID's words, `ConfigurationError` when the broker's own token cannot be read.
        """
        if not isinstance(source, FederatedIdentity):
            raise TypeError(f"{source!r} is not exchanged")
        form = exchange_form(source.client_id, resource, self._assertion())
        if source.claims:
            form["claims"] = source.claims
        url = f"{self._authority}/{source.tenant_id}/oauth2/v2.0/token"
        try:
            async with self._client.stream("POST", url, data=form) as response:
                body = await read_body(response, _ANSWER_LIMIT_BYTES)
        except httpx2.HTTPError as error:
            words = str(error) or type(error).__name__
            message = f"{self._authority} does not answer ({words}); check that the broker's pods reach it"
            raise AzureError(message, retry_after_seconds=_SILENCE_PAUSE_SECONDS) from error
        document = json_object(body or b"")
        if not response.is_success or not isinstance(document.get("access_token"), str):
            raise self._refusal(response, document)
        return self._token(resource, document, _trace_id(response, document))

    def _assertion(self) -> str:
        try:
            text = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self._token_file}: the broker's own token cannot be read ({error}); "
                "project a service account token with audience api://AzureADTokenExchange there"
            ) from error
        if not text:
            raise ConfigurationError(f"{self._token_file}: the broker's own token is empty; check its volume")
        return text

    def _token(self, scope: str, document: Mapping[str, Any], trace_id: str) -> Token:
        try:
            seconds = int(document["expires_in"])
        except (KeyError, ValueError, TypeError):
            raise AzureError(f"{self._authority} answered with a token without expires_in; check its address") from None
        now = int(self._clock.wall())
        return Token(document["access_token"], now + seconds, now, scope, trace_id)

    def _refusal(self, response: httpx2.Response, document: Mapping[str, Any]) -> AzureError:
        code = document.get("error")
        words = document.get("error_description") or code
        if not isinstance(words, str) or not words:  # a firewall's or gateway's answer: JSON, but not Entra ID's
            return AzureError(
                f"{self._authority} answered {response.status_code} with something that is no token; check its address",
                status=response.status_code,
                retry_after_seconds=retry_after_seconds(response),
            )
        return AzureError(
            " ".join(words[:_WORDS_CHARACTERS].split()),
            status=response.status_code,
            code=code[:_WORDS_CHARACTERS] if isinstance(code, str) else "",
            retry_after_seconds=retry_after_seconds(response),
        )


def _trace_id(response: httpx2.Response, document: Mapping[str, Any]) -> str:
    text = str(response.headers.get(_TRACE_HEADER) or document.get("trace_id") or "")
    return text if text.isascii() and text.replace("-", "").isalnum() and len(text) <= len("-" * 36) else ""
