"""Who goes first when more is asked than can be done: quotas of what has room, turns at what has a rate.

Both go by who asks, so that an asker of everything holds up itself alone.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable

from podidentity.timing import Clock

_ASKERS = 1024
_FREE_PER_ASKER = 8  # what one has under way may be an eighth of what is still free


class FairQuota:
    """At most `limit` things at once, of one asker at most `per_asker`, and fewer the less is free.

    A share is an eighth of what is free, so that any number of askers together leave room for who comes next: the
    first thing of an asker is refused only when everything is taken. (Dynamic thresholds: Choudhury and Hahne, 1998.)
    """

    def __init__(self, limit: int, per_asker: int) -> None:
        self._limit = limit
        self._per_asker = per_asker
        self._counts: Counter[Hashable] = Counter()
        self._total = 0

    def is_full(self, asker: Hashable) -> bool:
        """Whether `asker` may have no more."""
        free = self._limit - self._total
        return free <= 0 or self._counts[asker] >= min(self._per_asker, max(1, free // _FREE_PER_ASKER))

    def take(self, asker: Hashable) -> None:
        """Count one more."""
        self._counts[asker] += 1
        self._total += 1

    def give_back(self, asker: Hashable) -> None:
        """Count one less."""
        self._total -= 1
        self._counts[asker] -= 1
        if not self._counts[asker]:
            del self._counts[asker]


class Pace:
    """At most `starts` in any one second for each asker; whoever has more waits, or is refused after `longest_seconds`.

    What is remembered of askers is bounded: those whose second is over are forgotten when there are many.
    """

    def __init__(self, clock: Clock, *, starts: int, longest_seconds: float) -> None:
        self._clock = clock
        self._starts = starts
        self._longest_seconds = longest_seconds
        self._moments: dict[Hashable, deque[float]] = {}

    def delay(self, asker: Hashable) -> float | None:
        """Take the next start of `asker` and return the seconds until then; None, taking none, if that is too long."""
        now = self._clock.steady()
        moments = self._moments.get(asker)
        if moments is None:
            self._forget(now)
            moments = self._moments[asker] = deque(maxlen=self._starts)
        moment = max(now, moments[0] + 1.0) if len(moments) == self._starts else now
        if moment - now > self._longest_seconds:
            return None
        moments.append(moment)
        return moment - now

    def _forget(self, now: float) -> None:
        if len(self._moments) >= _ASKERS:
            self._moments = {asker: moments for asker, moments in self._moments.items() if moments[-1] + 1.0 > now}


class FairLimiter:
    """At most `per_second` starts a second and `at_once` at a time, `per_asker` of one asker; askers take turns."""

    def __init__(self, clock: Clock, *, per_second: float, at_once: int, per_asker: int | None = None) -> None:
        self._clock = clock
        self._per_asker = at_once if per_asker is None else per_asker
        self._under_way: Counter[Hashable] = Counter()
        self._interval = 1.0 / per_second
        self._free_slots = at_once
        self._next_start = -float("inf")
        self._queues: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, asker: Hashable) -> AsyncIterator[None]:
        """Wait for a turn of `asker`, and hold it while the body runs."""
        await self._wait_for_turn(asker)
        try:
            moment = max(self._next_start, self._clock.steady())
            self._next_start = moment + self._interval
            await self._clock.sleep(moment - self._clock.steady())
            yield
        finally:
            self._end(asker)

    def pause(self, seconds: float) -> None:
        """Let nobody start for `seconds`."""
        self._next_start = max(self._next_start, self._clock.steady() + seconds)

    async def _wait_for_turn(self, asker: Hashable) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(asker, deque()).append(turn)
        self._pass_on()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the turn came, but nobody is there to take it
                self._end(asker)
            raise

    def _end(self, asker: Hashable) -> None:
        self._free_slots += 1
        self._under_way[asker] -= 1
        if not self._under_way[asker]:
            del self._under_way[asker]
        self._pass_on()

    def _pass_on(self) -> None:
        while self._free_slots > 0 and (asker := self._next_asker()) is not None:
            turns = self._queues.pop(asker)
            turn = turns.popleft()
            if turns:
                self._queues[asker] = turns  # behind the others
            if not turn.cancelled():
                self._free_slots -= 1
                self._under_way[asker] += 1
                turn.set_result(None)

    def _next_asker(self) -> Hashable | None:
        return next((asker for asker in self._queues if self._under_way[asker] < self._per_asker), None)
