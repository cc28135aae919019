"""Sends HTTP/1.1 requests to one server over persistent connections: a lean transport for httpx2.

httpx2's own transport takes some 0.5 ms of CPU for a call, ten times as much as the reading and writing; MIC makes two
calls for a pod. Everything else stays httpx2's: URLs, headers, authentication, hooks, errors. llhttp parses the answers
strictly. A transport refuses URLs of other servers, repeats no request and follows no redirect. A request's `trace`
extension is called, with httpcore's event names, when a connection is opened for it and before its first byte is
written; the connection is the response's extension `network_stream`.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import httptools
import httpx2

HEAD_LIMIT_BYTES = 64 * 1024
BUFFER_BYTES = 1024 * 1024
"""How much of a body is buffered while it is not read; then reading from the server pauses."""
_CLOSING_SECONDS = 1.0
CONNECTED = "connection.connect_tcp.complete"
"""The name of the step after which a request's connection is a new one."""
_FIRST_BYTE = "http11.send_request_headers.started"

T = TypeVar("T")


class Pool(NamedTuple):
    """How many connections there may be, how many of them unused, for how long, and how old they may become."""

    connections: int = 64
    idle: int = 64
    idle_seconds: float = 30.0
    """Less than the four minutes after which Azure's load balancer forgets a connection."""

    age_seconds: float = float("inf")


DEFAULT_POOL = Pool()


class Transport(httpx2.AsyncBaseTransport):
    """The connections to one server."""

    def __init__(self, server: httpx2.URL, tls: ssl.SSLContext | None, pool: Pool = DEFAULT_POOL) -> None:
        self._origin = _origin(server)
        self._tls = tls
        self._pool = pool
        self._free = asyncio.Semaphore(pool.connections)
        self._idle: list[_Connection] = []
        """The most recently used is the last."""
        self._expiry: asyncio.TimerHandle | None = None
        self._connections: set[_Connection] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return the response once its head has arrived. Raises httpx2.TransportError."""
        if _origin(request.url) != self._origin:
            raise httpx2.UnsupportedProtocol(f"{request.url} is not at {self._origin[1]}:{self._origin[2]}")
        data = _head(request) + await request.aread()
        times = request.extensions.get("timeout", {})
        await _with_timeout(
            times.get("pool") if self._free.locked() else None, self._free.acquire(), httpx2.PoolTimeout
        )
        connection = None
        try:
            trace = request.extensions.get("trace", _ignore_trace)
            connection = self._take_idle()
            if connection is None:
                connection = await self._open(times.get("connect"))
                await trace(CONNECTED, {"return_value": connection})
            await trace(_FIRST_BYTE, {})
            connection.send(data, times.get("read"))
            await connection.head()
        except BaseException:
            self._end(connection)
            raise
        body, extensions = _Body(self, connection), {"network_stream": connection}
        return httpx2.Response(connection.status, headers=connection.headers, stream=body, extensions=extensions)

    async def aclose(self) -> None:
        """Close all connections."""
        self.retire()
        for connection in self._connections:
            connection.transport.abort()
        if self._connections:
            await asyncio.wait({connection.closed for connection in self._connections}, timeout=_CLOSING_SECONDS)

    def retire(self) -> None:
        """Close unused connections now, and those in use once their answers are read."""
        self._pool = self._pool._replace(idle=0)
        self.close_idle()

    def close_idle(self) -> None:
        """Close unused connections."""
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def release(self, connection: "_Connection") -> None:
        """Take back a connection whose answer is not read any more; close it unless it may be used again."""
        now = asyncio.get_running_loop().time()
        is_young = now - connection.opened_at < self._pool.age_seconds
        if connection.reusable and is_young and len(self._idle) < self._pool.idle:
            connection.idle_since = now
            self._idle.append(connection)
            self._free.release()
            self._schedule_expiry()
        else:
            self._end(connection)

    def _end(self, connection: "_Connection | None") -> None:
        if connection is not None:
            connection.transport.abort()
        self._free.release()

    def _take_idle(self) -> "_Connection | None":
        oldest = asyncio.get_running_loop().time() - self._pool.idle_seconds
        while self._idle:
            connection = self._idle.pop()  # the most recently used: the others may expire
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.transport.abort()
        return None

    def _schedule_expiry(self) -> None:
        """See to it that what is not used again is closed: a server has places for so many connections alone."""
        if self._expiry is None:
            moment = self._idle[0].idle_since + self._pool.idle_seconds
            self._expiry = asyncio.get_running_loop().call_at(moment, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        oldest = asyncio.get_running_loop().time() - self._pool.idle_seconds
        while self._idle and (self._idle[0].idle_since <= oldest or not self._idle[0].reusable):
            self._idle.pop(0).transport.abort()
        if self._idle:
            self._schedule_expiry()

    async def _open(self, seconds: float | None) -> "_Connection":
        scheme, host, port = self._origin
        loop = asyncio.get_running_loop()
        tls = self._tls if scheme == "https" else None
        opening = loop.create_connection(
            lambda: _Connection(loop), host, port, ssl=tls, server_hostname=host if tls else None
        )
        try:
            _, connection = await _with_timeout(seconds, opening, httpx2.ConnectTimeout)
        except OSError as error:
            raise httpx2.ConnectError(str(error)) from error
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))
        return connection


class _Body(httpx2.AsyncByteStream):
    """The body of a response, which gives its connection back when it is closed."""

    def __init__(self, transport: Transport, connection: "_Connection") -> None:
        self._transport = transport
        self._connection: _Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (part := await self._connection.read_part()):
            yield part

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.release(connection)


class _Connection(asyncio.Protocol):
    """One connection, with at most one request on it at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: asyncio.Transport
        self.closed: asyncio.Future[None] = loop.create_future()
        self.opened_at = loop.time()
        self.idle_since = 0.0
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._loop = loop
        self._parser = httptools.HttpResponseParser(self)
        self._parts: deque[bytes] = deque()
        self._buffered = self._head_bytes = 0
        self._has_head, self._complete, self._keep = False, True, True
        self._error: httpx2.TransportError | None = None
        self._read_seconds: float | None = None
        self._waiting: asyncio.Future[None] | None = None

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._complete and self._keep and self._error is None and not self.transport.is_closing()

    def get_extra_info(self, name: str) -> Any:
        """Return `socket` and whatever else asyncio knows of a connection, as httpcore's streams do."""
        return self.transport.get_extra_info(name)

    # For `Transport`.

    def send(self, data: bytes, read_seconds: float | None) -> None:
        """Send the bytes of a request."""
        self._has_head = self._complete = False
        self._head_bytes, self._read_seconds, self.headers = 0, read_seconds, []
        self.transport.write(data)

    async def head(self) -> None:
        """Wait until the answer's head has arrived."""
        while not self._has_head:
            await self._news()

    async def read_part(self) -> bytes:
        """Return what has arrived of the body since the last call; empty bytes at its end."""
        while not self._parts and not self._complete:
            await self._news()
        part = b"".join(self._parts)
        self._parts.clear()
        if self._buffered > BUFFER_BYTES and not self.transport.is_closing():
            self.transport.resume_reading()
        self._buffered = 0
        return part

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        if self.closed.done():
            raise _hangup_error("within" if self._has_head else "before")
        self._waiting = self._loop.create_future()
        try:
            await _with_timeout(self._read_seconds, self._waiting, httpx2.ReadTimeout)
        finally:
            self._waiting = None

    def _tell(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # For the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are transports, but not subclasses

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
        if not self._complete and self._error is None:
            if error is None and self._has_head and self._ends_with_connection():
                self._complete = True
            else:
                self._error = (
                    httpx2.ReadError(str(error)) if error else _hangup_error("within" if self._has_head else "before")
                )
        self._keep = False
        self._tell()
        if not self.closed.done():
            self.closed.set_result(None)

    def _fail(self, error: httpx2.TransportError) -> None:
        self._error = self._error or error
        self.transport.abort()

    def _ends_with_connection(self) -> bool:
        return not {b"content-length", b"transfer-encoding"} & {name.lower() for name, _ in self.headers}

    # For the parser.

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        if self._complete:
            raise httpx2.RemoteProtocolError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Read the status; after an interim one (100 to 199) the answer is still to come."""
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= httpx2.codes.OK

    def on_body(self, part: bytes) -> None:
        """Buffer a part of the body; stop reading from the server when the buffer is full."""
        self._parts.append(part)
        previous, self._buffered = self._buffered, self._buffered + len(part)
        if previous <= BUFFER_BYTES < self._buffered and not self.transport.is_closing():
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """Note the end of an answer; forget the headers of an interim one."""
        if self._has_head:
            self._complete = True
            self._keep = self._keep and self._parser.should_keep_alive()
        else:
            self.headers = []


async def _ignore_trace(_step: str, _details: Mapping[str, Any]) -> None:
    """Do nothing: the request has no `trace` extension."""


async def _with_timeout(seconds: float | None, awaited: Awaitable[T], late: type[httpx2.TimeoutException]) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await awaited
    except TimeoutError as error:
        raise late(str(error) or f"nothing for {seconds} s") from error


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _head(request: httpx2.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    text = b"\r\n".join((*lines, b"", b""))
    if text.count(b"\r") + text.count(b"\n") != 2 * len(lines) + 2 or b"\0" in text:
        raise httpx2.LocalProtocolError("a header may not contain a line break; correct the token or the user agent")
    return text


def _hangup_error(when: str) -> httpx2.RemoteProtocolError:
    return httpx2.RemoteProtocolError(f"the server hung up {when} its answer")
