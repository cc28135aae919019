"""Long computations in steps, so that whoever runs one can do something else in between.

A computation is a generator: it stops after every few items, changes nothing outside itself, and returns its result at
the end. `finish` runs it at a stretch, `mic.slices` in slices beside other work: the result is the same.
"""

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
STEP = 64
"""Items between two stops: pods, objects, nodes. One takes some 1 to 20 us."""


def finish(steps: Steps[T]) -> T:
    """Run a computation at a stretch and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def parts(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists of `STEP`: after each is the place to stop."""
    iterator = iter(items)
    while part := [item for _, item in zip(range(STEP), iterator, strict=False)]:
        yield part


def ordered(items: Iterable[T], key: Callable[[T], Any]) -> Steps[list[T]]:
    """Sort in steps: what `sorted(items, key=key)` returns."""
    runs: list[list[T]] = []
    for part in parts(items):
        runs.append(sorted(part, key=key))
        yield
    result: list[T] = []
    for part in parts(heapq.merge(*runs, key=key)):
        result += part
        yield
    return result
