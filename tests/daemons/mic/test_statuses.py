"""Conditions as they are written: seldom, only what differs, and not at all where that is not allowed."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

import make
from daemons.kube.scripted import JumpingClock
from podidentity.core import crd
from podidentity.core.identities import Condition, ObjectKey
from podidentity.errors import ForbiddenError
from podidentity.kube.resources import BINDINGS, IDENTITIES, Stored
from podidentity.mic.cluster import WatchedCluster
from podidentity.mic.statuses import AT_ONCE, GATHER_SECONDS, HOLD_OFF_SECONDS, PER_OBJECT_SECONDS, Statuses

KEY = ObjectKey("default", "reader")
IDLE = Condition("Assigned", "False", "NotInUse", "no pod uses it")
NEW = Condition("Assigned", "False", "Assigning", "not yet")
DONE = Condition("Assigned", "True", "Assigned", "on scale set ss")


class FakeApi:
    """Takes patches; may refuse them, or drop the field as a schema without it does."""

    def __init__(self, clock: JumpingClock) -> None:
        self.clock = clock
        self.forbidden = False
        self.drops = False
        self.undated = False
        self._versions = itertools.count(1)
        self.patches: list[tuple[float, str, list[dict[str, Any]]]] = []
        self.cluster = WatchedCluster(self)  # type: ignore[arg-type]  # its watches are not run here
        self.show(make.identity(generation=1))

    def show(self, identity: Any) -> Any:
        """Let the watch show an identity."""
        version = str(next(self._versions))
        self.cluster.identities.put(Stored(identity.key, "uid", version, identity))
        return identity

    async def patch(self, kind: Any, key: ObjectKey, change: Any) -> Any:
        """Answer one patch."""
        assert kind is IDENTITIES
        assert change["metadata"] == {"resourceVersion": self.cluster.identities.version(key)}
        self.patches.append((self.clock.now(), key.name, change["status"]["conditions"]))
        if self.forbidden:
            raise ForbiddenError("patch azureidentities: forbidden; allow it in the role", status=403)
        obj = crd.render_identity(make.identity())
        shown = obj if self.drops else {**obj, "status": change["status"]}
        stored = self.cluster.identities.get(key)
        assert stored is not None
        shown["metadata"]["generation"] = stored.generation + 1
        if self.undated:
            kept = [one | {"observedGeneration": None} for one in change["status"]["conditions"]]
            shown["status"] = {"conditions": kept}
        return self.show(crd.parse_identity(shown))


def play(story: Callable[[FakeApi, Statuses], Any]) -> None:
    """Run a story with conditions that are being written, on a clock that jumps."""

    async def run() -> None:
        api = FakeApi(JumpingClock())
        statuses = Statuses(api, api.cluster, wall_clock=lambda: 0.0)  # type: ignore[arg-type]  # two methods are enough
        task = asyncio.create_task(statuses.run())
        await story(api, statuses)
        task.cancel()

    asyncio.run(run())


async def settle() -> None:
    """Let everybody run until only time could change something."""
    for _ in range(200):
        await asyncio.sleep(0)


def test_a_condition_is_written_once(caplog: pytest.LogCaptureFixture) -> None:
    """The same again is no write; nothing but `status.conditions` is named."""

    async def story(api: FakeApi, statuses: Statuses) -> None:
        for _ in range(3):
            statuses.want({KEY: (DONE,)}, {})
            await settle()
        assert [shown for _, _, shown in api.patches] == [crd.render_conditions([DONE_AT_ZERO])]

    play(story)
    assert caplog.text == ""


DONE_AT_ZERO = Condition("Assigned", "True", "Assigned", "on scale set ss", "1970-01-01T00:00:00Z", generation=2)


def test_the_first_changes_are_written_at_once() -> None:
    """Not in use, being assigned, assigned: whoever looks need not wait for any of it."""

    async def story(api: FakeApi, statuses: Statuses) -> None:
        for shown in (IDLE, NEW, DONE):
            before = api.clock.now()
            statuses.want({KEY: (shown,)}, {})
            await settle()
            at, _, (written,) = api.patches[-1]
            assert written["reason"] == shown.reason
            assert at - before <= GATHER_SECONDS
        assert len(api.patches) == AT_ONCE

    play(story)


def test_what_goes_on_changing_is_written_seldom() -> None:
    """What came in between is not written at all; the last word is."""

    async def story(api: FakeApi, statuses: Statuses) -> None:
        for number in range(AT_ONCE):
            statuses.want({KEY: (Condition("Assigned", "False", "Assigning", f"first {number}"),)}, {})
            await settle()
        for number in range(50):
            statuses.want({KEY: (Condition("Assigned", "False", "Assigning", str(number)),)}, {})
        statuses.want({KEY: (DONE,)}, {})
        await settle()
        assert len(api.patches) == AT_ONCE + 1
        assert api.patches[-1][0] - api.patches[0][0] >= PER_OBJECT_SECONDS
        assert api.patches[-1][2][0]["status"] == "True"

    play(story)


def test_a_role_without_the_right_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Under upstream's role MIC works, says once what is missing, and asks again after a good while."""

    async def story(api: FakeApi, statuses: Statuses) -> None:
        api.forbidden = True
        for number in range(20):
            statuses.want({KEY: (Condition("Assigned", "False", "Assigning", str(number)),)}, {})
            await settle()
        assert len(api.patches) == 1
        await api.clock.sleep(HOLD_OFF_SECONDS)
        api.forbidden = False
        statuses.want({KEY: (DONE,)}, {})
        await settle()
        assert len(api.patches) == 2

    with caplog.at_level(logging.INFO):
        play(story)
    assert [record.getMessage() for record in caplog.records] == [
        "conditions are not written on azureidentities: patch azureidentities: forbidden; allow it in the role"
    ]


def test_a_definition_that_drops_conditions_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Under upstream's CRDs."""

    async def story(api: FakeApi, statuses: Statuses) -> None:
        api.drops = True
        for number in range(20):
            statuses.want({KEY: (Condition("Assigned", "False", "Assigning", str(number)),)}, {})
            await settle()
        assert len(api.patches) == 1

    with caplog.at_level(logging.INFO):
        play(story)
    (record,) = caplog.records
    assert "azureidentities.aadpodidentity.k8s.io has no status.conditions; install ours" in record.getMessage()


def test_a_definition_that_drops_generations_costs_no_further_writes() -> None:
    """Each would look like the one before it; what a condition says is written as ever."""

    async def story(api: FakeApi, statuses: Statuses) -> None:
        api.undated = True
        for _ in range(20):
            statuses.want({KEY: (DONE,)}, {})
            await settle()
        assert len(api.patches) == 1
        statuses.want({KEY: (NEW,)}, {})
        await settle()
        assert len(api.patches) == 2

    play(story)


def test_a_new_generation_is_told_once() -> None:
    """The spec changed, and what was said of it is still true."""

    async def story(api: FakeApi, statuses: Statuses) -> None:
        statuses.want({KEY: (DONE,)}, {})
        await settle()
        said = crd.parse_identity({"status": {"conditions": api.patches[0][2]}}).conditions
        api.show(make.identity(generation=7, conditions=said))
        for _ in range(20):
            statuses.want({KEY: (DONE,)}, {})
            await settle()
        assert [shown[0]["observedGeneration"] for _, _, shown in api.patches] == [2, 8]

    play(story)


def test_what_is_gone_is_not_written() -> None:
    """An identity that was deleted in the meantime."""

    async def story(api: FakeApi, statuses: Statuses) -> None:
        statuses.want({KEY: (DONE,), ObjectKey("default", "gone"): (DONE,)}, {})
        await settle()
        assert [name for _, name, _ in api.patches] == ["reader"]

    play(story)


def test_the_story_is_told_on_the_objects(run_in_world: Callable[..., None]) -> None:
    """Through the real API and our definitions: identity and binding say that all is well, and `spec` is as it was."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(client_id="wrong"), make.binding(), make.pod())

        def told() -> list[str]:
            every = [
                one
                for kind in (IDENTITIES, BINDINGS)
                for obj in world.kubernetes.storage.list(str(kind))
                for one in (obj.get("status") or {}).get("conditions", ())
            ]
            return [f"{one['type']}={one['status']}: {one['message']}" for one in every]

        await world.until(lambda: "Assigned=True: on scale set ss" in told(), "the identity's condition")
        await world.until(lambda: "Applied=True: 1 pod on 1 node, 1 assigned" in told(), "the binding's condition")
        (stored,) = world.kubernetes.storage.list(str(IDENTITIES))
        assert stored["spec"] == crd.render_identity(make.identity(client_id="wrong"))["spec"]

    run_in_world(story)


def test_conditions_speak_of_the_generation_that_is_stored(run_in_world: Callable[..., None]) -> None:
    """Writing them makes a new generation, since there is no status subresource: that one is meant."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())

        def seen() -> list[tuple[int, int]]:
            return [
                (one["observedGeneration"], obj["metadata"]["generation"])
                for kind in (IDENTITIES, BINDINGS)
                for obj in world.kubernetes.storage.list(str(kind))
                for one in (obj.get("status") or {}).get("conditions", ())
                if one["status"] == "True"
            ]

        await world.until(lambda: len(seen()) == 2, "both conditions hold")
        assert all(observed == now > 1 for observed, now in seen())

    run_in_world(story)
