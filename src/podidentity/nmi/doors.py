"""The sockets by which clients come in to a listener: opened, taken connections from, left alone for a while, closed.

Taking connections may end while a socket stays open: its queue is then another process's, which holds it as well.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from podidentity.errors import HostError
from podidentity.nmi.tcp_info import has_unaccepted

BACKLOG = 1024
QUEUES = 32
"""For pods, by their addresses: whoever connects all the time keeps waiting the few who share its queue."""
ACCEPTS_PER_TURN = 8
"""Of a queue that is the only one: so many handles share it, because libuv accepts one connection of each in a turn."""
_ACCEPTS_OF_A_QUEUE = 2
SEND_BUFFER_BYTES = 16 * 1024
"""Several answers. Without it the kernel lets what one client does not read grow to megabytes of the node."""
RECEIVE_BUFFER_BYTES = 8 * 1024
"""The kernel doubles it. What is not read yet waits there, or with the client."""

MakeProtocol = Callable[[], asyncio.Protocol]
Prepare = Callable[[socket.socket], None]
Listen = Callable[[str, int, int, int, Prepare], list[socket.socket]]
"""Listens at an address and port, with so many queues of so many connections, on sockets that are prepared before."""


class PortTakenError(HostError):
    """Another process listens at this address and port."""


class AddressMissingError(HostError):
    """The address is not this host's, or not yet: an IPv6 address is tentative for a second (RFC 4862, 5.4)."""


def open_tcp(listen: Listen, address: str, port: int, queues: int, prepare: Prepare) -> list[socket.socket]:
    """Listen, with the options that connections inherit.

    Raises `PortTakenError`, `AddressMissingError`, or another `HostError`.
    """

    def prepare_all(listening: socket.socket) -> None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # of what it accepts, too
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        prepare(listening)

    try:
        return listen(address, port, queues, BACKLOG, prepare_all)
    except OSError as error:
        raise _failure(address, port, error) from None


def _failure(address: str, port: int, error: OSError) -> HostError:
    host = f"[{address}]" if ":" in address else address
    place = f"cannot listen on {host}:{port}: {error.strerror}"
    if error.errno == errno.EADDRNOTAVAIL:
        return AddressMissingError(f"{place}; give the node this address, or correct HOST_IP")
    if error.errno == errno.EADDRINUSE:
        return PortTakenError(f"{place}; end what listens there, such as another NMI")
    return HostError(f"{place}; give NMI another port")


@dataclass(slots=True)
class _Door:
    bound: socket.socket
    make_protocol: MakeProtocol
    accepts: int
    servers: list[asyncio.Server] = field(default_factory=list)


class Doors:
    """All sockets of one listener."""

    def __init__(self) -> None:
        self._doors: list[_Door] = []

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._doors)

    async def add(self, queues: Sequence[socket.socket], make_protocol: MakeProtocol) -> None:
        """Take connections of sockets that are bound, of TCP or of Unix; each gets a protocol of its own."""
        accepts = ACCEPTS_PER_TURN if len(queues) == 1 else _ACCEPTS_OF_A_QUEUE
        for bound in queues:
            bound.setblocking(False)
            self._doors.append(_Door(bound, make_protocol, accepts))
            await _take_connections(self._doors[-1])

    async def reopen(self) -> None:
        """Take connections again."""
        for door in self._doors:
            if not door.servers:
                await _take_connections(door)

    def leave(self) -> None:
        """Take no more connections; the sockets stay open."""
        for door in self._doors:
            for server in door.servers:
                server.close()
            door.servers.clear()

    def has_unaccepted(self) -> bool:
        """Whether the kernel holds TCP connections that have not been accepted yet, and that this process will."""
        return any(has_unaccepted(door.bound) for door in self._doors if door.servers and _is_tcp(door.bound))

    def close(self) -> None:
        """Take no more connections, and close this process's hold on the sockets."""
        self.leave()
        for door in self._doors:
            door.bound.close()


async def _take_connections(door: _Door) -> None:
    loop = asyncio.get_running_loop()
    create = loop.create_server if _is_tcp(door.bound) else loop.create_unix_server
    for _ in range(door.accepts):
        door.servers.append(await create(door.make_protocol, sock=door.bound.dup(), backlog=BACKLOG))


def _is_tcp(bound: socket.socket) -> bool:
    return bound.family in {socket.AF_INET, socket.AF_INET6}
