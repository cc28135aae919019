"""Ends a lab: asks it, then its outer process, then the kernel.

A lab that answers ends in order. One that does not (it hangs, or its socket is gone) is ended by signals, which go only
to a process that holds the lab's lock.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from podidentity.errors import LabError
from podidentity_lab import control, directory
from podidentity_lab.directory import Directory

STOP_SECONDS = 15.0
POLL_SECONDS = 0.05


def stop(lab: Directory) -> None:
    """Return when nothing of the lab is left. Raises `LabError` when somebody else's process keeps it alive."""
    for end in (_ask, _signal(signal.SIGTERM), _signal(signal.SIGKILL)):
        if end(lab) and _is_gone(lab):
            directory.all_labs()  # removes what is left
            return
    raise LabError(f"lab {lab.name!r}: it does not end; see `fuser {lab.lock}` for what holds it")


def _ask(lab: Directory) -> bool:
    try:
        control.ask(lab, "POST", "/stop")
    except LabError:
        return False
    return True


def _signal(number: signal.Signals) -> Callable[[Directory], bool]:
    def send(lab: Directory) -> bool:
        owner = lab.owner()
        if owner and _holds(owner, lab.lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner, number)
        return True

    return send


def _holds(pid: int, path: Path) -> bool:
    """Whether a process has a file open: a process ID in a file may be somebody else's by now."""
    with contextlib.suppress(OSError):
        return any(descriptor.samefile(path) for descriptor in Path(f"/proc/{pid}/fd").iterdir() if descriptor.exists())
    return False


def _is_gone(lab: Directory) -> bool:
    deadline = time.monotonic() + STOP_SECONDS
    while lab.path.exists() and lab.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
