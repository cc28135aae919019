"""What the kernel says of a process: its memory and its processor time."""

import contextlib
import time
from pathlib import Path


def resident_mib(pid: int) -> float:
    """Return how much memory a process has in RAM, in MiB."""
    return _status_mib(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    """Return the most memory that a process ever had in RAM, in MiB."""
    return _status_mib(pid, "VmHWM")


def command_lines() -> dict[int, list[bytes]]:
    """Return the words by which each process of this machine was started, by its ID.

    A pattern with a file in it ("/proc/*/cmdline") would fail when a process ends between its name and its file.
    """
    lines = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines[int(process.name)] = (process / "cmdline").read_bytes().split(b"\0")
    return lines


def tree(root: int) -> list[int]:
    """Return a process and all its descendants, as they are at this moment."""
    pids = [root]
    for pid in pids:  # grows on the way
        for thread in _threads(pid):
            with contextlib.suppress(OSError):
                pids += map(int, (thread / "children").read_text().split())
    return pids


def _threads(pid: int) -> list[Path]:
    try:
        return [*Path(f"/proc/{pid}/task").glob("*")]
    except OSError:  # it ended
        return []


def proportional_mib(pids: list[int]) -> float:
    """Return the memory in RAM of several processes, in MiB: what some of them share counts once."""
    total_kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total_kib += int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0])
    return total_kib / 1024


def cpu_seconds(pid: int) -> float:
    """Return the processor time that all threads of a process have used, counted in nanoseconds by the kernel."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)


def _status_mib(pid: int, field: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024
