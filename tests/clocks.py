"""A clock that only tests move."""

import asyncio
import heapq
import itertools

START_SECONDS = 1000.0


class JumpingClock:
    """A `podidentity.timing.Clock` that stands still until a test moves it.

    With `hasty`, each sleep moves the clock, so that nothing ever waits; without it, sleepers wait for `jump`.
    """

    def __init__(self, *, hasty: bool = True, wall: float = 1_800_000_000.0) -> None:
        self.hasty = hasty
        self.hasty_below = float("inf")
        """Sleeps of this many seconds or more wait for `jump` all the same."""
        self.slept: list[float] = []
        """How long each sleep was to last, in seconds."""
        self._steady = START_SECONDS
        self._ahead = wall - START_SECONDS
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def steady(self) -> float:
        """Return seconds that only go forward."""
        return self._steady

    def wall(self) -> float:
        """Return seconds since 1970."""
        return self._ahead + self._steady

    @property
    def waiting(self) -> int:
        """Return how many tasks are asleep now: when all are, nothing happens until time passes."""
        return sum(1 for _, _, woken in self._sleepers if not woken.done())

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock is moved past the time; a hasty clock moves there itself."""
        self.slept.append(seconds)
        if (self.hasty and seconds < self.hasty_below) or seconds <= 0:
            self.jump(max(seconds, 0.0))
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._steady + seconds, next(self._order), woken))
        await woken

    def jump(self, seconds: float) -> None:
        """Move both clocks by `seconds`, and wake whoever has slept long enough."""
        self._steady += seconds
        while self._sleepers and self._sleepers[0][0] <= self._steady:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)

    def set_wall(self, seconds: float) -> None:
        """Move the wall clock alone by `seconds`, forward or back, as an administrator may."""
        self._ahead += seconds
