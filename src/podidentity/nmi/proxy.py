"""Passes the few harmless metadata requests on to IMDS: a target rebuilt from constants, no header of the client's.

Nothing below /metadata/identity is ever passed on. Called by `app` with what `core.imds` allowed.
"""

import asyncio

import httpx2

from podidentity.core.imds import Forward, Refusal
from podidentity.nmi.answers import Answer, refuse

_TIME_LIMIT_SECONDS = 10.0
_BODY_LIMIT_BYTES = 1024 * 1024  # instance documents have some kilobytes
_AT_ONCE = 8
_QUEUE = 64


class Proxy:
    """Forwards to `base` (`http://address:port`), a few requests at a time."""

    def __init__(self, http: httpx2.AsyncClient, base: str) -> None:
        self._http = http
        self._base = base
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._queued = 0

    async def forward(self, request: Forward) -> Answer:
        """Fetch and return IMDS's answer: its status, its type, its body and nothing else of it."""
        if self._queued >= _QUEUE:
            return refuse(Refusal(503, "too many metadata requests at once; ask again in a moment"))
        self._queued += 1
        try:
            async with self._slots, asyncio.timeout(_TIME_LIMIT_SECONDS):
                return await self._fetch(request)
        except (httpx2.HTTPError, TimeoutError):
            return refuse(Refusal(503, "IMDS does not answer; ask again in a moment"))
        finally:
            self._queued -= 1

    async def _fetch(self, request: Forward) -> Answer:
        async with self._http.stream("GET", self._base + request.target, headers={"Metadata": "true"}) as answer:
            body = bytearray()
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _BODY_LIMIT_BYTES:
                    return refuse(Refusal(503, "IMDS's answer is too large to be passed on"))
            head = (
                f"HTTP/1.1 {answer.status_code} {_plain(answer.reason_phrase)}\r\n"
                f"Content-Type: {_plain(answer.headers.get('Content-Type', 'application/json'))}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            return Answer(answer.status_code, head.encode("ascii") + bytes(body))


def _plain(text: str) -> str:
    """Keep what cannot break out of a header line."""
    return "".join(character for character in text if " " <= character <= "~")[:200]
