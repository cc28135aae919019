"""The HTTP/1.1 listener: connections in, whole heads to `heads`, answers out. A security boundary; small on purpose.

An answer that needs no waiting is written in the call that brought the bytes; only a `Pending` starts a task. Nothing
here knows of tokens. Everything a client can use up is bounded: head size, headers, time, connections, bytes unread,
and its part of each turn of the event loop (`places`).
"""

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios
from collections.abc import Callable, Coroutine, Sequence
from email.utils import formatdate
from typing import NamedTuple, cast

from podidentity.core.tokens.imds import ParsedRequest, Refusal
from podidentity.nmi.answers import Answer, refuse
from podidentity.nmi.app import App, Pending
from podidentity.nmi.doors import Doors, Listen, Prepare, open_tcp
from podidentity.nmi.heads import HEAD_LIMIT_BYTES, HeadMeaning, Heads
from podidentity.nmi.places import READING_COST, Limits, NodePlaces, Places, TurnShares
from podidentity.nmi.ports import LOCAL_PEER, Peer
from podidentity.nmi.tcp_info import is_reset

_log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]

HEAD_SECONDS = 10  # from the first byte of a head to its end: clients send it in one packet
IDLE_SECONDS = 120  # longer than SDKs keep an idle connection
_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: closing sends RST and forgets what is unsent
_IDLE_GRACE_SECONDS = 0.5  # clients that ask all the time ask within it
_BACKLOG_LOOK_SECONDS = 0.02
NODE_LIMITS = Limits(per_address=256, in_all=256)
"""For the node's own programs: apart from the pods', who lose nothing by what happens there."""
_GONE_SECONDS = 2  # longer than IMDS takes; then it is asked whether a client that ended its side still listens
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NODE = "node"

Admit = Callable[[socket.socket, tuple[str, int]], Peer | None]


class Site(NamedTuple):
    """What one listening socket serves, and whom: `admit` returns the peer, or None to refuse the connection.

    With `node_limits` its clients are the node's programs, which count as one and take nothing of the pods' places.
    With `limits` they are pods that have places of their own here, each its own unless `client_of` counts some as one.
    `prepare` sets further options of each socket before it listens, of which there are as many as `queues`. `heads` is
    None for what is asked of the metadata address.
    """

    answer: Callable[[ParsedRequest, Peer], Answer | Pending]
    admit: Admit
    node_limits: Limits | None = None
    prepare: Prepare = lambda _: None
    queues: int = 1
    limits: Limits | None = None
    heads: Heads | None = None
    client_of: Callable[[Peer], str] | None = None


class Listener:
    """All connections of the daemon. `spawn` starts a task in its task group."""

    def __init__(self, app: App, heads: Heads, spawn: Spawn, listen: Listen, limits: Limits | None = None) -> None:
        self.app = app
        self.heads = heads
        self.spawn = spawn
        self.places = Places(limits or Limits())
        self.shares = TurnShares()
        self.second = 0
        self.date = _date_line()
        self.draining = False
        self.emptied = asyncio.Event()
        self.connections: set[Connection] = set()
        self._listen = listen
        self.doors = Doors()

    async def listen(self, address: str, port: int, site: Site) -> int:
        """Listen, and return the port. Raises `HostError` when it is taken."""
        queues = open_tcp(self._listen, address, port, site.queues, site.prepare)
        await self.serve(queues, site)
        bound: int = queues[0].getsockname()[1]
        return bound

    async def serve(self, queues: Sequence[socket.socket], site: Site) -> None:
        """Serve whoever connects to sockets that are bound, of TCP or of Unix."""
        places = NodePlaces(site.node_limits) if site.node_limits else self.places
        places = Places(site.limits) if site.limits else places
        await self.doors.add(queues, lambda: Connection(self, site, places))

    async def run(self) -> None:
        """End connections that idle or dawdle, until cancelled."""
        while True:
            await asyncio.sleep(1)
            self.second += 1
            self.shares.begin_second()
            self.date = _date_line()
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

    async def finish(self, seconds: float) -> None:
        """Finish what is in flight, at most `seconds`. New connections are held back already, or another's.

        A connection that idles may carry a request at any moment, and closing it then would reset the client: its next
        answer ends it, and only one that stays idle is closed.
        """
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.sleep(_IDLE_GRACE_SECONDS)
                while self.doors.has_unaccepted():  # noqa: ASYNC110  # the kernel's queue: nobody sets an event
                    await asyncio.sleep(_BACKLOG_LOOK_SECONDS)
                for connection in tuple(self.connections):
                    connection.close_if_idle()
                if self.connections:
                    await self.emptied.wait()

    async def go_on(self) -> None:
        """Take connections again, after `doors.leave` and `finish`."""
        self.draining = False
        self.emptied.clear()
        await self.doors.reopen()

    def close(self) -> None:
        """Close everything now."""
        self.doors.close()
        for connection in tuple(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One client. Requests on it are answered one after the other."""

    def __init__(self, listener: Listener, site: Site, places: Places) -> None:
        self._listener = listener
        self._site = site
        self._places = places
        self._heads = site.heads or listener.heads
        self._buffer = bytearray()
        self._searched = 0  # how much of it holds no end of a head for certain
        self._task: asyncio.Task[None] | None = None
        self._full = False
        self._queued = False
        self._active_second = listener.second
        self._probe_second = 0  # when a client that ended its side was asked whether it is there; 0: not yet
        self._interim = False  # whether the client of the request under way knows interim answers
        self.half_closed = False
        self.peer = Peer("")
        self.client = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the client or end the connection at once."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are transports without being called so
        self._transport.set_write_buffer_limits(high=0)  # what the kernel does not take is not added to
        name = transport.get_extra_info("peername")
        if name is None:  # gone already
            self._transport.abort()
            return
        address, port = name[:2] if isinstance(name, tuple) else (LOCAL_PEER, 0)  # a Unix client has no name
        peer = self._site.admit(transport.get_extra_info("socket"), (address, port))
        if peer is not None:
            self.client = self._client_of(peer)
        if peer is None or not self._places.make_room(self.client):
            self._transport.abort()
            return
        self.peer = peer
        self._listener.connections.add(self)
        self._places.add(self)

    def _client_of(self, peer: Peer) -> str:
        """Return whose places and turns the connection takes."""
        if self._site.node_limits:
            return _NODE
        return self._site.client_of(peer) if self._site.client_of else peer.address

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """End the work that the client no longer waits for."""
        if self._task is not None:
            self._task.cancel()
        listener = self._listener
        if self in listener.connections:
            listener.connections.remove(self)
            self._places.remove(self)
            if listener.draining and not listener.connections:
                listener.emptied.set()

    def data_received(self, data: bytes) -> None:
        """Answer a head that is known at once; all else goes the longer way."""
        if not self._buffer:  # a head's time runs from its first byte
            self._active_second = self._listener.second
            if self._task is None and not self._full:
                meaning = self._heads.recall(data)
                if meaning is not None and self._listener.shares.take(self.client):
                    self._serve(meaning)
                    return
        self._buffer += data
        self._go_on()

    def eof_received(self) -> bool:
        """Return whether the connection stays: a client that sends no more still gets what it has asked for."""
        self.half_closed = True
        self._active_second = self._listener.second
        return self._task is not None or bool(self._buffer and (self._queued or self._full))

    def pause_writing(self) -> None:
        """Stop answering a client that does not read."""
        self._full = True

    def resume_writing(self) -> None:
        """Go on with the requests that have arrived."""
        self._full = False
        self._go_on()

    def check_time(self) -> None:
        """End the connection if it idles or if a head has been under way for too long. To be called once a second."""
        silent_seconds = self._listener.second - self._active_second
        if self._task is not None:
            if self.half_closed and silent_seconds >= _GONE_SECONDS and self.is_standing:
                self._check_client()
        elif self._transport.is_closing():
            if silent_seconds > IDLE_SECONDS:  # it does not take what it was sent, and would be waited for
                self.abort()
        elif self._buffer and silent_seconds > HEAD_SECONDS:
            self._write(refuse(Refusal(408, "the request did not arrive in time")), keep_open=False)
        elif silent_seconds > IDLE_SECONDS:
            self._transport.close()

    def close_if_idle(self) -> None:
        """Close unless a request is being answered or arriving."""
        if self._task is None and not self._buffer and not self._has_unread():
            self._transport.close()

    @property
    def is_standing(self) -> bool:
        """Whether it is still there to be given up."""
        return not self._transport.is_closing()

    def worth(self) -> tuple[int, int]:
        """Return what orders connections by their client's loss: perhaps gone, idle, busy; then by silence."""
        busy = self._task is not None or bool(self._buffer)
        return (0 if self.half_closed else 1 + busy), self._active_second

    def give_up(self) -> None:
        """Make room for another client: an idle connection ends in order, any other is reset."""
        if self._task is None and not self._buffer and not self._transport.get_write_buffer_size():
            self._transport.close()
        else:
            self.abort()

    def _has_unread(self) -> bool:
        """Whether bytes have arrived that the event loop has not delivered yet."""
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

    def answer_next(self) -> None:
        """Answer one request that was put off to this turn of the event loop."""
        self._queued = False
        self._go_on()
        if not self._queued and self.is_standing and not self.half_closed:
            self._transport.resume_reading()

    def _check_client(self) -> None:
        """Find out whether a client that ended its side is gone: only then does its kernel reset what arrives.

        An interim answer is all that HTTP allows before the answer; every client must skip it (RFC 9110,
        section 15.2). One of HTTP/1.0 would not, and is waited for.
        """
        if not self._probe_second:
            self._probe_second = self._listener.second
            if self._interim:
                self._transport.write(_CONTINUE)
        elif is_reset(self._transport.get_extra_info("socket")):
            self.abort()

    def _go_on(self) -> None:
        if self._buffer and self._task is None and not (self._full or self._queued or self._transport.is_closing()):
            self._answer_first()
        if len(self._buffer) > HEAD_LIMIT_BYTES and not self._queued and self.is_standing:
            self.abort()  # sends on and on without waiting for an answer

    def _answer_first(self) -> None:
        """Answer the first request of the buffer, if it is whole; one in a turn of the loop, so that all get theirs."""
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        if end > HEAD_LIMIT_BYTES or (end < 0 and len(self._buffer) > HEAD_LIMIT_BYTES):
            self._buffer.clear()
            self._write(refuse(Refusal(431, f"the head is over {HEAD_LIMIT_BYTES} bytes")), keep_open=False)
        elif end < 0:
            self._searched = max(0, len(self._buffer) - 3)
            if self.half_closed:
                self._transport.close()
        elif self._listener.shares.take(self.client, READING_COST):
            head = bytes(self._buffer[: end + 4])
            del self._buffer[: end + 4]
            self._searched = 0
            self._active_second = self._listener.second
            self._serve(self._heads.understand(head))
            if self._buffer and self._task is None and self.is_standing:
                self._enqueue()
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        """Put the next request off to another turn; nothing more is read until then."""
        self._queued = True
        self._transport.pause_reading()
        self._listener.shares.enqueue(self)

    def _serve(self, meaning: HeadMeaning) -> None:
        request, keep_open = meaning.request, meaning.keep_open
        try:
            answer = self._site.answer(request, self.peer)
        except Exception:  # noqa: BLE001  # the outermost loop of requests: a bug in one must not end the others
            answer = self._listener.app.fail(request, self.peer)
        if isinstance(answer, Pending):
            self._interim = meaning.interim
            self._task = self._listener.spawn(self._wait(answer, keep_open=keep_open))
        else:
            self._write(answer, keep_open=keep_open, without_content=meaning.without_content)

    async def _wait(self, pending: Pending, *, keep_open: bool) -> None:
        try:
            answer = await self._listener.app.wait(pending)
        except Exception:  # noqa: BLE001  # as in `_serve`
            answer = self._listener.app.fail(pending.request, self.peer)
        self._task = None
        self._active_second = self._listener.second
        self._write(answer, keep_open=keep_open)
        self._go_on()

    def _write(self, answer: Answer, *, keep_open: bool, without_content: bool = False) -> None:
        date = self._listener.date
        dated, response = answer.dated
        if dated is not date:
            response = _with_headers(answer.body, date)
            answer.dated = date, response
        stays = keep_open and answer.status < 500 and not self._listener.draining  # noqa: PLR2004  # server errors
        stays = stays and bool(self._buffer or not self.half_closed)
        if not stays:
            response = _with_headers(response, b"Connection: close\r\n")
        self._transport.write(response[: response.index(b"\r\n\r\n") + 4] if without_content else response)
        if not stays:
            self._transport.close()


def _with_headers(response: bytes, lines: bytes) -> bytes:
    """Put whole header lines behind the status line."""
    status, line_end, remaining = response.partition(b"\r\n")
    return b"%b%b%b%b" % (status, line_end, lines, remaining)


def _date_line() -> bytes:
    """Write the header of RFC 9110, section 6.6.1, once a second rather than with each answer."""
    return f"Date: {formatdate(usegmt=True)}\r\n".encode()
