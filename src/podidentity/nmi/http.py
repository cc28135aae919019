"""The HTTP/1.1 listener: connections in, whole heads to `heads`, answers out. A security boundary; small on purpose.

An answer that needs no waiting is written in the call that brought the bytes; only a `Pending` starts a task. Nothing
here knows of tokens. Everything a client can use up is bounded: head size, headers, time, connections, bytes unread.
Constructed by `daemon`.
"""

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import NamedTuple, cast

from podidentity.core.imds import Parsed, Refusal
from podidentity.errors import HostError
from podidentity.linux.link import record_links
from podidentity.nmi.answers import Answer, refuse
from podidentity.nmi.app import App, Pending
from podidentity.nmi.heads import HEAD_LIMIT_BYTES, Heads, Understood
from podidentity.nmi.ports import Peer

_log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]

HEAD_SECONDS = 10  # from the first byte of a head to its end: clients send it in one packet
IDLE_SECONDS = 120  # longer than SDKs keep an idle connection
BACKLOG = 1024
SEND_BUFFER_BYTES = 16 * 1024
"""Several answers. Without it the kernel lets what one client does not read grow to megabytes, at our expense."""
_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: closing sends RST and forgets what is unsent
_IDLE_GRACE_SECONDS = 0.5  # clients that ask all the time ask within it
_BACKLOG_LOOK_SECONDS = 0.02
_TCP_INFO_BYTES = 104
_UNACCEPTED = slice(24, 28)  # tcp_info.tcpi_unacked, which of a listening socket is the length of its queue


class Limits(NamedTuple):
    """How many connections there may be. When all are taken, whoever has most gives one up for whoever has less."""

    per_address: int = 256
    in_all: int = 4096


class Site(NamedTuple):
    """What one listening socket serves, and whom: `admit` names the peer, or gives None to refuse the connection."""

    answer: Callable[[Parsed, Peer], Answer | Pending]
    admit: Callable[[socket.socket, tuple[str, int]], Peer | None]


class Listener:
    """All connections of the daemon. `spawn` starts a task in its task group."""

    def __init__(self, app: App, heads: Heads, spawn: Spawn, limits: Limits | None = None) -> None:
        self.app = app
        self.heads = heads
        self.spawn = spawn
        self.limits = limits or Limits()
        self.second = 0
        self.draining = False
        self.emptied = asyncio.Event()
        self.connections: set[Connection] = set()
        self.per_address: Counter[str] = Counter()
        self._servers: list[asyncio.Server] = []
        self._listening: list[socket.socket] = []

    async def listen(self, address: str, port: int, site: Site) -> int:
        """Listen, and return the port. Raises `HostError` when it is taken."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # of what it accepts, too
            listening.bind((address, port))
        except OSError as error:
            listening.close()
            told = f"Cannot listen on {address}:{port}: {error.strerror}. Is another NMI running on this node?"
            raise HostError(told) from None
        record_links(listening)
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self, site), sock=listening, backlog=BACKLOG)
        self._servers.append(server)
        self._listening.append(listening)
        bound: int = listening.getsockname()[1]
        return bound

    def has_room(self, address: str) -> bool:
        """Say whether one more connection may come in from `address`; makes room where that is fair.

        A few pods could otherwise take every connection of the node, and the CSI driver's, by keeping them open.
        """
        held = self.per_address[address]
        if held >= self.limits.per_address or len(self.connections) < self.limits.in_all:
            return held < self.limits.per_address
        greediest, most = self.per_address.most_common(1)[0]
        if most <= held + 1:
            return False
        its = [one for one in self.connections if one.peer.address == greediest and one.may_go]
        if its:
            min(its, key=Connection.worth).give_up()
        return bool(its)

    async def run(self) -> None:
        """End connections that idle or dawdle, until cancelled."""
        while True:
            await asyncio.sleep(1)
            self.second += 1
            for connection in tuple(self.connections):
                connection.check_time()

    def reset_pod(self, uid: str) -> None:
        """Reset the connections of a pod that is gone: its address may be another's in a moment."""
        for connection in tuple(self.connections):
            if connection.peer.uid == uid:
                connection.abort()

    def reset_link(self, interface: int) -> None:
        """Reset the connections that came in by an interface that is gone."""
        for connection in tuple(self.connections):
            if connection.peer.link is not None and connection.peer.link[0] == interface:
                connection.abort()

    async def drain(self, seconds: float) -> None:
        """Finish what is in flight, at most `seconds`, then close everything. New connections are held back already.

        A connection that idles may carry a request at any moment, and closing it then would reset the client: its next
        answer ends it, and only one that stays idle is closed.
        """
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.sleep(_IDLE_GRACE_SECONDS)
                while any(map(_waits, self._listening)):  # noqa: ASYNC110  # the kernel's queue: nobody sets an event
                    await asyncio.sleep(_BACKLOG_LOOK_SECONDS)
                for connection in tuple(self.connections):
                    connection.close_if_idle()
                if self.connections:
                    await self.emptied.wait()
        self.close()

    def close(self) -> None:
        """Close everything now."""
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client. Requests on it are answered one after the other."""

    def __init__(self, listener: Listener, site: Site) -> None:
        self._listener = listener
        self._site = site
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._full = False
        self._seen = listener.second
        self.peer = Peer("")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the client or end the connection at once."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are transports without being called so
        self._transport.set_write_buffer_limits(high=0)  # what the kernel does not take is not added to
        name = transport.get_extra_info("peername")
        if name is None:  # gone before we looked
            self._transport.abort()
            return
        address, port = name[:2]
        peer = self._site.admit(transport.get_extra_info("socket"), (address, port))
        listener = self._listener
        if peer is None or not listener.has_room(address):
            self._transport.abort()
            return
        self.peer = peer
        listener.connections.add(self)
        listener.per_address[address] += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """End what the client no longer waits for."""
        if self._task is not None:
            self._task.cancel()
        listener = self._listener
        if self in listener.connections:
            listener.connections.remove(self)
            listener.per_address[self.peer.address] -= 1
            if not listener.per_address[self.peer.address]:
                del listener.per_address[self.peer.address]
            if listener.draining and not listener.connections:
                listener.emptied.set()

    def data_received(self, data: bytes) -> None:
        """Answer a head that is known at once; all else goes the longer way."""
        if not self._buffer:  # a head's time runs from its first byte
            self._seen = self._listener.second
            if self._task is None and not self._full:
                understood = self._listener.heads.known(data)
                if understood is not None:
                    self._serve(understood)
                    return
        self._buffer += data
        self._go_on()

    def pause_writing(self) -> None:
        """Stop answering a client that does not read."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on where we stopped."""
        self._full = False
        self._go_on()

    def check_time(self) -> None:
        """End the connection if it idles or if a head has been under way for too long; called once a second."""
        waited = self._listener.second - self._seen
        if self._task is not None:
            return
        if self._transport.is_closing():
            if waited > IDLE_SECONDS:  # it does not take what it was sent, and would be waited for
                self.abort()
        elif self._buffer and waited > HEAD_SECONDS:
            self._write(refuse(Refusal(408, "the request did not arrive in time")), keep_open=False)
        elif waited > IDLE_SECONDS:
            self._transport.close()

    def close_if_idle(self) -> None:
        """Close unless a request is being answered or arriving."""
        if self._task is None and not self._buffer and not self._unread():
            self._transport.close()

    @property
    def may_go(self) -> bool:
        """Whether it is still there to be given up."""
        return not self._transport.is_closing()

    def worth(self) -> tuple[bool, int]:
        """Order connections by what their client would miss: idle before busy, then by how long nothing has come."""
        return self._task is not None or bool(self._buffer), self._seen

    def give_up(self) -> None:
        """Make room for another client: an idle one is told so by an orderly end, any other is reset."""
        if self._task is None and not self._buffer and not self._transport.get_write_buffer_size():
            self._transport.close()
        else:
            self.abort()

    def _unread(self) -> bool:
        """Say whether bytes have arrived that the loop has not given us yet."""
        count = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        return any(count)

    def abort(self) -> None:
        """Reset the connection, and drop what was sent but not received.

        The kernel would go on retransmitting it to the address, which may be another pod's by then.
        """
        connection = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _go_on(self) -> None:
        while self._buffer and self._task is None and not self._full and not self._transport.is_closing():
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if len(head) > HEAD_LIMIT_BYTES:
                self._write(refuse(Refusal(431, f"the head is over {HEAD_LIMIT_BYTES} bytes")), keep_open=False)
            elif not end:
                return
            else:
                self._buffer = rest
                self._seen = self._listener.second
                self._serve(self._listener.heads.understand(head + end))
        if len(self._buffer) > HEAD_LIMIT_BYTES:
            self._transport.abort()  # sends on and on without waiting for an answer

    def _serve(self, understood: Understood) -> None:
        parsed, keep_open = understood
        try:
            answer = self._site.answer(parsed, self.peer)
        except Exception:  # noqa: BLE001  # the outermost loop of requests: one that breaks us must not end the others
            answer = self._listener.app.failed(parsed, self.peer)
        if isinstance(answer, Pending):
            self._task = self._listener.spawn(self._wait(answer, keep_open=keep_open))
        else:
            self._write(answer, keep_open=keep_open)

    async def _wait(self, pending: Pending, *, keep_open: bool) -> None:
        try:
            answer = await self._listener.app.wait(pending)
        except Exception:  # noqa: BLE001  # as in `_serve`
            answer = self._listener.app.failed(pending.parsed, self.peer)
        self._task = None
        self._seen = self._listener.second
        self._write(answer, keep_open=keep_open)
        self._go_on()

    def _write(self, answer: Answer, *, keep_open: bool) -> None:
        if keep_open and answer.status < 500 and not self._listener.draining:  # noqa: PLR2004  # server errors
            self._transport.write(answer.body)
            return
        head, end, body = answer.body.partition(b"\r\n\r\n")
        self._transport.write(head + b"\r\nConnection: close" + end + body)
        self._transport.close()


def _waits(listening: socket.socket) -> bool:
    """Say whether the kernel holds connections that have not been accepted yet."""
    return any(listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)[_UNACCEPTED])
