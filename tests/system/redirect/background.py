"""Runs asyncio servers in a network namespace while a test goes on in its own thread."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Self, TypeVar

from system.redirect.network import Namespace

T = TypeVar("T")


class Background(Generic[T]):
    """One asynchronous context manager, held open by an event loop of its own inside `namespace`."""

    def __init__(self, namespace: Namespace, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._ready = threading.Event()
        # Without a limit: a server of a whole test session outlives any.
        self._thread = threading.Thread(target=namespace.call, args=(self._run, None), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function` inside the server's event loop and return what it returns."""

        async def act() -> Any:
            return function(*arguments)

        return asyncio.run_coroutine_threadsafe(act(), self.loop).result(10)

    def _run(self) -> None:
        asyncio.run(self._hold())

    async def _hold(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with self._make() as self.served:
            self._ready.set()
            await self._stop.wait()
