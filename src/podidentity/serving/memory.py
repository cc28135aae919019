"""Gives memory that was freed back to the kernel; without, a daemon looks as if it grew for days.

Each list after a lost watch, each burst of answers is some MiB for a moment, and what stays afterwards lies between the
holes. glibc gives back only what is free at the heap's end, unless it is asked for all whole pages. Measured while
watches were lost: MIC, at 47 MiB and growing, comes back to 44 each time, for 1 to 5 ms. Run by both daemons.

Also keeps the collector of cyclic garbage from holding MIC's loop: it looks at every object that it follows, which
takes 0.5 s with 100,000 pods, and it looks again whenever a plan has made some hundred thousand more. These have no
cycles and go by themselves. It therefore rests while a plan is made, and what is there at the end is frozen: exempt.
Between plans it looks at what is young, which is where cyclic garbage is made; the hourly look finds the remainder.
"""

import asyncio
import contextlib
import ctypes
import gc
from collections.abc import Iterator

EVERY_SECONDS = 60.0
_YOUNG = 1  # of the collector's generations; the oldest holds all that came since the last plan
_NO_LIMIT = 1_000_000  # so many collections of young objects between two of the oldest
COLLECT_SECONDS = 3600.0
"""How often frozen objects are looked at nevertheless: a few of them were, or have become, cyclic garbage."""


def give_back() -> None:
    """Give back each whole page of the heap that holds nothing; nothing happens where the C library cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
    if trim is not None:
        trim(0)


async def keep_giving_back() -> None:
    """Do so once a minute, until cancelled."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        give_back()


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Collect what is young; then let the body run without collections, and exempt all that is there at its end."""
    gc.collect(_YOUNG)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_frozen() -> None:
    """Collect all cyclic garbage, whether it was exempt or not."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def keep_collecting() -> None:
    """Do so once an hour, until cancelled, and let nothing else look at old objects."""
    gc.set_threshold(*gc.get_threshold()[:-1], _NO_LIMIT)
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        collect_frozen()
