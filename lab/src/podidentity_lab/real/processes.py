"""Keeps the programs of the real cluster running, each with a log of its own, as a node's init would.

A program that ends is started again: tests kill the API server and expect it back. One that never gets going is an
error that quotes its last line.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from podidentity.errors import LabError

AGAIN_SECONDS = 0.5
HEALTHY_SECONDS = 5.0
TRIES = 5
END_SECONDS = 10.0


class Restart:
    """Ends a program that is kept running, so that it starts again at once."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self.is_planned = False

    def watch(self, process: asyncio.subprocess.Process) -> None:
        """Take the program's latest process."""
        self._process = process

    async def run(self) -> None:
        """End the process and wait for that; one that has ended already is left alone."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.is_planned = True
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


async def keep(name: str, command: Sequence[str], log: Path, restart: Restart | None = None) -> None:
    """Run `command` until cancelled; `restart` ends it on purpose.

    Raises `LabError` when it ends `TRIES` times within `HEALTHY_SECONDS` each.
    """
    failures, restart = 0, restart or Restart()
    while failures < TRIES:
        start = time.monotonic()
        await _once(command, log, restart)
        if restart.is_planned:
            restart.is_planned = False
            continue
        failures = 0 if time.monotonic() - start > HEALTHY_SECONDS else failures + 1
        await asyncio.sleep(AGAIN_SECONDS)
    raise LabError(f"{name} does not stay up: {last_line(log)}; its log is {log}")


async def finish(command: Sequence[str]) -> None:
    """Run `command` to its end. Raises `LabError` when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise LabError(f"`{' '.join(command)}` failed: {output.decode(errors='replace').strip()}")


async def _once(command: Sequence[str], log: Path, restart: Restart) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    restart.watch(process)
    try:
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise


def last_line(log: Path) -> str:
    """Return the last line of a program's log."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:500] if lines else "nothing"
