"""Small pages for kubelets and Prometheus: `/healthz`, `/readyz`, `/metrics`.

Off the hot path: one request a connection. The ports are open to every pod, and the kubelet must be answered whatever
pods do: this host's own connections have a queue and places of their own; every other address has a share, and what is
over it costs that address its own oldest connection, never a newcomer's. Strangers come in slowly, by queues for some
of their addresses each, and get one page in a turn of the event loop, which has pods' tokens to answer. Each daemon
gives the pages of each port, and may give strangers others.
"""

import asyncio
import contextlib
import errno
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple, cast

from podidentity.errors import HostError
from podidentity.linux.reuseport import listen_apart

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HEAD_LIMIT_BYTES = 8 * 1024
_TIME_LIMIT_SECONDS = 5.0
_BACKLOG = 256
_QUEUES_OF_STRANGERS = 4
_PAUSE_SECONDS = 0.02
"""After each stranger of a queue: 50 a second are many for Prometheus, and few for the event loop."""
_CONNECTIONS = 64
_CONNECTIONS_OF_ONE_ADDRESS = 16
_LARGE_PAGE_BYTES = 4096
_CACHE_SECONDS = 5.0
_THIS_HOST = ""
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Page(NamedTuple):
    """What is answered to one request."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]


@contextlib.asynccontextmanager
async def serve_pages(
    port: int, pages: Pages, address: str | None = None, *, strangers: Pages | None = None
) -> AsyncIterator[int]:
    """Serve `pages` (each path with the function that makes its page) on `address`, or on all; yield the port.

    `strangers` are the pages for clients that do not connect from this host itself: the same ones by default. Raises
    `HostError` when the port is taken.
    """
    listening = listen_for_pages(port, address)
    async with serve_pages_on(listening, pages, strangers=strangers):
        yield listening[0].getsockname()[1]


@contextlib.asynccontextmanager
async def serve_pages_on(
    listening: Sequence[socket.socket], pages: Pages, *, strangers: Pages | None = None
) -> AsyncIterator[None]:
    """Serve `pages` on sockets that listen; they are closed in the end. See `serve_pages`."""
    server = _Server(pages, pages if strangers is None else strangers)
    accepting = [asyncio.ensure_future(_accept_all(listener, server)) for listener in listening]
    try:
        yield
    finally:
        for task in accepting:
            task.cancel()
        await asyncio.gather(*accepting, return_exceptions=True)
        for listener in listening:
            listener.close()
        server.end()


async def _accept_all(listener: socket.socket, server: "_Server") -> None:
    """Accept connections until cancelled, those of strangers slowly."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, peer = await loop.sock_accept(listener)
            is_local = _is_local(peer[0], connection.getsockname()[0])
            await loop.connect_accepted_socket(lambda: _Connection(server), connection)
        except OSError:  # it is gone already, or this process has too many files open
            is_local = False
        if not is_local:
            await asyncio.sleep(_PAUSE_SECONDS)


def listen_for_pages(port: int, address: str | None = None) -> list[socket.socket]:
    """Listen on `address`, or on all addresses of both families. Raises `HostError` when the port is taken."""
    try:
        return _listen(port, address)
    except OSError as error:
        raise HostError(f"port {port} cannot be listened on: {error.strerror}; give this daemon another port") from None


def _listen(port: int, address: str | None) -> list[socket.socket]:
    if address is not None:
        return _listen_apart(socket.AF_INET6 if ":" in address else socket.AF_INET, address, port)
    listening = _listen_apart(socket.AF_INET, "0.0.0.0", port)
    try:
        listening += _listen_apart(socket.AF_INET6, "::", listening[0].getsockname()[1])
    except OSError as error:
        if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            for listener in listening:
                listener.close()
            raise
    return listening


def _listen_apart(family: int, address: str, port: int) -> list[socket.socket]:
    return listen_apart(family, address, port, _BACKLOG, strangers=_QUEUES_OF_STRANGERS)


class _Server:
    """The pages of one port, and the connections that are open to it."""

    def __init__(self, pages: Pages, strangers: Pages) -> None:
        self._pages = pages
        self._strangers = strangers
        self._connections: dict[str, dict[_Connection, None]] = {}  # of each address, the oldest first
        self._cache: dict[str, tuple[float, Page]] = {}
        self._queue: deque[_Connection] = deque()  # strangers whose request is complete

    def add(self, connection: "_Connection", address: str) -> None:
        """Count a connection, and end another where there are too many: its address's, or that of whoever has most."""
        connections = self._connections.get(address, {})
        if len(connections) >= (_CONNECTIONS if address == _THIS_HOST else _CONNECTIONS_OF_ONE_ADDRESS):
            next(iter(connections)).abort()
        elif address != _THIS_HOST:
            strangers = {peer: len(group) for peer, group in self._connections.items() if peer != _THIS_HOST}
            if sum(strangers.values()) >= _CONNECTIONS:
                next(iter(self._connections[max(strangers, key=strangers.__getitem__)])).abort()
        self._connections.setdefault(address, {})[connection] = None

    def remove(self, connection: "_Connection", address: str) -> None:
        """Forget a connection that ended."""
        connections = self._connections.get(address, {})
        connections.pop(connection, None)
        if not connections:
            self._connections.pop(address, None)

    def end(self) -> None:
        """End every connection."""
        for connection in [connection for connections in self._connections.values() for connection in connections]:
            connection.abort()

    def enqueue(self, connection: "_Connection") -> None:
        """Answer a stranger in a turn of the event loop to come."""
        self._queue.append(connection)
        if len(self._queue) == 1:
            asyncio.get_running_loop().call_soon(self._answer_next)

    def _answer_next(self) -> None:
        """Answer one stranger; the next one has the next turn."""
        self._queue.popleft().answer()
        if self._queue:
            asyncio.get_running_loop().call_soon(self._answer_next)

    def page(self, head: bytes, *, is_local: bool) -> Page:
        """Return the page that a request head asks for."""
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != len(("method", "target", "version")):
            return Page(400, b"bad request\n")
        if words[0] not in {b"GET", b"HEAD"}:
            return Page(405, b"only GET is answered here\n")
        path = words[1].partition(b"?")[0].decode("latin-1")
        pages = self._pages if is_local else self._strangers
        if path not in pages:
            return Page(404, b"no such page; there are: %s\n" % ", ".join(sorted(pages)).encode())
        return pages[path]() if is_local else self._page_of_a_stranger(path)

    def _page_of_a_stranger(self, path: str) -> Page:
        """Return a page; a large one may be seconds old, since every pod may ask for it all the time."""
        now = asyncio.get_running_loop().time()
        created_at, page = self._cache.get(path, (-_CACHE_SECONDS, None))
        if page is None or now - created_at >= _CACHE_SECONDS:
            page = self._strangers[path]()
            if len(page.body) > _LARGE_PAGE_BYTES:
                self._cache[path] = now, page
        return page


class _Connection(asyncio.Protocol):
    """A connection, which ends after one request and its answer."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._head = bytearray()
        self._address = _THIS_HOST

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, for as long as the time limit allows."""
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(_TIME_LIMIT_SECONDS, self.abort)
        peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if not peer or not local:  # gone before we looked
            self.abort()
            return
        self._address = _THIS_HOST if _is_local(peer[0], local[0]) else peer[0]
        self._server.add(self, self._address)

    def data_received(self, data: bytes) -> None:
        """Answer once the head is complete, or too long."""
        self._head += data
        if b"\r\n\r\n" in self._head[-len(data) - 3 :] or len(self._head) > _HEAD_LIMIT_BYTES:
            if self._address == _THIS_HOST:
                self.answer()
            else:
                self._transport.pause_reading()
                self._server.enqueue(self)

    def answer(self) -> None:
        """Answer the request, unless the connection has ended meanwhile."""
        if not self._transport.is_closing():
            head = b"" if len(self._head) > _HEAD_LIMIT_BYTES else bytes(self._head)
            page = self._server.page(head, is_local=self._address == _THIS_HOST)
            self._write(page, without_content=head.startswith(b"HEAD "))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Give the place back."""
        self._timer.cancel()
        self._server.remove(self, self._address)

    def abort(self) -> None:
        """End the connection at once: closing would wait for a client that does not read."""
        self._timer.cancel()
        self._server.remove(self, self._address)
        self._transport.abort()

    def _write(self, page: Page, *, without_content: bool) -> None:
        reason = _REASONS.get(page.status, "Unknown")
        head = (
            f"HTTP/1.1 {page.status} {reason}\r\nContent-Type: {page.content_type}\r\n"
            f"Content-Length: {len(page.body)}\r\nConnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + (b"" if without_content else page.body))
        self._transport.close()


def _is_local(peer: str, local: str) -> bool:
    """Whether a connection comes from this host itself: from loopback, or from the very address that it goes to.

    Nobody else can complete a handshake from those.
    """
    return peer == local or peer.startswith("127.")
