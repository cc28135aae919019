"""Keeps a MIC that no longer leads from changing anything: the last look before a request's first byte.

A lock cannot fence: a process that was stopped, or waited for a connection or a token, may come back when another one
leads. Therefore the question is asked by the HTTP client itself, once more after it has a connection, and not only by
whoever decided to write. What is left is the time of one system call; resource versions and fresh reads cover that.
Constructed by `daemon`, once for each client.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx2

from podidentity.errors import FencedError

Hook = Callable[[httpx2.Request], Awaitable[None]]

KUBERNETES_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
AZURE_WRITES = frozenset({"PUT", "PATCH", "DELETE"})  # POST obtains tokens

_FIRST_BYTE = ".send_request_headers.started"  # httpcore: http11 and http2 name this step alike


def fence(leading: Callable[[], bool], methods: frozenset[str]) -> Hook:
    """Make a request hook: requests with one of `methods` raise FencedError unless `leading()`."""

    async def hook(request: httpx2.Request) -> None:
        if request.method not in methods:
            return

        def check() -> None:
            if not leading():
                raise FencedError(f"{request.method} {request.url.path} was not sent: this MIC no longer leads")

        async def trace(step: str, _details: Mapping[str, Any]) -> None:
            if step.endswith(_FIRST_BYTE):
                check()

        check()
        request.extensions = {**request.extensions, "trace": trace}

    return hook
