"""Runs long computations in slices of the event loop: watches, writes and probes have their turn in between."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import TypeVar

from podidentity.core.model.steps import Steps

SLICE_SECONDS = 0.002
"""How long a computation holds the loop."""
PAUSE_SECONDS = 0.001
"""How long it leaves it alone then."""
LONG_PAUSE_SECONDS = 0.004
"""The same while a pod is on its way through MIC: some ten turns of the loop, each of which may come upon a slice."""

T = TypeVar("T")


class Slices:
    """Long computations beside short work that matters more."""

    def __init__(self) -> None:
        self._short_works = 0

    @contextlib.contextmanager
    def give_way(self) -> Iterator[None]:
        """Let computations pause for longer while the body runs; they still go on, however long that is."""
        self._short_works += 1
        try:
            yield
        finally:
            self._short_works -= 1

    async def run(self, steps: Steps[T]) -> T:
        """Run a computation to its end and return its result."""
        end = time.perf_counter() + SLICE_SECONDS
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result
            if time.perf_counter() >= end:
                await asyncio.sleep(LONG_PAUSE_SECONDS if self._short_works else PAUSE_SECONDS)
                end = time.perf_counter() + SLICE_SECONDS


async def run(steps: Steps[T]) -> T:
    """Run a computation to its end and return its result, with nothing to give way to."""
    return await Slices().run(steps)
