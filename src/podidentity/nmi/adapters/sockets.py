"""The sockets that NMI listens on: new ones, or those that its supervisor kept, or its predecessor handed over.

A socket that is taken over has its queue: whoever connected meanwhile waits in it, and nobody is refused.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path

from podidentity.linux.local_socket import is_at, open_local_socket
from podidentity.linux.passing import receive_sockets, send_sockets
from podidentity.linux.reuseport import listen_by_client
from podidentity.nmi.doors import Prepare, open_tcp
from podidentity.serving.probes import listen_for_pages
from podidentity.supervisor import KEEPER_VARIABLE, SOCKETS_WORD

_ALL_ADDRESSES = ("0.0.0.0", "::")


class ListeningSockets:
    """All of them. `keeper` leads to the supervisor; None without one."""

    def __init__(self, keeper: socket.socket | None = None) -> None:
        self._keeper = keeper
        self._adopted: list[socket.socket] = []
        self._in_use: list[socket.socket] = []

    def adopt(self, sockets: Iterable[socket.socket]) -> None:
        """Use these where they are what is asked for, in place of those adopted before."""
        _close(self._adopted)
        self._adopted = list(sockets)
        self.keep()

    def has(self, address: str, port: int) -> bool:
        """Whether a socket for this address and port is there already."""
        return any(_is_for(listening, address, port) for listening in (*self._adopted, *self._in_use))

    def tcp(self, address: str, port: int, queues: int, prepare: Prepare) -> list[socket.socket]:
        """Return what listens at an address, as many as `queues` if they are new.

        Raises `PortTakenError`, or another `HostError`.
        """
        listening = self._take(lambda bound: _is_for(bound, address, port))
        listening = listening or open_tcp(listen_by_client, address, port, queues, prepare)
        self._in_use += listening
        return listening

    def pages(self, port: int) -> list[socket.socket]:
        """Return what listens at a port for small pages. Raises `HostError` when it is taken."""
        listening = self._take(lambda listening: any(_is_for(listening, address, port) for address in _ALL_ADDRESSES))
        listening = listening or listen_for_pages(port)
        self._in_use += listening
        return listening

    def local(self, path: Path) -> socket.socket:
        """Return what listens on a Unix socket. Raises `HostError`."""
        (listening, *_) = self._take(lambda listening: is_at(listening, path)) or [open_local_socket(path)]
        self._in_use.append(listening)
        return listening

    def in_use(self) -> Sequence[socket.socket]:
        """Return what a successor may use."""
        return tuple(self._in_use)

    def settle(self) -> None:
        """Close what was adopted and not asked for."""
        _close(self._adopted)
        self._adopted = []
        self.keep()

    def keep(self) -> None:
        """Hand all sockets to the supervisor."""
        if self._keeper is not None:
            with contextlib.suppress(OSError):  # without a supervisor all goes on, but nobody keeps them
                send_sockets(self._keeper, SOCKETS_WORD, (*self._adopted, *self._in_use))

    def on_keepers_end(self, act: Callable[[], None]) -> None:
        """Call `act` when the supervisor has died."""
        if self._keeper is not None:
            loop, keeper = asyncio.get_running_loop(), self._keeper

            def note_end() -> None:
                loop.remove_reader(keeper)
                act()

            loop.add_reader(keeper, note_end)  # it sends nothing after the first message

    def _take(self, is_wanted: Callable[[socket.socket], bool]) -> list[socket.socket]:
        matches = [listening for listening in self._adopted if is_wanted(listening)]
        self._adopted = [listening for listening in self._adopted if listening not in matches]
        return matches


def open_keeper(environ: MutableMapping[str, str]) -> tuple[ListeningSockets, list[socket.socket]]:
    """Return NMI's sockets, and those that a supervisor has kept of a process that crashed."""
    number = environ.pop(KEEPER_VARIABLE, "")
    if not number.isdigit():
        return ListeningSockets(), []
    os.set_inheritable(int(number), False)
    keeper = socket.socket(fileno=int(number))
    _, sockets = receive_sockets(keeper)
    return ListeningSockets(keeper), sockets


def _is_for(listening: socket.socket, address: str, port: int) -> bool:
    return listening.family in {socket.AF_INET, socket.AF_INET6} and listening.getsockname()[:2] == (address, port)


def _close(sockets: Iterable[socket.socket]) -> None:
    for listening in sockets:
        listening.close()
