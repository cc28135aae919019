"""Keeps a MIC that no longer leads from changing anything: the last check before a request's first byte.

A lock cannot fence: a process that was stopped, or waited for a connection or a token, may go on when another one
leads. Therefore the HTTP client itself asks whether MIC leads, once more after it has a connection, and not only the
code that decided to write. The time of one system call remains; resource versions and fresh reads cover that.
The kernel would send its unacknowledged bytes again for a quarter of an hour, even after the connection was closed:
they might arrive when another MIC has led for minutes. Therefore the kernel is made to drop them in time.
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
"""How long the kernel keeps unacknowledged bytes: less than the half lease between two leaders."""

_CONNECTED = ".connect_tcp.complete"
_FIRST_BYTE = ".send_request_headers.started"  # httpcore: the same name for HTTP/1.1 and HTTP/2


def fence(leading: Callable[[], bool], methods: frozenset[str], unsent_seconds: float = UNSENT_SECONDS) -> Hook:
    """Return a request hook that raises FencedError for requests with one of `methods` unless `leading()`."""

    async def hook(request: httpx2.Request) -> None:
        method, path = request.method, request.url.path  # `trace` with its request would be cyclic garbage: 10 KB each

        def check() -> None:
            if method in methods and not leading():
                raise FencedError(f"{method} {path} was not sent: this MIC no longer leads")

        async def trace(step: str, details: Mapping[str, Any]) -> None:
            if step.endswith(_CONNECTED):
                _forget_unsent(details["return_value"], unsent_seconds)
            elif step.endswith(_FIRST_BYTE):
                check()

        check()
        request.extensions = {**request.extensions, "trace": trace}

    return hook


def _forget_unsent(stream: Any, after_seconds: float) -> None:
    """Make the kernel end a connection whose bytes stay unacknowledged for so long (tcp(7), TCP_USER_TIMEOUT)."""
    connection = stream.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(int(after_seconds * 1000), 1))
