"""A namespace that changes its objects all the time: a bound for what is handled, and no newest state is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from clocks import JumpingClock
from daemons.kube.scripted import ScriptedServer, Watch, pod
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.kube.api import Api
from podidentity.kube.pace import CHANGE_SECONDS, CHANGES_AT_ONCE
from podidentity.kube.reflector import Reflector
from podidentity.kube.resources import ASSIGNED_IDENTITIES, BINDINGS, EXCEPTIONS, IDENTITIES, PODS, SELECTED_PODS
from podidentity.kube.store import Store
from waiting import eventually, settle

OBJECTS = 100
CHANGES = 2 * CHANGES_AT_ONCE
LONE, LAST = ObjectKey("quiet", "lone"), ObjectKey("busy", f"p{OBJECTS - 1}")
FIRST_VERSION = 10_000


@pytest.fixture
def clock() -> JumpingClock:
    """Return a clock that stands still until a test moves it."""
    return JumpingClock(hasty=False)


@asynccontextmanager
async def watching(api: Api, server: ScriptedServer) -> AsyncIterator[tuple[Reflector[Pod], Watch, list[str]]]:
    """Run a reflector on pods. Yield it, its watch, and the namespaces of the changes that its store tells of."""
    reflector = Reflector(api, PODS, Store[Pod]())
    changes: list[str] = []
    reflector.store.subscribe(lambda change: changes.append(change.key.namespace))
    task = asyncio.create_task(reflector.run())
    try:
        await eventually(lambda: server.watches, "a watch")
        yield reflector, server.watches[0], changes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def busy_pod(number: int, objects: int = OBJECTS) -> dict[str, Any]:
    """Return state `number` of the busy namespace's pods, which change in turns; its resource version tells which."""
    return pod(f"p{number % objects}", namespace="busy", resourceVersion=str(FIRST_VERSION + number))


def flood(watch: Watch, objects: int = OBJECTS) -> None:
    """Change pods of a namespace `CHANGES` times, one after the other, within the same second."""
    for number in range(CHANGES):
        watch.send("MODIFIED", busy_pod(number, objects))


async def test_a_namespace_that_writes_all_the_time_has_a_bound(
    api: Api, server: ScriptedServer, clock: JumpingClock
) -> None:
    """Of 2,000 changes in a second 1,000 are handled; a lone change elsewhere at once; no newest state is lost."""
    async with watching(api, server) as (reflector, watch, changes):
        flood(watch)
        watch.send("ADDED", pod("lone", namespace="quiet"))
        await eventually(lambda: LONE in reflector.store, "the lone change, before any time has passed")
        assert changes.count("busy") == CHANGES_AT_ONCE
        clock.jump(OBJECTS * CHANGE_SECONDS + 0.01)
        newest = [str(FIRST_VERSION + CHANGES - OBJECTS + number) for number in range(OBJECTS)]
        keys = [ObjectKey("busy", f"p{number}") for number in range(OBJECTS)]
        await eventually(lambda: [*map(reflector.store.version, keys)] == newest, "the newest state of each object")
        assert changes.count("busy") == CHANGES_AT_ONCE + OBJECTS


async def test_what_waits_keeps_to_the_pace(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """States that wait are handled only as fast as the bound says: ten in the time of ten."""
    async with watching(api, server) as (_, watch, changes):
        flood(watch)
        watch.send("ADDED", pod("lone", namespace="quiet"))
        await eventually(lambda: "quiet" in changes and clock.waiting, "all events to be read")
        clock.jump(10.5 * CHANGE_SECONDS)
        await eventually(lambda: changes.count("busy") >= CHANGES_AT_ONCE + 10 and clock.waiting, "ten more changes")
        assert changes.count("busy") == CHANGES_AT_ONCE + 10


async def test_a_deletion_does_not_wait(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """A deletion counts at once, and a state from before it that still waits does not bring the object back."""
    async with watching(api, server) as (reflector, watch, _):
        flood(watch)
        watch.send("DELETED", pod(LAST.name, namespace="busy"))
        await eventually(lambda: LAST not in reflector.store and len(reflector.store) == OBJECTS - 1, "the deletion")
        clock.jump(60.0)
        newest = str(FIRST_VERSION + CHANGES - 2)
        last_but_one = ObjectKey("busy", f"p{OBJECTS - 2}")
        await eventually(lambda: reflector.store.version(last_but_one) == newest, "all that waited")
        assert LAST not in reflector.store


async def test_the_newest_state_may_be_unreadable(
    api: Api, server: ScriptedServer, clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An unreadable state waits like any other, and takes the object out of the store in its turn."""
    async with watching(api, server) as (reflector, watch, _):
        flood(watch)
        unreadable = {"namespace": "busy", "name": LAST.name, "labels": 5, "resourceVersion": "20000"}
        watch.send("MODIFIED", {"metadata": unreadable})
        watch.send("ADDED", pod("lone", namespace="quiet"))
        await eventually(lambda: LONE in reflector.store, "all events to be read")
        assert LAST in reflector.store
        clock.jump(60.0)
        await eventually(lambda: LAST not in reflector.store, "the unreadable state")
        assert reflector.odd.keys() == {LAST}
    warnings = [message for message in caplog.messages if "changes its pods more than 500 times a second" in message]
    assert len(warnings) == 1


async def test_a_list_takes_the_place_of_what_waits(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """A list is newer than all events before it, so states that still wait must not come on top of it."""
    async with watching(api, server) as (reflector, watch, _):
        flood(watch, objects=CHANGES)
        watch.expire()
        await eventually(lambda: clock.waiting == 2, "the pause before the next list")
        server.put("/api/v1/namespaces/quiet/pods/lone", pod("lone", namespace="quiet"))
        clock.jump(0.5)
        await eventually(lambda: reflector.lists == 2, "the list")
        clock.jump(60.0)
        await settle()
        assert reflector.store.as_mapping().keys() == {LONE}


def test_what_tenants_write_has_a_pace_and_what_mic_writes_has_none() -> None:
    """MIC may write thousands of assigned identities of a namespace, and must see its own writes at once."""
    assert all(kind.is_paced for kind in (PODS, SELECTED_PODS, IDENTITIES, BINDINGS, EXCEPTIONS))
    assert not ASSIGNED_IDENTITIES.is_paced
