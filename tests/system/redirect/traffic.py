"""Clients and servers for the tests of the redirect: who answers, how often, and packets that no client would send."""

import contextlib
import itertools
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from system.redirect.network import IMDS, Namespace

SYN, FIN, RST, ACK = 0x02, 0x01, 0x04, 0x10


class Server:
    """Answers each connection with its name, until closed; used for IMDS's stand-in and in NMI's place."""

    def __init__(self, namespace: Namespace, address: str, port: int, name: str) -> None:
        self._name = name
        self._listener = namespace.listen(address, port)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        body = self._name.encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            open_connections: set[socket.socket] = set()
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stopped:
                        for connection in open_connections:
                            connection.close()
                        self._listener.close()
                        return
                    if key.fileobj is self._listener:
                        connection, _ = self._listener.accept()
                        selector.register(connection, selectors.EVENT_READ)
                        open_connections.add(connection)
                        continue
                    assert isinstance(key.fileobj, socket.socket)
                    if not self._answer(key.fileobj, answer):
                        selector.unregister(key.fileobj)
                        open_connections.discard(key.fileobj)
                        key.fileobj.close()

    def _answer(self, connection: socket.socket, answer: bytes) -> bool:
        try:
            if not connection.recv(65536):
                return False
            connection.sendall(answer)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Stop as a killed process does: the listener and all connections go at once."""
        self._stop.close()
        self._thread.join(10)
        self._stopped.close()


def ask(connection: socket.socket) -> str:
    """Ask once on an open connection; the body, "" when it ends."""
    connection.sendall(b"GET /metadata/identity/oauth2/token HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n")
    return connection.recv(65536).partition(b"\r\n\r\n")[2].decode()


def fetch(namespace: Namespace, port: int = 80, address: str = IMDS, timeout_seconds: float = 1.0) -> str:
    """Ask once from inside `namespace`: the body, or the name of the error.

    The connection ends with a reset: nothing is sent from this side afterwards, so that who counts packets from now on
    counts none of this request's.
    """

    def once() -> str:
        try:
            with socket.create_connection((address, port), timeout_seconds) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return ask(connection)
        except OSError as error:
            return type(error).__name__

    return namespace.call(once)


@contextlib.contextmanager
def hammering(pods: Sequence[Namespace], *, odd: bool = True) -> Iterator["Counter[str]"]:
    """Clients in every pod that ask as fast as they can, and bare SYNs by the thousand, while the body runs.

    With `odd`, also what connection tracking calls invalid, and SYNs to port 443.
    """
    seen: Counter[str] = Counter()
    stop = threading.Event()
    kinds = ((80, SYN), (80, RST), (80, SYN | FIN), (443, SYN)) if odd else ((80, SYN),)
    threads = []
    for pod in pods:
        works = (lambda: _ask_all_the_time(seen, stop), lambda: _flood(seen, stop, kinds))
        threads += [threading.Thread(target=pod.call, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 10
        while min(seen["syn"], seen.total() - seen["syn"]) == 0 and time.monotonic() < deadline:
            stop.wait(0.01)
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


def _ask_all_the_time(seen: "Counter[str]", stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with socket.create_connection((IMDS, 80), 0.3) as connection:
                seen[ask(connection) or "reset"] += 1
        except OSError as error:
            seen[type(error).__name__] += 1


def _flood(seen: "Counter[str]", stop: threading.Event, kinds: Sequence[tuple[int, int]]) -> None:
    """Send 10,000 segments a second; made beforehand, so that the test's other threads get their turn."""
    with raw_socket() as sender:
        source = own_address()
        segments = [segment(source, 20000 + number, *kind) for number in range(500) for kind in kinds]
        for some in itertools.cycle([segments[start : start + 20] for start in range(0, len(segments), 20)]):
            if stop.wait(0.002):
                return
            for one in some:
                send(sender, one)
            seen["syn"] += len(some)


def raw_socket() -> socket.socket:
    """Open a socket that sends TCP segments as they are given."""
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)


def own_address() -> str:
    """Return the address from which this namespace asks IMDS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((IMDS, 80))
        address: str = probe.getsockname()[0]
        return address


def segment(source: str, source_port: int, port: int, flags: int) -> bytes:
    """Write one TCP segment with any flags from `source` to IMDS."""
    head = struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, flags, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(IMDS) + struct.pack("!BBH", 0, 6, len(head))
    return head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]


def send(sender: socket.socket, one: bytes) -> None:
    """Send one segment; the routing guard may answer "administratively prohibited"."""
    with contextlib.suppress(OSError):
        sender.sendto(one, (IMDS, 0))


def checksum(packet: bytes) -> int:
    """Return the Internet checksum."""
    words: tuple[int, ...] = struct.unpack(f"!{len(packet) // 2}H", packet)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
