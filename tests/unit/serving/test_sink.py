"""Logs that nobody reads: real pipes, sockets and terminals that are full."""

import asyncio
import fcntl
import os
import pty
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from podidentity.serving.sink import WAITING_LIMIT_BYTES, Sink

LINE = b"x" * 99 + b"\n"
MORE_THAN_ANYTHING_HOLDS = 20_000


@dataclass
class Ends:
    """The end to which a sink writes, and the end to read from."""

    write: int
    read: int


@pytest.fixture(params=["pipe", "socket", "terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Each kind of standard error that may block its writer."""
    if request.param == "pipe":
        read, write = os.pipe()
    elif request.param == "socket":
        read, write = (end.detach() for end in socket.socketpair())
    else:
        read, write = pty.openpty()
        attributes = termios.tcgetattr(write)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(write, termios.TCSANOW, attributes)
    yield Ends(write, read)
    os.close(write)
    os.close(read)


def read_all(descriptor: int) -> bytes:
    """Read what is available now."""
    os.set_blocking(descriptor, False)
    received = b""
    try:
        while piece := os.read(descriptor, 65536):
            received += piece
    except BlockingIOError:
        pass
    return received


async def test_nobody_waits_for_a_log_that_is_not_read(ends: Ends) -> None:
    """Lines over the bound are dropped as a whole and counted.

    When somebody reads again, the waiting lines come and the number of dropped ones is reported.
    """
    sink = Sink(ends.write)
    told: list[int] = []
    sink.report_dropped = told.append
    for _ in range(MORE_THAN_ANYTHING_HOLDS):
        sink.write(LINE)
    assert sink.dropped_count > 0
    received = b""
    async with asyncio.timeout(30):
        while not told:
            received += read_all(ends.read)
            await asyncio.sleep(0)
    sink.write(b"end\n")
    async with asyncio.timeout(30):
        while not received.endswith(b"end\n"):  # a terminal's bytes come a moment later
            received += read_all(ends.read)
            await asyncio.sleep(0)
    dropped = sink.dropped_count
    assert received.endswith(LINE + b"end\n")
    assert received.count(LINE) == MORE_THAN_ANYTHING_HOLDS - dropped
    assert len(received) == received.count(LINE) * len(LINE) + len(b"end\n")
    assert told == [dropped]
    assert len(received) >= WAITING_LIMIT_BYTES - len(LINE)


def test_others_may_go_on_waiting(ends: Ends) -> None:
    """The inherited descriptor stays blocking: its flags count for every process that shares it."""
    Sink(ends.write).write(LINE)
    assert not fcntl.fcntl(ends.write, fcntl.F_GETFL) & os.O_NONBLOCK


def test_the_end_waits_for_a_moment_only(ends: Ends) -> None:
    """At the end of a process waiting lines are written as far as somebody reads, within the time given."""
    sink = Sink(ends.write)
    for _ in range(MORE_THAN_ANYTHING_HOLDS):
        sink.write(LINE)
    started = time.monotonic()
    sink.flush(0.2)
    assert time.monotonic() - started < 5
    before = len(read_all(ends.read))
    sink.flush(0.2)
    assert before
    assert read_all(ends.read)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_process_whose_log_nobody_reads_ends_in_time(log_format: str) -> None:
    """A process that logs like the daemons runs to its end and exits with its own status."""
    program = (
        "import logging; from podidentity.serving import logs\n"
        f"logs.set_up({log_format!r}, 0)\n"
        "for number in range(20000): logging.getLogger('podidentity.x').info('line %d', number)\n"
        "print('done', flush=True)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert process.wait(30) == 0
