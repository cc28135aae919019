"""Time as `kube` uses it, so that tests can jump: seconds that never go back, and a pause.

Passed to everything in `kube` that waits or measures. Not wall-clock time, which Events and leases write.
"""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some start, and waiting for some of them."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; they also pass while the machine sleeps."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class SystemClock:
    """The machine's clock. Boot time, not monotonic time: a suspended VM must not believe that it still leads."""

    def now(self) -> float:
        """Return seconds since boot, suspension included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()
