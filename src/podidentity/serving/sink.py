"""Standard error, written without ever waiting for whoever reads it.

A daemon that waits for its log stops with it: a container runtime that is slow, a full disk. A pipe or a terminal is
opened once more for ourselves, since O_NONBLOCK would count for every process that shares the descriptor; anything else
that may block is asked first. What cannot be written waits, up to a bound, and is dropped and counted beyond it.
"""

import asyncio
import contextlib
import functools
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable

WAITING_LIMIT_BYTES = 256 * 1024
"""Some seven hundred lines of each kind: what a reader lacks for a moment, and nothing that matters in memory."""
_LOOK_AGAIN_SECONDS = 0.1
_ATOMIC_BYTES = select.PIPE_BUF  # of a pipe that poll(2) calls writable, so much takes a write without waiting

Report = Callable[[int], None]


class Sink:
    """Where log lines go. Any thread may write; what is left over is written by the event loop."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._never_blocks = _open_for_ourselves(descriptor)
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._waiting_lines = 0
        self._scheduled = False
        self.dropped_count = 0
        self.report_dropped: Report = lambda _: None
        """Receives how many lines were dropped, once lines flow again."""
        self._unreported = 0

    def write(self, lines: bytes, count: int = 1) -> None:
        """Write whole lines, now or when somebody reads; drops them when too much waits already."""
        with self._lock:
            if self._waiting and len(self._waiting) + len(lines) > WAITING_LIMIT_BYTES:
                self._drop(count)
            else:
                self._waiting += lines
                self._waiting_lines += count
            self._write_waiting()
            has_rest = bool(self._waiting)
        if has_rest:
            self._schedule()

    def flush(self, seconds: float) -> None:
        """Write what waits, for at most `seconds`: at the end of the process."""
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:
                self._write_waiting()
                if not self._waiting:
                    return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            _poll(self._descriptor, remaining)

    def _drop(self, count: int) -> None:
        self.dropped_count += count
        self._unreported += count

    def _write_waiting(self) -> None:
        """Write what can be written; what fails for another reason than a slow reader is dropped."""
        while self._waiting:
            if not self._never_blocks and not _poll(self._descriptor, 0):
                return
            piece = self._waiting if self._never_blocks else self._waiting[:_ATOMIC_BYTES]
            try:
                size = os.write(self._descriptor, piece)
            except BlockingIOError:
                return
            except OSError:
                self._drop(self._waiting_lines)
                size = len(self._waiting)
            del self._waiting[:size]
        self._waiting_lines = 0

    def _schedule(self) -> None:
        """Have the event loop go on; without one, the next line or the end of the process does."""
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            if not self._scheduled:
                self._scheduled = True
                loop.call_later(_LOOK_AGAIN_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        with self._lock:
            self._write_waiting()
            has_rest = bool(self._waiting)
            count, self._unreported = (self._unreported, 0) if not has_rest else (0, self._unreported)
        if has_rest:
            self._schedule()
        elif count:
            self.report_dropped(count)


@functools.cache
def standard_error() -> Sink:
    """Return the sink of this process's standard error."""
    return Sink(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2)


def _open_for_ourselves(descriptor: int) -> tuple[int, bool]:
    """Return a descriptor to write to, and whether a write to it never waits.

    A file is written as it is: poll(2) calls it writable always, and only its disk can be slow.
    """
    with contextlib.suppress(OSError):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return descriptor, True
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):  # a new description of the same pipe, with flags of its own
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            return os.open(f"/proc/self/fd/{descriptor}", flags), True
    return descriptor, False


def _poll(descriptor: int, seconds: float) -> bool:
    """Whether `descriptor` takes bytes, or an error is to be had, within `seconds`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
