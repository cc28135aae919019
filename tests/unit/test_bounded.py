"""Memories with a bound, and calls that callers share."""

import asyncio

import pytest

from podidentity.bounded import BoundedDict, SingleFlight


def test_the_oldest_entry_goes_when_there_is_one_too_many() -> None:
    """A memory never grows over its limit; an entry that is written again counts as the newest."""
    memory: BoundedDict[str, int] = BoundedDict(2)
    memory["a"] = 1
    memory["b"] = 2
    memory["a"] = 3
    memory["c"] = 4
    assert dict(memory) == {"a": 3, "c": 4}


async def test_those_who_ask_together_share_one_call() -> None:
    """A call is made once for all who ask for its key while it runs."""
    flights: SingleFlight[str, int] = SingleFlight()
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return calls

    results = await asyncio.gather(*(flights.run("key", call) for _ in range(100)))
    assert "key" not in flights
    assert results == [1] * 100
    assert await flights.run("key", call) == 2


async def test_an_error_reaches_everybody_who_waits() -> None:
    """An error reaches all who wait for the call, and the next call is a new one."""
    flights: SingleFlight[str, int] = SingleFlight()

    async def call() -> int:
        await asyncio.sleep(0)
        raise ValueError("no")

    outcomes = await asyncio.gather(flights.run("k", call), flights.run("k", call), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]


async def test_a_call_goes_on_for_those_who_stay_and_ends_with_the_last() -> None:
    """A call goes on when one of its callers gives up, and is cancelled with the last one."""
    flights: SingleFlight[str, int] = SingleFlight()
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def call() -> int:
        started.set()
        try:
            await release.wait()
        finally:
            ended.set()
        return 7

    first = asyncio.create_task(flights.run("k", call))
    second = asyncio.create_task(flights.run("k", call))
    await started.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    release.set()
    assert await second == 7
    release.clear()
    ended.clear()
    started.clear()
    alone = asyncio.create_task(flights.run("k", call))
    await started.wait()
    alone.cancel()
    await ended.wait()
    assert "k" not in flights
