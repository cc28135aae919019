"""The one way in which tests and benchmarks wait for a condition: `until` blocks, `eventually` runs the event loop.

Both check again and again, because nobody can set an event for what another process, a socket or the kernel does; both
fail with a sentence when the time is over. Whatever can be signalled by an event is awaited by that event instead.
"""

import asyncio
import inspect
import time
from collections.abc import Callable

POLL_SECONDS = 0.005
LIMIT_SECONDS = 60.0
"""Long enough for a loaded machine: only a test that fails ever waits for it."""


def until(condition: Callable[[], object], description: str, seconds: float = LIMIT_SECONDS) -> None:
    """Return once `condition()` is true. Raise AssertionError with `description` after `seconds`."""
    deadline = time.monotonic() + seconds
    start = time.monotonic()
    while not condition():
        end = time.monotonic()
        assert end < deadline, _failure(description, seconds)
        # A condition that starts a program gets half the time at most: it must not take a core from what it waits for.
        time.sleep(max(POLL_SECONDS, end - start))
        start = time.monotonic()


async def eventually(
    condition: Callable[[], object], description: str | Callable[[], str], seconds: float = LIMIT_SECONDS
) -> None:
    """Return once `condition()` is true, letting the event loop run. Raise AssertionError after `seconds` of real time.

    A `condition` may return an awaitable, whose result counts. A `description` that is a function is called only at the
    end: it can say how far things got.
    """
    deadline = time.monotonic() + seconds
    turns = 0
    while not await _result(condition):
        if time.monotonic() >= deadline:
            text = description if isinstance(description, str) else description()
            raise AssertionError(_failure(text, seconds))
        # What is in this process needs turns of the loop, not time: the first ones cost none.
        await asyncio.sleep(0 if turns < 100 else POLL_SECONDS)
        turns += 1


async def settle() -> None:
    """Let all tasks run until each waits for something outside of this process, or for time to pass."""
    for _ in range(200):
        await asyncio.sleep(0)


async def _result(condition: Callable[[], object]) -> object:
    result = condition()
    return await result if inspect.isawaitable(result) else result


def _failure(description: str, seconds: float) -> str:
    return f"never happened within {seconds:g} s: {description}"
