"""A plan that is made in slices equals the plan made without a pause, and no change between two slices is lost."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make
from daemons.mic.jumping import Play, play
from podidentity.core.assignment import assigning, conditions, planning
from podidentity.core.assignment.assigning import Offers
from podidentity.core.assignment.conditions import Conditions
from podidentity.core.assignment.planning import Plan
from podidentity.core.model import arm, steps
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Snapshot
from podidentity.core.model.steps import Steps
from podidentity.mic import slices, sync
from podidentity.mic.changes import FULL_PLAN_DELAY_SECONDS
from unit.core.assignment.test_planning import POLICIES, snapshots

NODES = {"n0": "ss0", "n1": "ss1", "n2": "ss1"}
NAMES = "ab"


def whole(snapshot: Snapshot, policy: Policy) -> tuple[Plan, tuple[Conditions, Conditions]]:
    """Plan without a pause."""
    desired = assigning.desired_assignments(snapshot, policy)
    plan = planning.plan(desired, snapshot, policy)
    return plan, conditions.of_plan(plan, desired, snapshot, policy)


async def sliced(snapshot: Snapshot, policy: Policy) -> tuple[Plan, tuple[Conditions, Conditions]]:
    """Plan in slices."""
    client_ids = await slices.run(arm.client_ids_in_steps(snapshot.targets.values()))
    desired = await slices.run(assigning.desired_in_steps(snapshot, Offers(snapshot, policy)))
    plan = await slices.run(planning.plan_in_steps(desired, snapshot, policy, client_ids))
    return plan, await slices.run(conditions.of_plan_in_steps(plan, desired, snapshot, policy, client_ids))


@pytest.fixture(scope="module", autouse=True)
def smallest_slices() -> Iterator[None]:
    """Let each slice have one item, and pause after it."""
    with mock.patch.object(steps, "STEP", 1), mock.patch.object(slices, "SLICE_SECONDS", 0.0):
        yield


@given(snapshots(), snapshots(), POLICIES)
@settings(max_examples=50, deadline=None)
async def test_a_plan_in_slices_is_the_plan_at_a_stretch(snapshot: Snapshot, other: Snapshot, policy: Policy) -> None:
    """For any cluster both plans are equal, even while another plan is made in between."""

    async def both() -> tuple[tuple[Plan, tuple[Conditions, Conditions]], ...]:
        return await asyncio.gather(sliced(snapshot, policy), sliced(other, policy))

    with mock.patch.object(slices, "PAUSE_SECONDS", 0.0):
        in_slices = tuple(await both())
    with mock.patch.object(steps, "STEP", 10_000):
        assert in_slices == (whole(snapshot, policy), whole(other, policy))


@given(st.lists(st.integers()), st.integers(1, 9))
def test_sorting_in_steps_is_sorting(numbers: list[int], step: int) -> None:
    """The result is that of `sorted`, equal elements in their old order."""
    pairs = list(enumerate(numbers))
    with mock.patch.object(steps, "STEP", step):
        assert steps.finish(steps.ordered(pairs, lambda pair: pair[1] // 2)) == sorted(
            pairs, key=lambda pair: pair[1] // 2
        )


async def test_other_work_has_its_turn_between_two_slices() -> None:
    """Between any two steps another task of the event loop runs."""
    turns: list[str] = []

    def count() -> Steps[str]:
        for number in range(3):
            turns.append(f"step {number}")
            yield
        return "result"

    async def others() -> None:
        while True:
            turns.append("other")
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    assert await slices.run(count()) == "result"
    task.cancel()
    steps_at = [turns.index(f"step {number}") for number in range(3)]
    assert all("other" in turns[start:end] for start, end in itertools.pairwise(steps_at))


async def test_a_computation_gives_way_to_a_pod_and_goes_on() -> None:
    """While there is something to give way to, pauses are the long ones, and the computation still comes to its end."""
    pauses: list[float] = []

    def count() -> Steps[int]:
        for _ in range(3):
            yield
        return 3

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    background = slices.Slices()
    with mock.patch.object(asyncio, "sleep", note):
        assert await background.run(count()) == 3
        with background.give_way():
            assert await background.run(count()) == 3
        assert await background.run(count()) == 3
    short, long = [slices.PAUSE_SECONDS] * 3, [slices.LONG_PAUSE_SECONDS] * 3
    assert pauses == [*short, *long, *short]


EVENTS = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from(("add", "remove")), st.integers(0, 5)), min_size=1, max_size=12
)


@given(EVENTS)
@settings(max_examples=60, deadline=None)
def test_what_changes_while_a_plan_is_made_is_not_lost(events: list[tuple[int, str, int]]) -> None:
    """Pods come and go between any two slices; in the end objects and identities fit the pods that are left."""

    async def story(now: Play) -> None:
        pods = {number: make.pod(f"p{number}", node=f"n{number % len(NODES)}") for number in range(6)}
        for number in (0, 1):
            now.memory.add(pods[number])
        await now.until(30.0)
        for moment, act, number in sorted(events):
            await now.until(30.0 + moment * 0.007)
            now.memory.remove(pods[number])
            if act == "add":
                now.memory.add(pods[number])
            now.memory.changes.request_full_plan()
        await now.until(120.0)
        current = {(pod.key, name) for pod in now.memory.now.pods for name in NAMES}
        objects = now.memory.objects
        assert {(item.pod, item.identity.key.name) for item in objects} == current
        assert {item.state for item in objects} <= {"Assigned"}
        for target in ("ss0", "ss1"):
            uses = any(NODES[pod.node] == target for pod in now.memory.now.pods)
            names = {identity.name for identity in now.azure.carries.get(make.target(target), set())}
            assert names == (set(NAMES) if uses else set())

    play(story, NAMES, pause_seconds=0.005, **NODES)


def test_a_full_plan_takes_nothing_from_a_pod_that_came_meanwhile() -> None:
    """A full plan that does not know a new pod does not take the pod's identity off the scale set."""

    async def story(now: Play) -> None:
        first = make.pod("first", node="n0")
        now.memory.add(first)
        await now.until(30.0)
        assert len(now.azure.patches) == 1
        full_plans = now.memory.full_plans
        now.memory.remove(first)
        while now.memory.full_plans == full_plans:
            await now.until(now.time + 0.001)
        now.memory.add(make.pod("second", node="n0"))
        await now.until(60.0)
        assert now.memory.full_plans > full_plans + 1
        assert len(now.azure.patches) == 1

    play(story, pause_seconds=0.01, n0="ss0")


def test_a_full_plan_does_not_write_what_a_newer_plan_has_written() -> None:
    """Both plans find a pod without its object; only the plan for the pod alone creates it."""

    async def story(now: Play) -> None:
        memory, pod = now.memory, make.pod("late", node="n0")
        memory.add(make.pod("first", node="n0"))
        await now.until(30.0)
        full_plans = memory.full_plans
        memory.now = replace(memory.now, pods=(*memory.now.pods, pod))
        memory.changes.request_full_plan()
        while memory.full_plans == full_plans:
            await now.until(now.time + 0.001)
        memory.changes.note_pod(pod.key)
        await now.until(60.0)
        assert memory.created.count("late") == 1

    play(story, pause_seconds=0.01, n0="ss0")


def test_urgent_full_plans_do_not_wait_for_the_rest_and_do_not_follow_each_other_for_ever() -> None:
    """A requested full plan starts at once, but a thousand requests in a row are slowed down to a limited rate."""

    async def story(now: Play) -> None:
        memory = now.memory
        memory.add(*(make.pod(f"p{number}", node="n0") for number in range(1000)))
        await now.until(100.0)
        full_plans, rest_seconds = memory.full_plans, 1000 * sync.REST_SECONDS_PER_POD
        memory.changes.schedule_full_plan()
        await now.until(100.0 + FULL_PLAN_DELAY_SECONDS + 0.001)
        assert memory.full_plans == full_plans + 1
        memory.changes.request_full_plan()
        await now.until(now.time + 0.001)
        assert memory.full_plans == full_plans + 2
        for _ in range(1000):
            memory.changes.request_full_plan()
            await now.until(now.time + 0.01)
        most = 10 / rest_seconds + sync.BORROWED_RESTS + 3
        assert most / 2 < memory.full_plans - full_plans <= most

    play(story, n0="ss0")
