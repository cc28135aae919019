"""What a pod costs a MIC that has many: the number of plans, and the number of pods in each; no times."""

import pytest

import make
from daemons.mic.jumping import PATCH_SECONDS, Play, play
from podidentity.mic.sync import LONGEST_REST_SECONDS, REST_SECONDS_PER_POD

MANY, LONE = 2_000, 100
BETWEEN_SECONDS = 0.1


def test_a_lone_pod_is_planned_for_alone_though_a_scale_set_hangs() -> None:
    """Pods that come one by one are Assigned at once, each by a plan for that pod alone."""

    async def story(now: Play) -> None:
        azure, memory = now.azure, now.memory
        memory.add(*(make.pod(f"p{number}", node=f"n{number % 2}") for number in range(MANY)))
        await now.until(60)
        assert memory.assigned_now == MANY
        azure.seconds[make.target("ss0")] = 600.0
        azure.carries[make.target("ss0")].clear()  # somebody took it off: MIC puts it back
        await now.until(300)
        assert len(azure.patches) == 3
        full_plans, partial_plans = memory.full_plans, len(memory.partial_plan_sizes)
        for number in range(LONE):
            memory.add(make.pod(f"lone{number}", node="n1"))
            await now.until(300 + (number + 1) * BETWEEN_SECONDS)
            assert now.seconds(f"lone{number}", "a") == pytest.approx(300 + number * BETWEEN_SECONDS)
        assert memory.partial_plan_sizes[partial_plans:] == [1] * LONE
        rest_seconds = min(MANY * REST_SECONDS_PER_POD, LONGEST_REST_SECONDS)
        assert 1 <= memory.full_plans - full_plans <= LONE * BETWEEN_SECONDS / rest_seconds + 1

    play(story, n0="ss0", n1="ss1")


def test_pods_that_come_all_the_time_do_not_keep_the_others_waiting() -> None:
    """An unused identity is removed by a full plan, although changed pods come all the time."""

    async def story(now: Play) -> None:
        first = make.pod("first", node="n0")
        now.memory.add(first)
        await now.until(PATCH_SECONDS + 1)
        assert now.azure.carries[make.target("ss0")]
        now.memory.remove(first)
        for number in range(200):
            now.memory.add(make.pod(f"p{number}", node="n1"))
            await now.until(PATCH_SECONDS + 1 + number * 0.05)
        await now.until(PATCH_SECONDS * 2 + 12)
        assert not now.azure.carries[make.target("ss0")]

    play(story, n0="ss0", n1="ss1")


def test_what_a_target_tells_is_planned_for_its_own_pods() -> None:
    """After a PATCH only the pods of its scale set are planned for."""

    async def story(now: Play) -> None:
        now.memory.add(*(make.pod(f"p{number}", node="n1" if number < 5 else "n0") for number in range(300)))
        now.azure.seconds[make.target("ss0")] = 60.0
        await now.until(PATCH_SECONDS + 1)
        assert now.memory.assigned_now == 5
        assert 300 in now.memory.partial_plan_sizes
        assert now.memory.partial_plan_sizes[-1] == 5

    play(story, n0="ss0", n1="ss1")
