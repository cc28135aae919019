"""The whole of MIC between snapshot and ARM on a clock that jumps; Kubernetes and ARM are in memory."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import make
from podidentity.core import warming
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.cluster import Pod, Snapshot
from podidentity.core.drift import Change
from podidentity.core.failing import Failing
from podidentity.core.identities import AzureAssignedIdentity, AzureIdentity, ObjectKey
from podidentity.core.matching import Skipped
from podidentity.core.planning import Write
from podidentity.errors import AzureError
from podidentity.mic.book import Book
from podidentity.mic.changes import Changes, Near
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
    """A cluster: the ports of those who read it, write to it and tell of it.

    `planned_for` is for how many pods each plan was, of those for a few; `wholes` counts the others.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = snapshot
        self.changes = Changes()
        self.assigned_at: dict[tuple[str, str], float] = {}
        self.planned_for: list[int] = []
        self.wholes = 0
        self._objects: dict[ObjectKey, AzureAssignedIdentity] = {}

    def snapshot(self, targets: Mapping[Target, TargetState], put: Put, failing: tuple[Failing, ...] = ()) -> Snapshot:
        """Freeze it."""
        self.wholes += 1
        objects = tuple(self._objects.values())
        return replace(self.now, assigned=objects, targets=dict(targets), put=dict(put), failing=failing)

    def close_up(self, near: Near, targets: Mapping[Target, TargetState], policy: Policy) -> Snapshot:
        """Freeze what is about a few pods."""
        nodes = {name for name, one in self.now.nodes.items() if warming.target_of(one, policy) in near.targets}
        pods = tuple(one for one in self.now.pods if one.key in near.pods or one.node in nodes)
        keys = near.pods | {one.key for one in pods}
        self.planned_for.append(len(keys))
        objects = tuple(one for one in self._objects.values() if one.pod in keys)
        return replace(self.now, pods=pods, assigned=objects, targets=dict(targets))

    @property
    def assigned_now(self) -> int:
        """How many objects there are in the state Assigned."""
        return sum(one.state == "Assigned" for one in self._objects.values())

    def remove(self, pod: Pod) -> None:
        """Delete a pod."""
        self.now = replace(self.now, pods=tuple(one for one in self.now.pods if one.key != pod.key))
        self.changes.pod(pod.key)

    def add(self, *pods: Pod) -> None:
        """Create pods."""
        self.now = replace(self.now, pods=(*self.now.pods, *pods))
        for pod in pods:
            self.changes.pod(pod.key)

    async def create(self, assigned: AzureAssignedIdentity) -> None:
        """Write one, and note when it became Assigned."""
        self._objects[assigned.key] = assigned
        if assigned.state == "Assigned":
            about = (assigned.pod.name, assigned.identity.key.name)
            self.assigned_at.setdefault(about, asyncio.get_running_loop().time())
        self.changes.soon()

    replace = mark = create

    async def delete(self, assigned: AzureAssignedIdentity) -> None:
        """Delete one."""
        self._objects.pop(assigned.key, None)
        self.changes.pod(assigned.pod)

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

    def unreadable(self, assigned: ObjectKey, why: str) -> None:
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
        around: Any = Surroundings(memory, memory, memory, memory, memory.changes)
        async with asyncio.TaskGroup() as group:
            tools = Tools(azure, Book(memory, {}), memory, policy, memory.changes.target)
            workers = Workers(tools, group)
            term = group.create_task(Sync(around, policy).run(workers))
            await story(Play(memory, azure, workers))
            term.cancel()
            workers.want_all({})
            for task in workers._tasks.values():
                task.cancel()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(run())
