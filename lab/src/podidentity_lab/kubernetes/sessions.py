"""A program's standard streams, as a client of the API has them: `kubectl exec` and `kubectl attach`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

STDOUT, STDERR = 1, 2
"""Channels of the remote-command protocol."""


class ContainerPlace(NamedTuple):
    """Which container."""

    namespace: str
    pod: str
    container: str


class Input(Protocol):
    """What a program reads."""

    async def send(self, content: bytes) -> None:
        """Pass bytes on; a program that does not read any more is no error."""
        ...

    def end(self) -> None:
        """Let the program see the end of its input."""
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """What one client has of a program. `outputs` are by channel, and each ends when there will be no more.

    `status` waits for the program and returns its exit status; `leave` is called when the client has gone, or has seen
    the end. `resize` takes columns and rows of the client's terminal; None for a program without one.
    """

    outputs: Mapping[int, AsyncIterator[bytes]]
    input: Input | None
    status: Callable[[], Awaitable[int]]
    leave: Callable[[], Awaitable[None]]
    resize: Callable[[int, int], None] | None = None
