"""Time as podidentity uses it, so that tests can jump, and RFC 3339 texts of it.

Everything that waits or measures is given a `Clock`. Steady time decides how long something lasts; wall time
only stands in what others read.
"""

import asyncio
import functools
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Both kinds of time, in seconds."""

    def wall(self) -> float:
        """Return seconds since 1970; they jump when somebody sets the clock."""

    def steady(self) -> float:
        """Return seconds since some moment; they never go back, and pass while the machine is suspended."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of steady time."""


class SystemClock:
    """The machine's clocks. Boot time, not monotonic time: a suspended VM must not believe that it still leads."""

    wall = staticmethod(time.time)

    steady = staticmethod(functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME))
    """Return seconds since boot, suspension included. No Python function around it: NMI reads it with every request."""

    @staticmethod
    async def sleep(seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


class LoopTurns:
    """Lets the event loop turn within long work: whoever else waits for it waits for one part of the work."""

    def __init__(self, every_bytes: int) -> None:
        self._every_bytes = every_bytes
        self._bytes = 0

    async def count(self, length_bytes: int) -> None:
        """Count so much work as done; return at once, or a turn later once `every_bytes` have come together."""
        self._bytes += length_bytes
        if self._bytes >= self._every_bytes:
            self._bytes = 0
            await asyncio.sleep(0)


def parse_rfc3339(text: str) -> float | None:
    """Return a time such as `2026-01-31T12:00:00Z` as seconds since 1970; None when it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


def render_rfc3339(seconds: float, *, micro: bool = False) -> str:
    """Return seconds since 1970 in UTC as Kubernetes writes them: a Time, or with `micro` a MicroTime."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
