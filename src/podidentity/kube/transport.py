"""The way of a request's bytes to the API server and back: HTTP/1.1 over kept connections, for `connection`'s client.

httpx2's own transport takes some 0.5 ms of CPU for a call, ten times what reading and writing it needs; MIC makes two
calls for a pod. Everything above stays httpx2's: URLs, headers, authentication, hooks, errors. Answers are read by
llhttp, strictly. A transport speaks with one server, whatever a URL says; it repeats no request and follows nothing. A
request's `trace` extension is called when a connection is made for it and before its first byte is written, by
httpcore's names; the connection is the response's extension `network_stream`.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar, cast

import httptools
import httpx2

CONNECTIONS = 64
IDLE_SECONDS = 30.0
"""A connection is kept for less than the four minutes after which Azure's load balancer forgets it."""
HEAD_LIMIT_BYTES = 64 * 1024
BUFFER_BYTES = 1024 * 1024
"""Of a body that nobody reads meanwhile; then the server has to wait."""
_CLOSING_SECONDS = 1.0
_CONNECTED = "connection.connect_tcp.complete"
_FIRST_BYTE = "http11.send_request_headers.started"

T = TypeVar("T")


class Transport(httpx2.AsyncBaseTransport):
    """Connections to one server."""

    def __init__(self, server: httpx2.URL, tls: ssl.SSLContext | None, connections: int = CONNECTIONS) -> None:
        self._origin = _origin(server)
        self._tls = tls
        self._free = asyncio.Semaphore(connections)
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; its answer, as soon as its head is here. Raises httpx2.TransportError."""
        if _origin(request.url) != self._origin:
            raise httpx2.UnsupportedProtocol(f"{request.url} is not at {self._origin[1]}:{self._origin[2]}")
        written = _head(request) + await request.aread()
        times = request.extensions.get("timeout", {})
        await _within(times.get("pool") if self._free.locked() else None, self._free.acquire(), httpx2.PoolTimeout)
        connection = None
        try:
            trace = request.extensions.get("trace", _untold)
            connection = self._kept()
            if connection is None:
                connection = await self._open(times.get("connect"))
                await trace(_CONNECTED, {"return_value": connection})
            await trace(_FIRST_BYTE, {})
            connection.send(written, times.get("read"))
            await connection.head()
        except BaseException:
            self._end(connection)
            raise
        body, extensions = _Body(self, connection), {"network_stream": connection}
        return httpx2.Response(connection.status, headers=connection.headers, stream=body, extensions=extensions)

    async def aclose(self) -> None:
        """Hang up everywhere."""
        for connection in self._all:
            connection.transport.abort()
        if self._all:
            await asyncio.wait({connection.lost for connection in self._all}, timeout=_CLOSING_SECONDS)

    def done(self, connection: "_Connection") -> None:
        """Nobody reads this answer any more: keep its connection if it was read to its end."""
        if connection.reusable:
            connection.kept_at = asyncio.get_running_loop().time()
            self._idle.append(connection)
            self._free.release()
        else:
            self._end(connection)

    def _end(self, connection: "_Connection | None") -> None:
        if connection is not None:
            connection.transport.abort()
        self._free.release()

    def _kept(self) -> "_Connection | None":
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may grow old and go
            if connection.reusable and connection.kept_at > oldest:
                return connection
            connection.transport.abort()
        return None

    async def _open(self, seconds: float | None) -> "_Connection":
        scheme, host, port = self._origin
        loop = asyncio.get_running_loop()
        tls = self._tls if scheme == "https" else None
        opening = loop.create_connection(
            lambda: _Connection(loop), host, port, ssl=tls, server_hostname=host if tls else None
        )
        try:
            _, connection = await _within(seconds, opening, httpx2.ConnectTimeout)
        except OSError as error:
            raise httpx2.ConnectError(str(error)) from error
        self._all.add(connection)
        connection.lost.add_done_callback(lambda _: self._all.discard(connection))
        return connection


class _Body(httpx2.AsyncByteStream):
    """What follows a head."""

    def __init__(self, transport: Transport, connection: "_Connection") -> None:
        self._transport = transport
        self._connection: _Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (part := await self._connection.more()):
            yield part

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.done(connection)


class _Connection(asyncio.Protocol):
    """One connection, and the one exchange that is under way on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: asyncio.Transport
        self.lost: asyncio.Future[None] = loop.create_future()
        self.kept_at = 0.0
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._parts: deque[bytes] = deque()
        self._buffered = self._head_bytes = 0
        self._has_head, self._complete, self._keep = False, True, True
        self._why: httpx2.TransportError | None = None
        self._read_seconds: float | None = None
        self._waiting: asyncio.Future[None] | None = None

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._complete and self._keep and self._why is None and not self.transport.is_closing()

    def get_extra_info(self, name: str) -> Any:
        """Tell `socket` and what else asyncio knows of a connection, as httpcore's streams do."""
        return self.transport.get_extra_info(name)

    # For the transport.

    def send(self, written: bytes, read_seconds: float | None) -> None:
        """Begin an exchange."""
        self._has_head = self._complete = False
        self._head_bytes, self._read_seconds, self.headers = 0, read_seconds, []
        self.transport.write(written)

    async def head(self) -> None:
        """Return when the answer's head is here."""
        while not self._has_head:
            await self._news()

    async def more(self) -> bytes:
        """Return what came of the body since; nothing at its end."""
        while not self._parts and not self._complete:
            await self._news()
        part = b"".join(self._parts)
        self._parts.clear()
        if self._buffered > BUFFER_BYTES and not self.transport.is_closing():
            self.transport.resume_reading()
        self._buffered = 0
        return part

    async def _news(self) -> None:
        if self._why is not None:
            raise self._why
        if self.lost.done():
            raise _cut("within" if self._has_head else "before")
        self._waiting = self._loop.create_future()
        try:
            await _within(self._read_seconds, self._waiting, httpx2.ReadTimeout)
        finally:
            self._waiting = None

    def _tell(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # For the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are transports without being called so

    def data_received(self, data: bytes) -> None:
        if self._complete:
            self._fail(httpx2.RemoteProtocolError("the server spoke without being asked"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx2.RemoteProtocolError(f"the answer is no HTTP: {error}"))
        self._head_bytes += 0 if self._has_head else len(data)
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._fail(httpx2.RemoteProtocolError(f"the answer's head is longer than {HEAD_LIMIT_BYTES} bytes"))
        self._tell()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._complete and self._why is None:
            if error is None and self._has_head and self._ends_with_connection():
                self._complete = True
            else:
                self._why = httpx2.ReadError(str(error)) if error else _cut("within" if self._has_head else "before")
        self._keep = False
        self._tell()
        if not self.lost.done():
            self.lost.set_result(None)

    def _fail(self, why: httpx2.TransportError) -> None:
        self._why = self._why or why
        self.transport.abort()

    def _ends_with_connection(self) -> bool:
        return not {b"content-length", b"transfer-encoding"} & {name.lower() for name, _ in self.headers}

    # For the parser.

    def on_message_begin(self) -> None:
        """Refuse a second answer, which nobody asked for."""
        if self._complete:
            raise httpx2.RemoteProtocolError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Know the status; an interim one (100 to 199) announces the answer alone."""
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= httpx2.codes.OK

    def on_body(self, part: bytes) -> None:
        """Take a part; when nobody reads them, let the server wait."""
        self._parts.append(part)
        before, self._buffered = self._buffered, self._buffered + len(part)
        if before <= BUFFER_BYTES < self._buffered and not self.transport.is_closing():
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """Know the end."""
        if self._has_head:
            self._complete = True
            self._keep = self._keep and self._parser.should_keep_alive()
        else:
            self.headers = []


async def _untold(_step: str, _details: Mapping[str, Any]) -> None:
    """Nobody wants to know."""


async def _within(seconds: float | None, awaited: Awaitable[T], late: type[httpx2.TimeoutException]) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await awaited
    except TimeoutError as error:
        raise late(str(error) or f"nothing for {seconds} s") from error


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _head(request: httpx2.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%s: %s" % one for one in request.headers.raw]
    text = b"\r\n".join((*lines, b"", b""))
    if text.count(b"\r") + text.count(b"\n") != 2 * len(lines) + 2 or b"\0" in text:
        raise httpx2.LocalProtocolError("a header may not contain a line break; correct the token or the user agent")
    return text


def _cut(when: str) -> httpx2.RemoteProtocolError:
    return httpx2.RemoteProtocolError(f"the server hung up {when} its answer")
