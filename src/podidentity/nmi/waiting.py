"""Requests that wait for a change in Kubernetes. Only the watch wakes them: nothing polls, however many wait.

Decides nothing: a request that is woken decides anew.
"""

import asyncio
import contextlib
from collections.abc import Hashable


class Waiting:
    """Waiters by what they wait for: a pod's key, or an address nobody is known to have yet."""

    def __init__(self) -> None:
        self._waiters: dict[Hashable, set[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return sum(len(waiters) for waiters in self._waiters.values())

    def wake(self, key: Hashable) -> None:
        """Wake whoever waits for `key`."""
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    def wake_all(self) -> None:
        """Wake everybody: something changed that may concern any pod."""
        for key in tuple(self._waiters):
            self.wake(key)

    async def change(self, key: Hashable, seconds: float) -> bool:
        """Wait until something about `key` changes, at most `seconds`; return whether anything did.

        Nothing is missed between a look and this call, as long as the caller does not wait in between.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, set()).add(waiter)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiter
                    return True
        finally:
            waiters = self._waiters.get(key)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[key]
        return False
