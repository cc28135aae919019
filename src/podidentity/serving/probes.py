"""Small pages for kubelets and Prometheus: `/healthz`, `/readyz`, `/metrics`.

Off the hot path: one request a connection.

Each daemon gives the pages of each port; how a page is made is the daemon's own business.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from podidentity.errors import HostError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HEAD_LIMIT_BYTES = 8 * 1024
_TIME_LIMIT_SECONDS = 5.0
_CONNECTION_LIMIT = 64
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Page(NamedTuple):
    """One answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]


@contextlib.asynccontextmanager
async def serve_pages(port: int, pages: Pages, address: str | None = None) -> AsyncIterator[int]:
    """Serve `pages` (path to what makes it) on all addresses, or `address`, while the body runs; yields the port.

    Raises `HostError` when the port is taken.
    """
    connections = asyncio.Semaphore(_CONNECTION_LIMIT)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connections.locked():  # whoever waited here would be bounded by nothing
            writer.transport.abort()
            return
        async with connections:
            try:
                async with asyncio.timeout(_TIME_LIMIT_SECONDS):
                    await _serve_one(reader, writer, pages)
                    writer.close()
                    await writer.wait_closed()
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                writer.transport.abort()  # closing would wait for a client that does not read

    try:
        server = await asyncio.start_server(connected, address, port, limit=_HEAD_LIMIT_BYTES)
    except OSError as error:
        raise HostError(f"Cannot listen on port {port}: {error.strerror}. Give this daemon another port.") from None
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: Pages) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        head = b""
    page = _page(head, pages)
    reason = _REASONS.get(page.status, "Unknown")
    writer.write(
        f"HTTP/1.1 {page.status} {reason}\r\nContent-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\nConnection: close\r\n\r\n".encode()
    )
    writer.write(b"" if head.startswith(b"HEAD ") else page.body)
    await writer.drain()


def _page(head: bytes, pages: Pages) -> Page:
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != len(("method", "target", "version")):
        return Page(400, b"bad request\n")
    if words[0] not in {b"GET", b"HEAD"}:
        return Page(405, b"only GET is answered here\n")
    make = pages.get(words[1].partition(b"?")[0].decode("latin-1"))
    return make() if make else Page(404, b"no such page; there are: %s\n" % ", ".join(sorted(pages)).encode())
