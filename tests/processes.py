"""What the kernel says of a process: its memory and its processor time."""

import time
from pathlib import Path


def resident_mib(pid: int) -> float:
    """Return how much memory a process has in RAM, in MiB."""
    return _status_mib(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    """Return the most memory that a process ever had in RAM, in MiB."""
    return _status_mib(pid, "VmHWM")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that all threads of a process have used, counted in nanoseconds by the kernel."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)


def _status_mib(pid: int, field: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) / 1024
