"""Passes the few harmless metadata requests on to IMDS: a target rebuilt from constants, no header of the client's.

Nothing below /metadata/identity is ever passed on.
"""

import asyncio

import httpx2

from podidentity.core.tokens.imds import Forward, Refusal
from podidentity.http import read_body
from podidentity.issuance.fairness import FairLimiter, FairQuota
from podidentity.nmi.answers import Answer, refuse
from podidentity.timing import Clock

_TIME_LIMIT_SECONDS = 10.0
_BODY_LIMIT_BYTES = 1024 * 1024  # instance documents have some kilobytes
_AT_ONCE = 8
_QUEUE = 128
_QUEUE_OF_A_POD = 8  # clients ask for one document at a time
_PER_SECOND = 20.0
"""IMDS refuses a machine that asks too often, the node's own programs too; tokens have a limit of their own."""


class Proxy:
    """Forwards to `base` (`http://address:port`), a few requests at a time, the pods in turn."""

    def __init__(self, http: httpx2.AsyncClient, base: str, clock: Clock) -> None:
        self._http = http
        self._base = base
        self._limiter = FairLimiter(clock, per_second=_PER_SECOND, at_once=_AT_ONCE)
        self._quota = FairQuota(_QUEUE, _QUEUE_OF_A_POD)

    async def forward(self, request: Forward, address: str) -> Answer:
        """Return IMDS's response: its status, its type, its body and nothing else of it."""
        if self._quota.is_full(address):
            return refuse(Refusal(503, "too many metadata requests at once; ask again in a moment"))
        self._quota.take(address)
        try:
            async with self._limiter.turn(address), asyncio.timeout(_TIME_LIMIT_SECONDS):
                return await self._fetch(request)
        except (httpx2.HTTPError, TimeoutError):
            return refuse(Refusal(503, "IMDS does not answer; ask again in a moment"))
        finally:
            self._quota.give_back(address)

    async def _fetch(self, request: Forward) -> Answer:
        async with self._http.stream("GET", self._base + request.target, headers={"Metadata": "true"}) as response:
            body = await read_body(response, _BODY_LIMIT_BYTES)
            if body is None:
                return refuse(Refusal(503, "IMDS's answer is too large to be passed on"))
            head = (
                f"HTTP/1.1 {response.status_code} {_plain(response.reason_phrase)}\r\n"
                f"Content-Type: {_plain(response.headers.get('Content-Type', 'application/json'))}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            return Answer(response.status_code, head.encode("ascii") + body)


def _plain(text: str) -> str:
    """Return a text without the characters that could break out of a header line."""
    return "".join(character for character in text if " " <= character <= "~")[:200]
