"""How long pods wait for their identities, on a clock that jumps: cases in which aad-pod-identity took minutes.

The whole of MIC between snapshot and ARM runs as it is: sync, plan, writes, workers; Kubernetes and ARM are in memory.
Measured on aad-pod-identity v1.8.17: the good ones of six with two bad ones after 4 s, with 33 refused PATCHes in 20 s;
not Assigned within 150 s after the role was granted; 429 with Retry-After 10: not within 120 s; 500 twice: 94 s;
another scale set's PATCH of 25 s: 24 s.
"""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import make
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.cluster import Pod, Snapshot
from podidentity.core.drift import Change
from podidentity.core.failing import Failing
from podidentity.core.identities import AzureAssignedIdentity, AzureIdentity, ObjectKey
from podidentity.core.matching import Skipped
from podidentity.core.planning import Write
from podidentity.errors import AzureError
from podidentity.mic.book import Book
from podidentity.mic.ports import Put
from podidentity.mic.sync import Surroundings, Sync
from podidentity.mic.targets import Tools, Workers

PATCH_SECONDS = 4.0


class JumpingLoop(asyncio.SelectorEventLoop):
    """Time passes only when everybody waits, and then at once."""

    def __init__(self) -> None:
        self._jumped = 0.0
        loop = self

        class Jumping(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                assert timeout is not None, "everybody waits for ever"
                loop._jumped += max(timeout, 0.0)
                return super().select(0)

        super().__init__(Jumping())

    def time(self) -> float:
        """Say how far it has jumped; the machine's own time does not count."""
        return self._jumped


class Azure:
    """Scale sets in memory. `errors` are raised first; `refused` identities spoil a PATCH at once, all named."""

    def __init__(self) -> None:
        self.carries: dict[Target, set[IdentityId]] = {}
        self.seconds: dict[Target, float] = {}
        self.refused: set[IdentityId] = set()
        self.errors: list[AzureError] = []
        self.patches: list[tuple[float, Change]] = []

    async def get(self, target: Target) -> TargetState:
        """Say what is there."""
        there = sorted(self.carries.setdefault(target, set()))
        return TargetState(frozenset(there), tuple((one, f"client-of-{one.name}") for one in there))

    async def patch(self, target: Target, change: Change, state: TargetState) -> TargetState:
        """Change it, in its time."""
        del state
        self.patches.append((asyncio.get_running_loop().time(), change))
        if self.errors:
            raise self.errors.pop(0)
        bad = self.refused & {*change.assign}
        if bad:
            said = ", ".join(one.text for one in sorted(bad))
            raise AzureError(said, status=403, code="LinkedAuthorizationFailed", said=said)
        await asyncio.sleep(self.seconds.get(target, PATCH_SECONDS))
        self.carries[target] = (self.carries[target] | {*change.assign}) - {*change.unassign}
        return await self.get(target)


class Memory:
    """A cluster: the ports of those who read it, write to it and tell of it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = snapshot
        self.changed = asyncio.Event()
        self.assigned_at: dict[tuple[str, str], float] = {}
        self._objects: dict[ObjectKey, AzureAssignedIdentity] = {}

    def snapshot(self, targets: Mapping[Target, TargetState], put: Put, failing: tuple[Failing, ...] = ()) -> Snapshot:
        """Freeze it."""
        objects = tuple(self._objects.values())
        return replace(self.now, assigned=objects, targets=dict(targets), put=dict(put), failing=failing)

    def add(self, *pods: Pod) -> None:
        """Create pods."""
        self.now = replace(self.now, pods=(*self.now.pods, *pods))
        self.changed.set()

    async def create(self, assigned: AzureAssignedIdentity) -> None:
        """Write one, and note when it became Assigned."""
        self._objects[assigned.key] = assigned
        if assigned.state == "Assigned":
            about = (assigned.pod.name, assigned.identity.key.name)
            self.assigned_at.setdefault(about, asyncio.get_running_loop().time())
        self.changed.set()

    replace = mark = create

    async def delete(self, assigned: AzureAssignedIdentity) -> None:
        """Delete one."""
        self._objects.pop(assigned.key, None)
        self.changed.set()

    async def load(self) -> Put | None:
        """Read no record."""
        return {}

    async def store(self, put: Put) -> None:
        """Write the record."""

    def assigned(self, identity: IdentityId, target: Target) -> None:
        """Say nothing."""

    def removed(self, identity: IdentityId, target: Target) -> None:
        """Say nothing."""

    def failed(self, identity: IdentityId, target: Target, why: str) -> None:
        """Say nothing."""

    def wrote(self, writes: Sequence[Write]) -> None:
        """Say nothing."""

    def refused(self, write: Write, why: str) -> None:
        """Say nothing."""

    def mistaken(self, identity: AzureIdentity, why: str) -> None:
        """Say nothing."""

    def skipped(self, skipped: Skipped) -> None:
        """Say nothing."""

    def want(self, identities: object, bindings: object) -> None:
        """Show no conditions."""


class Play:
    """A running MIC."""

    def __init__(self, memory: Memory, azure: Azure, workers: Workers) -> None:
        self.memory = memory
        self.azure = azure
        self.workers = workers

    def seconds(self, pod: str, identity: str) -> float:
        """When an identity became a pod's."""
        return self.memory.assigned_at[pod, identity]

    async def until(self, moment: float) -> None:
        """Let time pass."""
        await asyncio.sleep(moment - asyncio.get_running_loop().time())


def play(story: Callable[[Play], Awaitable[None]], names: str = "a", **nodes: str) -> None:
    """Run a story in a cluster with these nodes on these scale sets, where every pod has all identities `names`."""

    async def run() -> None:
        made = {name: make.node(name, scale_set) for name, scale_set in (nodes or {"n1": "ss"}).items()}
        bindings = [make.binding(name, azure_identity=name) for name in names]
        memory = Memory(make.snapshot([], [make.identity(name) for name in names], bindings, nodes=made))
        azure, policy = Azure(), make.policy()
        around: Any = Surroundings(memory, memory, memory, memory, memory.changed)
        async with asyncio.TaskGroup() as group:
            tools = Tools(azure, Book(memory, {}), memory, policy, memory.changed.set)
            workers = Workers(tools, group)
            term = group.create_task(Sync(around, policy).run(workers))
            await story(Play(memory, azure, workers))
            term.cancel()
            workers.want_all({})
            for task in workers._tasks.values():
                task.cancel()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(run())


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
