"""Memories with a bound, and calls that are shared: what keeps one caller from using up everybody's room.

Adapters that remember something for the sake of speed use them. Nothing here decides anything.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V], Generic[K, V]):
    """A dictionary of at most `limit` entries: a new one takes the place of the oldest.

    An entry that is written again is the youngest. Reading changes nothing; `move_to_end` does, where use counts.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)


class SingleFlight(Generic[K, V]):
    """One call for each key at a time: whoever asks while it is under way waits for the same outcome.

    The call goes on when one of those who wait is cancelled, and is cancelled when nobody waits any more.
    """

    def __init__(self) -> None:
        self._calls: dict[K, asyncio.Task[V]] = {}
        self._waiters: dict[K, int] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, key: K) -> bool:
        return key in self._calls

    async def run(self, key: K, call: Callable[[], Awaitable[V]]) -> V:
        """Return what `call` returns, or what the call under way for `key` returns. Raises what it raises."""
        task = self._calls.get(key)
        if task is None:
            task = self._calls[key] = asyncio.ensure_future(_awaited(call))
            task.add_done_callback(lambda finished: self._drop(key, finished))
        self._waiters[key] = self._waiters.get(key, 0) + 1
        try:
            return await asyncio.shield(task)
        finally:
            self._leave(key, task)

    def _leave(self, key: K, task: "asyncio.Task[V]") -> None:
        self._waiters[key] -= 1
        if not self._waiters[key]:
            del self._waiters[key]
            self._drop(key, task)
            task.cancel()

    def _drop(self, key: K, task: "asyncio.Task[V]") -> None:
        if self._calls.get(key) is task:
            del self._calls[key]


async def _awaited(call: Callable[[], Awaitable[V]]) -> V:
    return await call()
