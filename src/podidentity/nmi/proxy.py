"""Passes the few harmless metadata requests on to IMDS: a target rebuilt from constants, no header of the client's.

Nothing below /metadata/identity is ever passed on. Called by `app` with what `core.imds` allowed.
"""

import asyncio

import httpx2

from podidentity.core.imds import Forward, Refusal
from podidentity.nmi.answers import Answer, refuse
from podidentity.nmi.ports import Clock
from podidentity.nmi.sources import read_up_to
from podidentity.nmi.turns import Shares, Turns

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
        self._turns = Turns(clock, per_second=_PER_SECOND, at_once=_AT_ONCE)
        self._shares = Shares(_QUEUE, _QUEUE_OF_A_POD)

    async def forward(self, request: Forward, address: str) -> Answer:
        """Fetch and return IMDS's answer: its status, its type, its body and nothing else of it."""
        if self._shares.full(address):
            return refuse(Refusal(503, "too many metadata requests at once; ask again in a moment"))
        self._shares.take(address)
        try:
            async with self._turns.of(address), asyncio.timeout(_TIME_LIMIT_SECONDS):
                return await self._fetch(request)
        except (httpx2.HTTPError, TimeoutError):
            return refuse(Refusal(503, "IMDS does not answer; ask again in a moment"))
        finally:
            self._shares.give_back(address)

    async def _fetch(self, request: Forward) -> Answer:
        async with self._http.stream("GET", self._base + request.target, headers={"Metadata": "true"}) as answer:
            body = await read_up_to(_BODY_LIMIT_BYTES, answer)
            if body is None:
                return refuse(Refusal(503, "IMDS's answer is too large to be passed on"))
            head = (
                f"HTTP/1.1 {answer.status_code} {_plain(answer.reason_phrase)}\r\n"
                f"Content-Type: {_plain(answer.headers.get('Content-Type', 'application/json'))}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            return Answer(answer.status_code, head.encode("ascii") + body)


def _plain(text: str) -> str:
    """Keep what cannot break out of a header line."""
    return "".join(character for character in text if " " <= character <= "~")[:200]
