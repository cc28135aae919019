"""Keeps the programs of the real cluster running, each with a log of its own, as a node's init would.

A program that ends is started again: tests kill the API server and expect it back. One that never gets going is an
error that quotes its last line. Called by `plane` and `machine`.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from podidentity.errors import LabError

AGAIN_SECONDS = 0.5
HEALTHY_SECONDS = 5.0
TRIES = 5


async def keep(name: str, command: Sequence[str], log: Path) -> None:
    """Run `command` until cancelled. Raises `LabError` when it ends `TRIES` times within `HEALTHY_SECONDS` each."""
    failures = 0
    while failures < TRIES:
        began = time.monotonic()
        await _once(command, log)
        failures = 0 if time.monotonic() - began > HEALTHY_SECONDS else failures + 1
        await asyncio.sleep(AGAIN_SECONDS)
    raise LabError(f"{name} does not stay up. The last it said: {last_line(log)} ({log})")


async def finish(command: Sequence[str]) -> None:
    """Run `command` to its end. Raises `LabError` when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise LabError(f"`{' '.join(command)}` failed: {said.decode(errors='replace').strip()}")


async def _once(command: Sequence[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise


def last_line(log: Path) -> str:
    """The last thing a program said."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:500] if lines else "nothing"
