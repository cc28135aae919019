"""Serves ASGI applications on loopback for tests, and finds ports for daemons that must be told one.

When a server here has ended, every connection is closed down to its socket: nothing of it is left for the next test, or
for the garbage collector to complain about.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import uvicorn

Application = Callable[..., Any]
LOOPBACK = "127.0.0.1"
START_SECONDS = 60.0
_TURNS = 10
END_SECONDS = 90.0  # longer than a TLS handshake that its client gave up: asyncio ends it after 60
_PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to connections and to port 0: no other test can get one by accident."""
_next_port = itertools.count(os.getpid() * 64)


@contextlib.asynccontextmanager
async def serving(
    app: Application, tls: ssl.SSLContext | None = None, listener: socket.socket | None = None, **options: Any
) -> AsyncIterator[int]:
    """Serve an application during the body, on `listener` if that is there; yield its port, 0 with a listener.

    `options` are uvicorn's.

    uvicorn's own main loop is left out: it would check five times, a tenth of a second apart, before it ends.
    """
    usual = {"interface": "asgi3", "proxy_headers": False, "log_level": "error", "lifespan": "off", "ws": "none"}
    config = uvicorn.Config(app, host=LOOPBACK, port=0, **{**usual, **options})
    config.load()
    config.ssl = tls  # uvicorn itself takes files only
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener] if listener else None)
    try:
        yield 0 if listener else server.servers[0].sockets[0].getsockname()[1]
    finally:
        await _end(server)


async def _end(server: uvicorn.Server) -> None:
    for listener in server.servers:
        listener.close()
    connections = server.server_state.connections
    for _ in range(_TURNS):  # what was accepted just now has its transport, and is counted, some turns later
        await asyncio.sleep(0)
    async with asyncio.timeout(END_SECONDS):
        # The count, where this Python has it, holds those too that are still at their TLS handshake.
        while connections or any(getattr(one, "_active_count", 0) for one in server.servers):
            for connection in tuple(connections):
                connection.transport.abort()  # a watch that nobody reads any more, a request under way
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def served(
    app: Application, tls: ssl.SSLContext | None = None, beside: Callable[[], Awaitable[None]] | None = None
) -> Iterator[int]:
    """Serve an application in a thread of its own and yield its port; `beside` runs in the same loop meanwhile."""
    told: Future[tuple[int, Callable[[], object]]] = Future()

    async def run() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        async with serving(app, tls) as port:
            running = asyncio.ensure_future(beside()) if beside else None
            told.set_result((port, lambda: loop.call_soon_threadsafe(ended.set)))
            await ended.wait()
            if running:
                running.cancel()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    port, end = told.result(START_SECONDS)
    try:
        yield port
    finally:
        end()
        thread.join(END_SECONDS)


def unused_port() -> int:
    """Return a port on which nobody listens, and which is given to nobody who does not ask for it by number."""
    while True:
        port = _PORTS[next(_next_port) % len(_PORTS)]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            return port
