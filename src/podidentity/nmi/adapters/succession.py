"""How NMIs of one node take turns: one serves, and hands its sockets to those that stand by, on a Unix socket.

The one that serves has its socket at the path; the others are its clients. Messages are words:

    sockets    from the one that serves, with its listening sockets: to each client at once
    serving    from a client: it serves from now on, by those sockets
    moved      from a client: it serves from now on, by sockets of its own
    leaving    from the one that serves: it is about to stop

A connection that ends says that its other end has died.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from podidentity.linux.local_socket import check_directory, open_local_socket, peer_uid
from podidentity.linux.passing import receive_sockets, send_sockets
from podidentity.nmi.adapters.sockets import ListeningSockets
from podidentity.supervisor import SOCKETS_WORD

SERVING_WORD = "serving"
MOVED_WORD = "moved"
LEAVING_WORD = "leaving"
_JOIN_SECONDS = 2.0  # one turn of the other's event loop


class Succession:
    """This NMI among those of its node. `path` is where they meet; None where there is no directory for it.

    The network namespace is part of the name: sockets of another one are of no use, and its NMI may see the same place.
    """

    def __init__(self, path: Path | None, sockets: ListeningSockets) -> None:
        self._path = path and path.with_name(f"{path.stem}-{_network_namespace()}{path.suffix}")
        self._sockets = sockets
        self._server: socket.socket | None = None
        self._clients: set[socket.socket] = set()
        self._link: socket.socket | None = None
        self.successor_word = ""
        """What a client said when it took over."""
        self.taken_over = asyncio.Event()
        """Set when a client serves in this NMI's place."""
        self.bereft = asyncio.Event()
        """Set when the one that serves is leaving or gone."""

    @property
    def is_linked(self) -> bool:
        """Whether another NMI serves."""
        return self._link is not None

    async def join(self) -> bool:
        """Become a client of the NMI that serves, and adopt its sockets; False when there is none.

        Raises `HostError` where others than root could have made the socket.
        """
        if self._path is None:
            return False
        check_directory(self._path.parent)
        try:
            link, sockets = await asyncio.to_thread(_connect, self._path)
        except OSError:
            return False
        if self._sockets.in_use():  # those are its own sockets, which it has handed over before
            for listening in sockets:
                listening.close()
        else:
            self._sockets.adopt(sockets)
        self.bereft.clear()
        self._link = link
        self._listen_to(link, self._hear_server)
        return True

    def serve(self, word: str) -> None:
        """Take the place of the one that serves, if there is one, and let others join. Raises `HostError`."""
        if self._path is None:
            return
        self.taken_over.clear()
        self._server = open_local_socket(self._path, socket.SOCK_SEQPACKET)
        self._server.setblocking(False)
        self._listen_to(self._server, self._accept)
        if self._link is not None:
            with contextlib.suppress(OSError):  # it has died meanwhile
                send_sockets(self._link, word)
            self._forget_link()

    async def leave(self, seconds: float) -> bool:
        """Ask the others to serve, and wait for one that does; whether there was one."""
        for client in self._clients:
            with contextlib.suppress(OSError):
                send_sockets(client, LEAVING_WORD)
        if self._clients:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.taken_over.wait()
        return self.taken_over.is_set()

    def close(self) -> None:
        """Hear nobody any more. What is at the path is left: it may be a successor's."""
        for channel in (self._server, *self._clients):
            if channel is not None:
                _close(channel)
        self._server = None
        self._clients.clear()
        if self._link is not None:
            self._forget_link()

    def _listen_to(self, channel: socket.socket, hear: Callable[[socket.socket], None]) -> None:
        asyncio.get_running_loop().add_reader(channel, hear, channel)

    def _accept(self, server: socket.socket) -> None:
        try:
            client, _ = server.accept()
        except OSError:
            return
        client.setblocking(False)
        try:
            if peer_uid(client) == os.geteuid():
                send_sockets(client, SOCKETS_WORD, self._sockets.in_use())
                self._clients.add(client)
                self._listen_to(client, self._hear_client)
                return
        except OSError:  # gone already
            pass
        client.close()

    def _hear_client(self, client: socket.socket) -> None:
        word = _hear(client)
        if word in {SERVING_WORD, MOVED_WORD}:
            self.successor_word = word
            self.taken_over.set()
        elif not word:
            self._clients.discard(client)
            _close(client)

    def _hear_server(self, link: socket.socket) -> None:
        word = _hear(link)
        if word == LEAVING_WORD:
            self.bereft.set()
        elif not word:
            self.bereft.set()
            self._forget_link()

    def _forget_link(self) -> None:
        if self._link is not None:
            _close(self._link)
            self._link = None


def _network_namespace() -> int:
    """Return the number by which the kernel tells this process's network namespace from others (namespaces(7))."""
    return Path("/proc/self/ns/net").stat().st_ino


def _connect(path: Path) -> tuple[socket.socket, list[socket.socket]]:
    """Raises OSError when nobody serves, or does not answer in time."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.settimeout(_JOIN_SECONDS)
        link.connect(str(path))
        if peer_uid(link) != os.geteuid():
            raise PermissionError("not ours")
        word, sockets = receive_sockets(link)
        if word != SOCKETS_WORD:
            raise ConnectionError(word)
    except OSError:
        link.close()
        raise
    link.setblocking(False)
    return link, sockets


def _hear(connection: socket.socket) -> str:
    """Return the next word; empty at the end of the connection."""
    try:
        word, sockets = receive_sockets(connection)
    except BlockingIOError:
        return " "
    except OSError:
        return ""
    for listening in sockets:  # nobody is to send any
        listening.close()
    return word


def _close(channel: socket.socket) -> None:
    asyncio.get_running_loop().remove_reader(channel)
    channel.close()
