"""How long pods wait for their identities, on a clock that jumps: cases in which aad-pod-identity took minutes.

The whole of MIC between snapshot and ARM runs as it is: sync, plan, writes, workers; Kubernetes and ARM are in memory.
Measured on aad-pod-identity v1.8.17: the good ones of six with two bad ones after 4 s, with 33 refused PATCHes in 20 s;
not Assigned within 150 s after the role was granted; 429 with Retry-After 10: not within 120 s; 500 twice: 94 s;
another scale set's PATCH of 25 s: 24 s.
"""

from dataclasses import replace

import make
from daemons.mic.jumping import PATCH_SECONDS, Play, play
from podidentity.errors import AzureError


def test_two_bad_identities_among_six_delay_nobody_and_cost_three_patches() -> None:
    """The good ones after one PATCH; the bad ones within a minute after their role is granted."""

    async def story(now: Play) -> None:
        bad = now.azure.refused = {make.identity_id("b"), make.identity_id("e")}
        now.memory.add(make.pod())
        await now.until(20)
        assert all(now.seconds("web", name) < PATCH_SECONDS + 0.2 for name in "acdf")
        assert sum(bool(bad & {*change.assign}) for _, change in now.azure.patches) <= 3
        await now.until(100)
        now.azure.refused = set()
        await now.until(200)
        assert max(now.seconds("web", name) for name in "be") <= 160

    play(story, "abcdef")


def test_touching_an_azureidentity_ends_its_waiting() -> None:
    """One PATCH later the pod has it."""

    async def story(now: Play) -> None:
        now.azure.refused = {make.identity_id("a")}
        now.memory.add(make.pod())
        await now.until(101)
        now.azure.refused = set()
        now.workers.touch([make.identity_id("a")])
        await now.until(150)
        assert now.seconds("web", "a") <= 101 + PATCH_SECONDS + 0.2

    play(story)


def test_an_azureidentity_that_is_touched_all_the_time_delays_nobody() -> None:
    """A tenant's loop gets one try a minute besides those that everybody gets; others are assigned as ever."""

    async def story(now: Play) -> None:
        now.azure.refused = {make.identity_id("a")}
        now.memory.add(make.pod())
        for second in range(20, 320):
            await now.until(second)
            now.workers.touch([make.identity_id("a")])
        assert len(now.azure.patches) <= 18
        good = make.identity("good"), make.binding("good", azure_identity="good")
        identities = {**now.memory.now.identities, good[0].key: good[0]}
        now.memory.now = replace(now.memory.now, identities=identities, bindings=(*now.memory.now.bindings, good[1]))
        now.memory.changes.all()
        await now.until(330)
        assert now.seconds("web", "good") <= 319 + PATCH_SECONDS + 0.2

    play(story)


def test_after_429_the_identity_is_there_when_azure_allowed_it() -> None:
    """Retry-After 10, then one further PATCH."""

    async def story(now: Play) -> None:
        now.azure.errors = [AzureError("slow", status=429, code="TooManyRequests", retry_after_seconds=10.0)]
        now.memory.add(make.pod())
        await now.until(60)
        assert now.seconds("web", "a") <= 10 + PATCH_SECONDS + 0.2
        assert len(now.azure.patches) == 2

    play(story)


def test_two_errors_of_azures_cost_seconds() -> None:
    """Not a minute and a half."""

    async def story(now: Play) -> None:
        now.azure.errors = [AzureError("oh", status=500), AzureError("oh", status=500)]
        now.memory.add(make.pod())
        await now.until(60)
        assert now.seconds("web", "a") < 20

    play(story)


def test_another_scale_sets_patch_is_not_noticed() -> None:
    """25 s there, and here what one PATCH takes; nothing at all for what is there already."""

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
