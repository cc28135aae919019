"""Conditions as they are written: seldom, only what differs, and not at all where that is not allowed."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import make
from clocks import JumpingClock
from podidentity.core.model import crd
from podidentity.core.model.identities import Condition, ObjectKey
from podidentity.core.model.policy import ConditionLevel
from podidentity.errors import ForbiddenError
from podidentity.kube.resources import BINDINGS, IDENTITIES, StoredObject
from podidentity.mic.adapters.cluster import WatchedCluster
from podidentity.mic.adapters.condition_writer import (
    BURST,
    GATHER_SECONDS,
    HOLD_OFF_SECONDS,
    PER_OBJECT_SECONDS,
    ApiConditionWriter,
)
from waiting import settle

KEY = ObjectKey("default", "reader")
IDLE = Condition("Assigned", "False", "NotInUse", "no pod uses it")
NEW = Condition("Assigned", "False", "Assigning", "not yet")
ASSIGNED_CONDITION = Condition("Assigned", "True", "Assigned", "on scale set ss")


class FakeApi:
    """An API that takes patches; it may refuse them, or drop fields as a schema without them does."""

    def __init__(self, clock: JumpingClock) -> None:
        self.clock = clock
        self.forbidden = False
        self.drops = False
        self.drops_generation = False
        self._versions = itertools.count(1)
        self.patches: list[tuple[float, str, list[dict[str, Any]]]] = []
        self.cluster = WatchedCluster(self)  # type: ignore[arg-type]  # its watches are not run here
        self.show(make.identity(generation=1))

    def show(self, identity: Any) -> Any:
        """Let the watch show an identity."""
        version = str(next(self._versions))
        self.cluster.identities.upsert(StoredObject(identity.key, "uid", version, identity))
        return identity

    async def patch(self, kind: Any, key: ObjectKey, change: Any) -> Any:
        """Store one patch and return the object."""
        assert kind is IDENTITIES
        assert change["metadata"] == {"resourceVersion": self.cluster.identities.version(key)}
        self.patches.append((self.clock.steady(), key.name, change["status"]["conditions"]))
        if self.forbidden:
            raise ForbiddenError("patch azureidentities: forbidden; allow it in the role", status=403)
        obj = crd.render_identity(make.identity())
        rendered = obj if self.drops else {**obj, "status": change["status"]}
        identity = self.cluster.identities.get(key)
        assert identity is not None
        rendered["metadata"]["generation"] = identity.generation + 1
        if self.drops_generation:
            conditions = [condition | {"observedGeneration": None} for condition in change["status"]["conditions"]]
            rendered["status"] = {"conditions": conditions}
        return self.show(crd.parse_identity(rendered))


async def play(story: Callable[[FakeApi, ApiConditionWriter], Any], level: ConditionLevel = ConditionLevel.ALL) -> None:
    """Run a story with a running condition writer, on a clock that jumps."""
    api = FakeApi(JumpingClock())
    writer = ApiConditionWriter(api, api.cluster, level, lambda: 0.0)  # type: ignore[arg-type]  # two methods are enough
    task = asyncio.create_task(writer.run())
    await story(api, writer)
    task.cancel()


async def test_a_condition_is_written_once(caplog: pytest.LogCaptureFixture) -> None:
    """An unchanged condition is not written again, and the patch has nothing but `status.conditions`."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        for _ in range(3):
            writer.update({KEY: (ASSIGNED_CONDITION,)}, {})
            await settle()
        assert [conditions for _, _, conditions in api.patches] == [crd.render_conditions([DONE_AT_ZERO])]

    await play(story)
    assert caplog.text == ""


DONE_AT_ZERO = Condition("Assigned", "True", "Assigned", "on scale set ss", "1970-01-01T00:00:00Z", generation=2)


async def test_the_first_changes_are_written_at_once() -> None:
    """The first three changes, from not in use to assigned, are each written within the gathering time."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        for condition in (IDLE, NEW, ASSIGNED_CONDITION):
            start = api.clock.steady()
            writer.update({KEY: (condition,)}, {})
            await settle()
            time, _, (patched,) = api.patches[-1]
            assert patched["reason"] == condition.reason
            assert time - start <= GATHER_SECONDS
        assert len(api.patches) == BURST

    await play(story)


async def test_what_goes_on_changing_is_written_seldom() -> None:
    """After the burst only the latest condition is written, once per interval."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        for number in range(BURST):
            writer.update({KEY: (Condition("Assigned", "False", "Assigning", f"first {number}"),)}, {})
            await settle()
        for number in range(50):
            writer.update({KEY: (Condition("Assigned", "False", "Assigning", str(number)),)}, {})
        writer.update({KEY: (ASSIGNED_CONDITION,)}, {})
        await settle()
        assert len(api.patches) == BURST + 1
        assert api.patches[-1][0] - api.patches[0][0] >= PER_OBJECT_SECONDS
        assert api.patches[-1][2][0]["status"] == "True"

    await play(story)


async def test_a_role_without_the_right_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Under upstream's role MIC warns once of the missing right, and tries again after the hold-off."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        api.forbidden = True
        for number in range(20):
            writer.update({KEY: (Condition("Assigned", "False", "Assigning", str(number)),)}, {})
            await settle()
        assert len(api.patches) == 1
        await api.clock.sleep(HOLD_OFF_SECONDS)
        api.forbidden = False
        writer.update({KEY: (ASSIGNED_CONDITION,)}, {})
        await settle()
        assert len(api.patches) == 2

    with caplog.at_level(logging.INFO):
        await play(story)
    assert [record.getMessage() for record in caplog.records] == [
        "conditions are not written on azureidentities: patch azureidentities: forbidden; allow it in the role"
    ]


async def test_a_definition_that_drops_conditions_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Under upstream's CRDs MIC warns once, and stops writing."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        api.drops = True
        for number in range(20):
            writer.update({KEY: (Condition("Assigned", "False", "Assigning", str(number)),)}, {})
            await settle()
        assert len(api.patches) == 1

    with caplog.at_level(logging.INFO):
        await play(story)
    (record,) = caplog.records
    assert "azureidentities.aadpodidentity.k8s.io has no status.conditions; install ours" in record.getMessage()


async def test_a_definition_that_drops_generations_costs_no_further_writes() -> None:
    """A condition without its generation is not written again until it says something else."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        api.drops_generation = True
        for _ in range(20):
            writer.update({KEY: (ASSIGNED_CONDITION,)}, {})
            await settle()
        assert len(api.patches) == 1
        writer.update({KEY: (NEW,)}, {})
        await settle()
        assert len(api.patches) == 2

    await play(story)


async def test_a_new_generation_is_told_once() -> None:
    """After a change of the spec, conditions that are still true are written once, with the new generation."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        writer.update({KEY: (ASSIGNED_CONDITION,)}, {})
        await settle()
        conditions = crd.parse_identity({"status": {"conditions": api.patches[0][2]}}).conditions
        api.show(make.identity(generation=7, conditions=conditions))
        for _ in range(20):
            writer.update({KEY: (ASSIGNED_CONDITION,)}, {})
            await settle()
        assert [patch[0]["observedGeneration"] for _, _, patch in api.patches] == [2, 8]

    await play(story)


async def test_what_is_gone_is_not_written() -> None:
    """Nothing is written for an identity that was deleted meanwhile."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        writer.update({KEY: (ASSIGNED_CONDITION,), ObjectKey("default", "gone"): (ASSIGNED_CONDITION,)}, {})
        await settle()
        assert [name for _, name, _ in api.patches] == ["reader"]

    await play(story)


async def test_the_story_is_told_on_the_objects(run_in_world: Callable[..., Awaitable[None]]) -> None:
    """With the real API and our definitions, identity and binding say that all is well, and `spec` is unchanged."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(client_id="wrong"), make.binding(), make.pod())

        def messages() -> list[str]:
            conditions = [
                condition
                for kind in (IDENTITIES, BINDINGS)
                for obj in world.kubernetes.storage.list(str(kind))
                for condition in (obj.get("status") or {}).get("conditions", ())
            ]
            return [f"{entry['type']}={entry['status']}: {entry['message']}" for entry in conditions]

        await world.until(lambda: "Assigned=True: on scale set ss" in messages(), "the identity's condition")
        await world.until(
            lambda: "Applied=True: every pod that it selects has the identity" in messages(), "the binding's condition"
        )
        (identity,) = world.kubernetes.storage.list(str(IDENTITIES))
        assert identity["spec"] == crd.render_identity(make.identity(client_id="wrong"))["spec"]

    await run_in_world(story)


async def test_conditions_speak_of_the_generation_that_is_stored(run_in_world: Callable[..., Awaitable[None]]) -> None:
    """Without a status subresource, writing conditions makes a new generation, and they state that one."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())

        def generations() -> list[tuple[int, int]]:
            return [
                (condition["observedGeneration"], obj["metadata"]["generation"])
                for kind in (IDENTITIES, BINDINGS)
                for obj in world.kubernetes.storage.list(str(kind))
                for condition in (obj.get("status") or {}).get("conditions", ())
                if condition["status"] == "True"
            ]

        await world.until(lambda: len(generations()) == 2, "both conditions hold")
        assert all(observed == now > 1 for observed, now in generations())

    await run_in_world(story)


PROBLEM = Condition("Assigned", "False", "AuthorizationFailed", "scale set ss: give MIC the role")


async def test_by_default_only_problems_are_written_and_what_ends_them() -> None:
    """While all is well MIC writes nothing, so that nobody's read-modify-write meets a conflict."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        for condition in (IDLE, NEW, ASSIGNED_CONDITION, IDLE):
            writer.update({KEY: (condition,)}, {})
            await settle()
        assert api.patches == []
        for condition in (PROBLEM, ASSIGNED_CONDITION, IDLE):
            writer.update({KEY: (condition,)}, {})
            await settle()
        assert [conditions[0]["reason"] for _, _, conditions in api.patches] == ["AuthorizationFailed", "Assigned"]

    await play(story, ConditionLevel.PROBLEMS)


async def test_no_condition_is_written_where_that_is_asked_for() -> None:
    """`--conditions=off` leaves every object as its owner wrote it."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        writer.update({KEY: (PROBLEM,)}, {})
        await settle()
        assert api.patches == []

    await play(story, ConditionLevel.OFF)


async def test_an_object_without_a_generation_takes_it_from_no_other() -> None:
    """When the API drops one object's observedGeneration, conditions of other objects still have theirs."""

    async def story(api: FakeApi, writer: ApiConditionWriter) -> None:
        other = ObjectKey("default", "other")
        api.show(make.identity("other", generation=1))
        api.drops_generation = True
        writer.update({KEY: (ASSIGNED_CONDITION,)}, {})
        await settle()
        api.drops_generation = False
        writer.update({KEY: (ASSIGNED_CONDITION,), other: (ASSIGNED_CONDITION,)}, {})
        await settle()
        generations = {name: conditions[0].get("observedGeneration") for _, name, conditions in api.patches}
        assert generations["other"] == 2

    await play(story)
