"""Who is let in when more is asked than can be done: shares of what has room, turns at what has a rate.

Both go by who asks, so that one that asks for everything holds up itself. Used by the cache, the token sources and the
proxy.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable

from podidentity.nmi.ports import Clock

_FREE_FOR_EACH = 8  # what one has under way may be an eighth of what is still free


class Shares:
    """At most `in_all` things at once, of one asker at most `each`, and fewer the less is free.

    A share is an eighth of what is free, so that any number of askers together leave room for who comes next: the
    first thing of an asker is refused only when everything is taken. (Dynamic thresholds: Choudhury and Hahne, 1998.)
    """

    def __init__(self, in_all: int, each: int) -> None:
        self._in_all = in_all
        self._each = each
        self._taken: Counter[Hashable] = Counter()
        self._total = 0

    def full(self, asker: Hashable) -> bool:
        """Say whether `asker` may have no more."""
        free = self._in_all - self._total
        return free <= 0 or self._taken[asker] >= min(self._each, max(1, free // _FREE_FOR_EACH))

    def take(self, asker: Hashable) -> None:
        """Count one more."""
        self._taken[asker] += 1
        self._total += 1

    def give_back(self, asker: Hashable) -> None:
        """Count one less."""
        self._total -= 1
        self._taken[asker] -= 1
        if not self._taken[asker]:
            del self._taken[asker]


class Turns:
    """At most `per_second` starts a second and `at_once` at a time; those who wait take turns by who asks."""

    def __init__(self, clock: Clock, *, per_second: float, at_once: int) -> None:
        self._clock = clock
        self._every = 1.0 / per_second
        self._free = at_once
        self._next = -float("inf")
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def of(self, asker: Hashable) -> AsyncIterator[None]:
        """Wait for a turn of `asker`; the body is what it is for."""
        await self._turn(asker)
        try:
            moment = max(self._next, self._clock.steady())
            self._next = moment + self._every
            await self._clock.sleep(moment - self._clock.steady())
            yield
        finally:
            self._free += 1
            self._pass_on()

    def pause(self, seconds: float) -> None:
        """Let nobody start for `seconds`."""
        self._next = max(self._next, self._clock.steady() + seconds)

    async def _turn(self, asker: Hashable) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(asker, deque()).append(turn)
        self._pass_on()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given, and nobody is there to take it
                self._free += 1
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting and self._free > 0:
            asker, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[asker] = turns  # behind the others
            if not turn.cancelled():
                self._free -= 1
                turn.set_result(None)
