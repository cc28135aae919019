"""Duties of the first process of a PID namespace: orphans become its children, and nobody else reaps them.

Also measures the memory of all the lab's processes.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LOOK_SECONDS = 2.0

Report = Callable[[dict[str, Any]], None]


async def run_reaper() -> None:
    """Reap orphans until cancelled.

    A child that is still a zombie after a whole round is nobody's: the event loop reaps its own within milliseconds.
    """
    zombies_before: frozenset[int] = frozenset()
    while True:
        zombies = frozenset(_zombies())
        for pid in zombies & zombies_before:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222  # WNOHANG: it does not wait
        zombies_before = zombies - zombies_before
        await asyncio.sleep(LOOK_SECONDS)


def memory_kib() -> int:
    """Return what the lab's processes use, in KiB, shared pages counted once (proportional set size)."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def _zombies() -> Iterator[int]:
    for thread in Path(f"/proc/{os.getpid()}/task").glob("*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            yield from (pid for pid in map(int, (thread / "children").read_text().split()) if _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    try:
        # The program's name, in brackets, may contain anything: the state stands after the last one.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
