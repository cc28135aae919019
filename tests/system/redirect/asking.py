"""Clients that ask all the time, each a process in its pod: what came of each request, and the longest gap."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from system.redirect.network import Namespace
from system.redirect.node import HEAD, TARGET
from waiting import until

_PROGRAM = f"""
import collections, json, socket, sys, threading, time
request, keep = {HEAD.format(target=TARGET)!r}.encode(), sys.argv[1] == "keep"
counts, stop = collections.Counter(), threading.Event()
gap, previous = 0.0, time.monotonic()

def answer(connection):
    connection.sendall(request)
    received = b""
    while b"\\r\\n\\r\\n" not in received or len(received.partition(b"\\r\\n\\r\\n")[2]) < length(received):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("ended")
        received += piece
    counts[received.split(b" ")[1].decode()] += 1
    return b"connection: close" in received.lower()

def length(received):
    return int(received.lower().partition(b"content-length: ")[2].split(b"\\r\\n")[0])

def ask():
    global gap, previous
    while not stop.is_set():
        try:
            with socket.create_connection(("169.254.169.254", 80), 20) as connection:
                last = False
                while not last and not stop.is_set():
                    last = answer(connection) or not keep
                    now = time.monotonic()
                    gap, previous = max(gap, now - previous), now
                    time.sleep(0.005)
        except OSError as error:
            counts[repr(error)] += 1
            time.sleep(0.005)

thread = threading.Thread(target=ask)
thread.start()
for line in sys.stdin:
    print(json.dumps([counts, max(gap, time.monotonic() - previous)]), flush=True)
    if line == "forget\\n":
        gap, previous = 0.0, time.monotonic()
stop.set()
thread.join()
"""


@dataclass
class Client:
    """One of them. With `keep` it keeps its connection until an answer says that it was the last."""

    process: subprocess.Popen[bytes]
    keep: bool
    counts: dict[str, int] = field(default_factory=dict)
    """What came of its requests so far: statuses, and errors."""

    def look(self, word: str = "look") -> float:
        """Refresh `counts`; the longest time without an answer, in seconds, since `forget`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()
        self.counts, gap = json.loads(self.process.stdout.readline())
        return float(gap)

    def wait_for_answers(self, count: int) -> None:
        """Wait for so many more."""
        self.look()
        enough = self.counts.get("200", 0) + count

        def has_enough() -> bool:
            self.look()
            return self.counts.get("200", 0) >= enough

        until(has_enough, f"{count} more answers")


@contextlib.contextmanager
def asking(pod: Namespace) -> Iterator[list[Client]]:
    """Two clients, of which one keeps its connection, that are being answered."""
    with contextlib.ExitStack() as opened:
        clients = []
        for word in ("keep", "new"):
            process = pod.popen(sys.executable, "-c", _PROGRAM, word, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            opened.enter_context(process)  # which ends with its input
            clients.append(Client(process, word == "keep"))
        for client in clients:
            client.wait_for_answers(50)
        yield clients
