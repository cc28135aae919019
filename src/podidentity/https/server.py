"""Serves requests over TLS: aiohttp reads and writes HTTP, this module bounds what a client can hold.

Connections are taken one by one, so that each counts from before its TLS handshake to its end. Time is bounded for the
handshake, for the first request, for a body, and between requests.
"""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import logging
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import http_exceptions, web

from podidentity.core.model.http_request import HttpRequest
from podidentity.errors import HostError
from podidentity.https.answers import Answer
from podidentity.https.places import Places
from podidentity.issuance.fairness import FairQuota

_log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
SHUTDOWN_SECONDS = 2.0  # so long a client that was answered last may take to say that it closes, too
HEAD_SECONDS = 10.0
BODY_SECONDS = 10.0
LONG_BODY_BYTES = 8 * 1024
IDLE_SECONDS = 120.0  # longer than clients keep connections, so that they close first: Go's, the API server, 90 s
_BACKLOG = 1024
_LINE_BYTES = 8190
_FIELD_BYTES = 20 * 1024  # a query of a POST to / may have an assertion of 16 KiB
_HEADERS = 64
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_HEADERS_OF_ALL = {
    "Content-Type": "application/json; charset=utf-8",
    "Cache-Control": "no-store",
    "Server": "podidentity",
}

Answering = Callable[[HttpRequest, str], Awaitable[Answer]]
"""Answers a request that came from an address."""


class Server:
    """Serves `answering` over TLS. `on_refusal` is called when a connection is closed for lack of a place.

    `long_bodies` bounds how many requests with a body of more than `LONG_BODY_BYTES` are under way: such a one takes
    three times its length in memory. Without it, only connections are bounded.
    """

    def __init__(
        self,
        answering: Answering,
        places: Places,
        on_refusal: Callable[[], None],
        *,
        body_limit_bytes: int,
        long_bodies: FairQuota | None = None,
    ) -> None:
        self._answering = answering
        self._body_limit_bytes = body_limit_bytes
        self._long_bodies = long_bodies
        self._places = places
        self._on_refusal = on_refusal
        self._connections: dict[web.RequestHandler, _Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    @contextlib.asynccontextmanager
    async def listen(self, address: str, port: int, tls: ssl.SSLContext) -> AsyncIterator[int]:
        """Serve on `address` ("" for all); yield the port. At the end what is under way is finished.

        Raises `HostError` when the port cannot be listened on.
        """
        listener = _listener(address, port)
        http = _Http(self._handle, self._connections, self._body_limit_bytes)
        accepting = asyncio.create_task(self._accept(listener, http, tls))
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            listener.close()
            await http.shutdown(BODY_SECONDS)
            for task in self._tasks:
                task.cancel()

    def drain(self) -> None:
        """From now on each answer ends its connection: clients open new ones, with somebody else."""
        self._draining = True

    async def _accept(self, listener: socket.socket, http: "_Http", tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    continue  # the client is gone already
                _log.warning("no connection can be taken: %s; raise the limit of open files", error.strerror)
                await asyncio.sleep(1.0)
                continue
            if not self._places.take(peer[0]):
                self._on_refusal()
                connection.close()
                continue
            task = loop.create_task(self._open(connection, peer[0], http, tls))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, connection: socket.socket, address: str, http: "_Http", tls: ssl.SSLContext) -> None:
        """Do the handshake, and hold the place until the connection is closed."""
        loop = asyncio.get_running_loop()
        closed: asyncio.Future[None] = loop.create_future()
        handler = http.handler(address, closed)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport, _ = await loop.connect_accepted_socket(
                lambda: handler,
                connection,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
            try:
                await closed
            finally:
                if not closed.done():  # we stop; asyncio of Python 3.11.2 cannot abort what is closed already
                    with contextlib.suppress(AttributeError):
                        transport.abort()
        except (OSError, ssl.SSLError, TimeoutError):  # no TLS, another name, a client that left
            connection.close()
        finally:
            self._connections.pop(handler, None)
            self._places.give_back(address)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._connections.get(request.protocol)
        if connection is None:
            raise web.HTTPServiceUnavailable
        connection.note_request()
        bodies = self._long_bodies if _has_long_body(request) else None
        if bodies is not None and bodies.is_full(connection.address):
            refusal = _refusal(503, "too many long bodies are being read; ask again in a moment")
            return self._response(dataclasses.replace(refusal, retry_after_seconds=1.0), is_last=True)
        if bodies is not None:
            bodies.take(connection.address)
        try:
            message = await self._read(request)
            answer = message if isinstance(message, Answer) else await self._answering(message, connection.address)
        finally:
            if bodies is not None:
                bodies.give_back(connection.address)
        return self._response(answer, is_last=isinstance(message, Answer))

    def _response(self, answer: Answer, *, is_last: bool) -> web.Response:
        response = web.Response(status=answer.status, body=answer.body, headers=_headers(answer))
        if self._draining or is_last:
            response.force_close()
        return response

    async def _read(self, request: web.BaseRequest) -> HttpRequest | Answer:
        """Return a request with its body, or the answer to one that cannot be read."""
        target = request.raw_path
        if not target.startswith("/"):
            return _refusal(400, "the request's target must be a path")
        if "Content-Encoding" in request.headers:
            return _refusal(415, "a body is read as it is; send it without Content-Encoding")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, f"the body is longer than {self._body_limit_bytes} bytes")
        except TimeoutError:
            return _refusal(408, "the body did not come in time")
        except (http_exceptions.HttpProcessingError, web.RequestPayloadError):
            return _refusal(400, "the body is broken off or wrongly framed")
        path, _, query = target.partition("?")
        return HttpRequest(request.method, path, query, request.headers.get("Content-Type", ""), body)


class _Connection:
    """One open connection; it is aborted when no request comes."""

    def __init__(self, address: str, closed: "asyncio.Future[None]") -> None:
        self.address = address
        self.closed = closed
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """Give the client some seconds for its first request."""
        self._timer = asyncio.get_running_loop().call_later(HEAD_SECONDS, transport.abort)

    def note_request(self) -> None:
        """A request is there; between requests aiohttp has its own limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """Wake whoever holds the place."""
        self.note_request()
        if not self.closed.done():
            self.closed.set_result(None)


class _Http(web.Server):
    """aiohttp's server, which tells when connections begin and end."""

    def __init__(
        self,
        handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        connections: "dict[web.RequestHandler, _Connection]",
        body_limit_bytes: int,
    ) -> None:
        super().__init__(
            handle,
            request_factory=functools.partial(_request, body_limit_bytes),
            handler_cancellation=True,
            keepalive_timeout=IDLE_SECONDS,
            tcp_keepalive=True,
            access_log=None,
            max_line_size=_FIELD_BYTES,
            max_field_size=_LINE_BYTES,
            max_headers=_HEADERS,
            auto_decompress=False,
            lingering_time=0.0,
        )
        self._open = connections

    def handler(self, address: str, closed: "asyncio.Future[None]") -> "web.RequestHandler":
        """Return the protocol of a new connection."""
        handler = self()
        self._open[handler] = _Connection(address, closed)
        return handler

    def connection_made(self, handler: "web.RequestHandler", transport: asyncio.Transport) -> None:
        """Start the time for the first request."""
        super().connection_made(handler, transport)
        self._open[handler].start(transport)

    def connection_lost(self, handler: "web.RequestHandler", exc: BaseException | None = None) -> None:
        """Forget the connection."""
        super().connection_lost(handler, exc)
        connection = self._open.pop(handler, None)
        if connection is not None:
            connection.end()


def _request(
    body_limit_bytes: int, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
) -> web.BaseRequest:
    return web.BaseRequest(
        message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=body_limit_bytes
    )


def _has_long_body(request: web.BaseRequest) -> bool:
    """Whether a body is long, or does not say how long it is."""
    length = request.content_length
    return length > LONG_BODY_BYTES if length is not None else bool(request.body_exists)


def _refusal(status: int, message: str) -> Answer:
    return Answer(status, b'{"error":"invalid_request","error_description":"%b"}' % message.encode())


def _headers(answer: Answer) -> dict[str, str]:
    headers = dict(_HEADERS_OF_ALL)
    if answer.retry_after_seconds is not None:
        headers["Retry-After"] = str(math.ceil(answer.retry_after_seconds))
    if answer.allow:
        headers["Allow"] = answer.allow
    return headers


def _listener(address: str, port: int) -> socket.socket:
    """Return a socket that listens on `address`, or on all addresses of both families."""
    try:
        if address:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.create_server((address, port), family=family, backlog=_BACKLOG)
        elif socket.has_dualstack_ipv6():
            listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        else:
            listener = socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as error:
        raise HostError(f"port {port} cannot be listened on: {error.strerror}; give the broker another port") from error
    listener.setblocking(False)
    return listener
