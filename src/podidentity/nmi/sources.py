"""Tokens from IMDS, and the wrappers that keep us within its limits. Constructed and stacked by `daemon`.

IMDS answers at most 20 token requests a second and 5 at once for a machine (learn.microsoft.com/entra/identity/
managed-identities-azure-resources/how-to-use-vm-token, managed-identities-faq); it asks clients to try again on 404,
410, 429 and 5xx, a 410 lasting up to 70 s.
"""

import asyncio
import json
import re
import ssl
from collections.abc import Mapping
from typing import Any

import httpx2

from podidentity.core.imds import Token
from podidentity.core.sources import ManagedIdentity, Source
from podidentity.errors import AzureError, ConfigurationError
from podidentity.nmi.observe import Metrics, now, source_kind
from podidentity.nmi.ports import Clock, Grant, Tokens
from podidentity.nmi.turns import Turns

API_VERSION = "2018-02-01"
_TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105  # a path
_ANSWER_SECONDS = 15.0
_ANSWER_LIMIT_BYTES = 256 * 1024
_TOLD_CHARACTERS = 400
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)  # no "nan", which no pause ends

_GONE, _THROTTLED, _SERVER_ERROR = 410, 429, 500
_GONE_SECONDS = 70.0  # IMDS is being updated: that long, says its documentation
_PAUSES_SECONDS = (0.2, 0.6, 1.8)  # for no answer and 5xx
_THROTTLED_TIMES = 5
_LONGEST_PAUSE_SECONDS = 30.0


class Imds:
    """Tokens of managed identities, one GET each. `base` is `http://address:port`."""

    def __init__(self, http: httpx2.AsyncClient, base: str, clock: Clock) -> None:
        self._http = http
        self._url = base + _TOKEN_PATH
        self._clock = clock

    async def acquire(self, source: Source, resource: str) -> Token:
        """Ask IMDS. Raises `AzureError` with IMDS's own words."""
        if not isinstance(source, ManagedIdentity):
            raise ConfigurationError("only managed identities are asked for at IMDS")
        chosen = {"msi_res_id": source.resource_id, "client_id": source.client_id, "object_id": source.object_id}
        query = {"api-version": API_VERSION, "resource": resource} | {k: v for k, v in chosen.items() if v}
        try:
            async with (
                asyncio.timeout(_ANSWER_SECONDS),
                self._http.stream("GET", self._url, params=query, headers={"Metadata": "true"}) as answer,
            ):
                body = await read_up_to(_ANSWER_LIMIT_BYTES, answer)
        except httpx2.InvalidURL as error:
            raise ConfigurationError(f"IMDS cannot be asked for this identity ({error}); correct its IDs") from None
        except (httpx2.HTTPError, TimeoutError) as error:
            told = "no answer in time" if isinstance(error, TimeoutError | httpx2.TimeoutException) else str(error)
            raise AzureError(f"IMDS does not answer ({told}); is it reachable from this node?") from None
        if answer.status_code != httpx2.codes.OK:
            raise _refused(answer, body or b"")
        return _token(_read(body or b""), resource, self._clock.wall())


class Limited:
    """At most `per_second` calls a second and `at_once` at a time.

    Those who wait take turns by source: a pod that asks for everything holds up nobody else's identity. After a 429
    nobody asks before the time it names: IMDS counts the calls of the whole machine.
    """

    def __init__(self, source: Tokens, clock: Clock, *, per_second: float, at_once: int) -> None:
        self._source = source
        self._turns = Turns(clock, per_second=per_second, at_once=at_once)

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Ask when it is our turn."""
        try:
            async with self._turns.of(source):
                return await self._source.acquire(source, resource)
        except AzureError as error:
            if error.status == _THROTTLED:
                self._turns.pause(min(error.retry_after_seconds or 0.0, _LONGEST_PAUSE_SECONDS))
            raise


class Retrying:
    """Tries again what may succeed in a moment: no answer, 410, 429, 5xx. Obeys Retry-After."""

    def __init__(self, source: Tokens, clock: Clock) -> None:
        self._source = source
        self._clock = clock

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Ask until there is an answer or no hope."""
        started = self._clock.steady()
        attempt = 0
        while True:
            try:
                return await self._source.acquire(source, resource)
            except AzureError as error:
                pause = _pause(error, attempt, self._clock.steady() - started)
                if pause is None:
                    raise
            attempt += 1
            await self._clock.sleep(pause)


class Measured:
    """Counts calls and how long they take."""

    def __init__(self, source: Tokens, metrics: Metrics) -> None:
        self._source = source
        self._metrics = metrics

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Ask, and note how it went."""
        kind = source_kind(source)
        started = now()
        try:
            return await self._source.acquire(source, resource)
        except AzureError:
            self._metrics.source_errors.labels(kind).inc()
            raise
        finally:
            self._metrics.source_seconds.labels(kind).observe(now() - started)


def open_imds_client(user_agent: str) -> httpx2.AsyncClient:
    """Open the HTTP client for IMDS: no proxy, no redirects, few connections, and no TLS.

    Without a context of our own the machine's certificate authorities would be loaded, 5 MiB that nobody uses.
    """
    trusts_nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = httpx2.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30)
    return httpx2.AsyncClient(
        headers={"User-Agent": user_agent},
        limits=limits,
        trust_env=False,
        timeout=_ANSWER_SECONDS,
        verify=trusts_nobody,
    )


def _pause(error: AzureError, attempt: int, since_seconds: float) -> float | None:
    """Say how long to wait before trying again; None when it is no use, or no client would wait for it."""
    wished = error.retry_after_seconds
    if wished is not None and wished > _LONGEST_PAUSE_SECONDS:
        return None
    if error.status == _GONE and since_seconds < _GONE_SECONDS:
        return wished or min(1.0 + attempt, 10.0)
    if error.status == _THROTTLED and attempt < _THROTTLED_TIMES:
        return wished or 1.0 * 2**attempt
    passing = error.status == 0 or error.status >= _SERVER_ERROR
    if passing and attempt < len(_PAUSES_SECONDS):
        return wished or _PAUSES_SECONDS[attempt]
    return None


async def read_up_to(limit_bytes: int, answer: httpx2.Response) -> bytes | None:
    """Read the body of an answer that is open; None when it is longer than that, of which no more is kept."""
    body = bytearray()
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > limit_bytes:
            return None
    return bytes(body)


def _refused(answer: httpx2.Response, body: bytes) -> AzureError:
    found = _read(body)
    told = found.get("error_description") or found.get("error") or body.decode(errors="replace")
    wished = answer.headers.get("Retry-After", "")
    return AzureError(
        str(told or answer.reason_phrase)[:_TOLD_CHARACTERS],
        status=answer.status_code,
        code=str(found.get("error", ""))[:_TOLD_CHARACTERS],
        retry_after_seconds=float(wished) if _SECONDS.fullmatch(wished) else None,
    )


def _read(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _token(body: Mapping[str, Any], resource: str, wall: float) -> Token:
    """Read IMDS's answer: numbers come as texts. `expires_in` serves when `expires_on` is none."""
    try:
        access_token = str(body["access_token"])
        expires_on = int(body.get("expires_on") or wall + int(body["expires_in"]))
        not_before = int(body.get("not_before") or wall)
    except (KeyError, ValueError, TypeError):
        raise AzureError(
            "IMDS answered 200 with something that is no token; is something else answering there?"
        ) from None
    if not access_token:
        raise AzureError("IMDS answered with an empty token")
    return Token(access_token, expires_on, not_before, str(body.get("resource") or resource))
