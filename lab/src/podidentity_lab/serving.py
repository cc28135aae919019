"""Serves an ASGI application on sockets that are open already, wherever they were opened."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

STREAM_END_SECONDS = 1  # watches never end by themselves


class _Server(uvicorn.Server):
    """The lab has its own way of stopping: uvicorn must not take its signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    app: ASGIApp,
    sockets: Sequence[socket.socket],
    tls: ssl.SSLContext | None = None,
    protocol: type[asyncio.Protocol] | None = None,
) -> None:
    """Serve until cancelled; with a `protocol` of uvicorn's kind, each connection is one of these."""
    config = uvicorn.Config(
        app,
        http=protocol or "auto",
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="wsproto",  # kubectl exec
        proxy_headers=False,  # who asks is told by the socket, never by a header
        server_header=False,
        timeout_graceful_shutdown=STREAM_END_SECONDS,
    )
    config.load()
    config.ssl = tls  # uvicorn itself takes files only; Azure's certificates are made on demand
    await _Server(config).serve(list(sockets))
