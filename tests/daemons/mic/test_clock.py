"""How long pods wait for their identities, on a clock that jumps: cases in which aad-pod-identity took minutes.

All of MIC between snapshot and ARM runs as it is: sync, plan, writes, workers; Kubernetes and ARM are in memory.
Measured on aad-pod-identity v1.8.17: the good ones of six with two bad ones after 4 s, with 33 refused PATCHes in 20 s;
not Assigned within 150 s after the role was granted; 429 with Retry-After 10: not within 120 s; 500 twice: 94 s;
another scale set's PATCH of 25 s: 24 s.
"""

from dataclasses import replace

import pytest

import make
from daemons.mic.jumping import PATCH_SECONDS, Play, play
from podidentity.core.target.quarantine import LONGEST_PAUSE_SECONDS
from podidentity.errors import AzureError
from podidentity.mic import sync
from podidentity.mic.apply import BATCH


def test_two_bad_identities_among_six_delay_nobody_and_cost_three_patches() -> None:
    """The good ones are assigned by one PATCH, the bad ones within a minute after their role is granted."""

    async def story(now: Play) -> None:
        bad = now.azure.refused_identities = {make.identity_id("b"), make.identity_id("e")}
        now.memory.add(make.pod())
        await now.until(20)
        assert all(now.seconds("web", name) < PATCH_SECONDS + 0.2 for name in "acdf")
        assert sum(bool(bad & {*change.assign}) for _, change in now.azure.patches) <= 3
        await now.until(100)
        now.azure.refused_identities = set()
        await now.until(200)
        assert max(now.seconds("web", name) for name in "be") <= 160

    play(story, "abcdef")


def test_touching_an_azureidentity_ends_its_waiting() -> None:
    """After the AzureIdentity is touched, its pod has the identity one PATCH later."""

    async def story(now: Play) -> None:
        now.azure.refused_identities = {make.identity_id("a")}
        now.memory.add(make.pod())
        await now.until(101)
        now.azure.refused_identities = set()
        now.workers.touch([make.identity_id("a")])
        await now.until(150)
        assert now.seconds("web", "a") <= 101 + PATCH_SECONDS + 0.2

    play(story)


def test_an_azureidentity_that_is_touched_all_the_time_delays_nobody() -> None:
    """Constant touching buys one extra try a minute; other identities are assigned as ever."""

    async def story(now: Play) -> None:
        now.azure.refused_identities = {make.identity_id("a")}
        now.memory.add(make.pod())
        for second in range(20, 320):
            await now.until(second)
            now.workers.touch([make.identity_id("a")])
        assert len(now.azure.patches) <= 18
        good = make.identity("good"), make.binding("good", azure_identity="good")
        identities = {**now.memory.now.identities, good[0].key: good[0]}
        now.memory.now = replace(now.memory.now, identities=identities, bindings=(*now.memory.now.bindings, good[1]))
        now.memory.changes.request_full_plan()
        await now.until(330)
        assert now.seconds("web", "good") <= 319 + PATCH_SECONDS + 0.2

    play(story)


def test_pods_of_a_refused_identity_that_come_and_go_spend_no_patches_of_others() -> None:
    """MIC remembers the refusal although the scale set has no pods in between.

    A neighbour's pod then finds ARM's allowance nearly full, and is not sent together with the refused identity.
    """

    async def story(now: Play) -> None:
        now.azure.refused_identities = {make.identity_id("a")}
        for number in range(60):
            pod = make.pod(f"again-{number}")
            now.memory.add(pod)
            await now.until(10 * number + 5)
            now.memory.remove(pod)
            await now.until(10 * number + 10)
        assert now.workers.targets == ()
        assert len(now.azure.patches) <= 3 + 600 / LONGEST_PAUSE_SECONDS
        now.memory.now = replace(
            now.memory.now,
            identities={**now.memory.now.identities, make.identity("b").key: make.identity("b")},
            bindings=(make.binding("b", azure_identity="b", selector="other"), *now.memory.now.bindings),
        )
        now.memory.add(make.pod("neighbour", selector="other"))
        await now.until(620)
        assert now.seconds("neighbour", "b") <= 600 + PATCH_SECONDS + 0.5

    play(story)


def test_after_429_the_identity_is_there_when_azure_allowed_it() -> None:
    """With Retry-After 10, one PATCH follows after 10 s."""

    async def story(now: Play) -> None:
        now.azure.errors = [AzureError("slow", status=429, code="TooManyRequests", retry_after_seconds=10.0)]
        now.memory.add(make.pod())
        await now.until(60)
        assert now.seconds("web", "a") <= 10 + PATCH_SECONDS + 0.2
        assert len(now.azure.patches) == 2

    play(story)


def test_two_errors_of_azures_cost_seconds() -> None:
    """Two responses with status 500 delay a pod by less than 20 s."""

    async def story(now: Play) -> None:
        now.azure.errors = [AzureError("oh", status=500), AzureError("oh", status=500)]
        now.memory.add(make.pod())
        await now.until(60)
        assert now.seconds("web", "a") < 20

    play(story)


def test_another_scale_sets_patch_is_not_noticed() -> None:
    """A PATCH of 25 s delays no pod of another scale set, and none whose identity is there already."""

    async def story(now: Play) -> None:
        now.azure.seconds[make.target("slow")] = 25.0
        now.memory.add(make.pod("hangs", node="n1"))
        await now.until(1)
        now.memory.add(make.pod("quick", node="n2"))
        await now.until(10)
        now.memory.add(make.pod("second", node="n2"))
        await now.until(60)
        assert now.seconds("quick", "a") <= 1 + PATCH_SECONDS + 0.2
        assert now.seconds("second", "a") <= 10.1
        assert now.seconds("hangs", "a") <= 25.2

    play(story, n1="slow", n2="quick")


def test_a_pod_that_comes_during_a_plan_for_everything_waits_for_a_part_of_it() -> None:
    """Thousands of writes for one namespace are carried out in parts, with plans for changed pods in between."""

    async def story(now: Play) -> None:
        crowd = [make.pod(f"p{number}", "crowd") for number in range(3 * sync.PART)]
        now.memory.now = replace(now.memory.now, pods=tuple(crowd))
        now.memory.create_seconds = 0.01
        now.memory.changes.request_full_plan()
        await now.until(0.05)
        now.memory.add(make.pod("late", "other"))
        await now.until(3600)
        late = now.seconds("late", "a")
        assert late < now.seconds(f"p{3 * sync.PART - 1}", "a")

    play(story)


@pytest.mark.parametrize("create_seconds", [0.01, 1.0])
def test_a_pod_that_comes_during_a_plan_for_a_crowd_waits_for_a_part_of_it(create_seconds: float) -> None:
    """However slow the API server is, thousands of writes of one namespace take turns with another's single write."""

    async def story(now: Play) -> None:
        crowd = [make.pod(f"p{number}", "crowd") for number in range(3 * sync.PART)]
        now.memory.create_seconds = create_seconds
        now.memory.add(*crowd)
        await now.until(20 * create_seconds)
        now.memory.add(make.pod("late", "other"))
        before = len(now.memory.created)
        await now.until(3600)
        wait = next(index for index, name in enumerate(now.memory.created) if name == "late") - before
        part = min(sync.PART, max(sync.FIRST_PART, sync.PART_SECONDS * BATCH / create_seconds))
        assert wait <= 2 * part  # a part of the plan for changed pods, and one of a full plan
        assert {pod.key.name for pod in crowd} < set(now.memory.created)

    play(story)


def test_pods_that_come_all_the_time_hold_up_nobody_and_no_full_plan() -> None:
    """While one namespace's pods come faster than they are written, another's pod and full plans have their turn."""

    async def story(now: Play) -> None:
        now.memory.create_seconds = 1.0
        now.memory.add(*(make.pod(f"p{number}", "crowd") for number in range(sync.PART)))
        for second in range(1, 60):
            await now.until(second)
            now.memory.add(*(make.pod(f"p{second}-{number}", "crowd") for number in range(2 * BATCH)))
            if second == 30:
                full_plans = now.memory.full_plans
                now.memory.add(make.pod("late", "other"))
        assert now.seconds("late", "a") < 40
        assert now.memory.full_plans > full_plans

    play(story)
