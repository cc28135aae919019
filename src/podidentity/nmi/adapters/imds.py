"""Tokens of managed identities from IMDS, one GET each."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

import httpx2

from podidentity.core.tokens.imds import TOKEN_PATH, Token
from podidentity.core.tokens.sources import ManagedIdentity, Source
from podidentity.errors import AzureError, ConfigurationError
from podidentity.http import access_token, json_object, read_body, retry_after_seconds
from podidentity.timing import Clock

API_VERSION = "2018-02-01"
_RESPONSE_SECONDS = 15.0
_RESPONSE_LIMIT_BYTES = 256 * 1024
_MESSAGE_CHARACTERS = 400


class Imds:
    """Tokens of managed identities, one GET each. `base` is `http://address:port`."""

    def __init__(self, http: httpx2.AsyncClient, base: str, clock: Clock) -> None:
        self._http = http
        self._url = base + TOKEN_PATH
        self._clock = clock

    async def acquire(self, source: Source, resource: str) -> Token:
        """Return the token that IMDS gives. Raises `AzureError` with IMDS's own words."""
        if not isinstance(source, ManagedIdentity):
            raise ConfigurationError("IMDS has tokens of managed identities alone; report this as a bug")
        ids = {"msi_res_id": source.resource_id, "client_id": source.client_id, "object_id": source.object_id}
        query = {"api-version": API_VERSION, "resource": resource} | {k: v for k, v in ids.items() if v}
        try:
            async with (
                asyncio.timeout(_RESPONSE_SECONDS),
                self._http.stream("GET", self._url, params=query, headers={"Metadata": "true"}) as response,
            ):
                body = await read_body(response, _RESPONSE_LIMIT_BYTES)
        except httpx2.InvalidURL as error:
            raise ConfigurationError(f"IMDS cannot be asked for this identity ({error}); correct its IDs") from None
        except (httpx2.HTTPError, TimeoutError) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError | httpx2.TimeoutException) else str(error)
            raise AzureError(f"IMDS does not answer ({reason}); check that it is reachable from this node") from None
        if response.status_code != httpx2.codes.OK:
            raise _error_of(response, body or b"")
        return _token(json_object(body or b""), resource, self._clock.wall())


def open_imds_client(user_agent: str) -> httpx2.AsyncClient:
    """Return an HTTP client for IMDS: no proxy, no redirects, few connections, and no TLS.

    The TLS context is an empty one: the default would load the machine's certificate authorities, 5 MiB of them.
    """
    empty_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = httpx2.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30)
    return httpx2.AsyncClient(
        headers={"User-Agent": user_agent},
        limits=limits,
        trust_env=False,
        timeout=_RESPONSE_SECONDS,
        verify=empty_context,
    )


def _error_of(response: httpx2.Response, body: bytes) -> AzureError:
    """Return an error with IMDS's own words."""
    content = json_object(body)
    message = content.get("error_description") or content.get("error") or body.decode(errors="replace")
    return AzureError(
        str(message or response.reason_phrase)[:_MESSAGE_CHARACTERS],
        status=response.status_code,
        code=str(content.get("error", ""))[:_MESSAGE_CHARACTERS],
        retry_after_seconds=retry_after_seconds(response),
    )


def _token(body: Mapping[str, Any], resource: str, wall: float) -> Token:
    """Return the token in IMDS's response: its numbers are texts. `expires_in` serves where `expires_on` is missing."""
    try:
        text = access_token(body)
        expires_on = int(body.get("expires_on") or wall + int(body["expires_in"]))
        not_before = int(body.get("not_before") or wall)
    except (KeyError, ValueError, TypeError):
        raise AzureError(
            "IMDS answered 200 with something that is no token; check that nothing else answers there"
        ) from None
    return Token(text, expires_on, not_before, str(body.get("resource") or resource))
