"""Time that only a test moves."""

import asyncio
import heapq
import itertools

START_SECONDS = 1000.0


class JumpingClock:
    """A `podidentity.timing.Clock` that stands still, unless a test moves it.

    With `hasty`, each sleep moves it too, so that nothing ever waits; without, sleepers wait for `jump`.
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
        """How many sleep at this moment: when it is everybody, nothing more happens until time passes."""
        return sum(1 for _, _, woken in self._sleepers if not woken.done())

    async def sleep(self, seconds: float) -> None:
        """Wait for the time to come, or bring it."""
        self.slept.append(seconds)
        if (self.hasty and seconds < self.hasty_below) or seconds <= 0:
            self.jump(max(seconds, 0.0))
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._steady + seconds, next(self._order), woken))
        await woken

    def jump(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks, and wake who waited for them."""
        self._steady += seconds
        while self._sleepers and self._sleepers[0][0] <= self._steady:
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock forward by `seconds`, or back, as an administrator may."""
        self._ahead += seconds
