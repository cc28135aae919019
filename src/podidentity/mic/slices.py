"""Runs long computations in slices of the event loop: watches, writes and probes have their turn in between."""

import asyncio
import time
from typing import TypeVar

from podidentity.core.model.steps import Steps

SLICE_SECONDS = 0.002
"""How long a computation holds the loop."""
PAUSE_SECONDS = 0.001
"""How long it leaves it alone then. A pod's way through MIC is some ten turns of the loop, most of them short."""

T = TypeVar("T")


async def run(steps: Steps[T]) -> T:
    """Run a computation to its end and return its result."""
    end = time.perf_counter() + SLICE_SECONDS
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result
        if time.perf_counter() >= end:
            await asyncio.sleep(PAUSE_SECONDS)
            end = time.perf_counter() + SLICE_SECONDS
