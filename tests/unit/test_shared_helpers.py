"""Helpers that tests share: waiting fails with a sentence, and time passes only when a test moves it."""

import asyncio

import pytest

from clocks import JumpingClock
from podidentity import timing  # noqa: TC001  # mypy holds the clock against it
from waiting import eventually, until


def test_waiting_ends_as_soon_as_it_may() -> None:
    """Waiting ends as soon as the condition holds."""
    looks = [True, False, False]
    until(looks.pop, "three looks")
    assert looks == []


async def test_waiting_in_vain_is_a_sentence() -> None:
    """The error names what was waited for; a description that is a function is called only then."""
    with pytest.raises(AssertionError, match=r"never happened within 0\.01 s: rain"):
        until(lambda: False, "rain", 0.01)
    with pytest.raises(AssertionError, match=r"never happened within 0\.01 s: rain; 3 clouds"):
        await eventually(lambda: False, lambda: "rain; 3 clouds", 0.01)


async def test_a_loop_runs_while_a_test_waits() -> None:
    """The event loop runs meanwhile, so that a condition may depend on a task."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    await eventually(event.is_set, "the event")


async def test_a_clock_moves_when_a_test_moves_it() -> None:
    """Both clocks move by the same time; the wall clock can be set alone; a hasty clock moves with each sleep."""
    clock: timing.Clock = JumpingClock(wall=5000.0)
    steady = clock.steady()
    await clock.sleep(7)
    assert (clock.steady() - steady, clock.wall()) == (7, 5007)
    patient = JumpingClock(hasty=False)
    sleeper = asyncio.create_task(patient.sleep(10))
    await eventually(lambda: patient.waiting, "one sleeps")
    patient.set_wall(3600)
    patient.jump(9)
    await asyncio.sleep(0)
    assert not sleeper.done()
    patient.jump(1)
    await sleeper
