"""Keeps a MIC that no longer leads from changing anything: the last look before a request's first byte.

A lock cannot fence: a process that was stopped, or waited for a connection or a token, may come back when another one
leads. Therefore the question is asked by the HTTP client itself, once more after it has a connection, and not only by
whoever decided to write. What is left is the time of one system call; resource versions and fresh reads cover that.
What is in the kernel's buffers when the way is cut would be sent again and again for a quarter of an hour, even after
the connection was closed: it may arrive when another one has led for minutes. Therefore the kernel drops it in time.
Constructed by `daemon`, once for each client.
"""

import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx2

from podidentity.errors import FencedError

Hook = Callable[[httpx2.Request], Awaitable[None]]

KUBERNETES_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
AZURE_WRITES = frozenset({"PUT", "PATCH", "DELETE"})  # POST obtains tokens

UNSENT_SECONDS = 5.0
"""How long the kernel keeps what nobody has acknowledged: less than the half lease between two leaders."""

_CONNECTED = ".connect_tcp.complete"
_FIRST_BYTE = ".send_request_headers.started"  # httpcore: http11 and http2 name this step alike


def fence(leading: Callable[[], bool], methods: frozenset[str], unsent_seconds: float = UNSENT_SECONDS) -> Hook:
    """Make a request hook: requests with one of `methods` raise FencedError unless `leading()`."""

    async def hook(request: httpx2.Request) -> None:
        def check() -> None:
            if request.method in methods and not leading():
                raise FencedError(f"{request.method} {request.url.path} was not sent: this MIC no longer leads")

        async def trace(step: str, details: Mapping[str, Any]) -> None:
            if step.endswith(_CONNECTED):
                _forget_unsent(details["return_value"], unsent_seconds)
            elif step.endswith(_FIRST_BYTE):
                check()

        check()
        request.extensions = {**request.extensions, "trace": trace}

    return hook


def _forget_unsent(stream: Any, after_seconds: float) -> None:
    """Make the kernel end a new connection whose bytes nobody acknowledges (tcp(7), TCP_USER_TIMEOUT)."""
    connection = stream.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(int(after_seconds * 1000), 1))
