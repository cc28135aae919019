"""All of MIC between snapshot and ARM on a clock that jumps; Kubernetes and ARM are in memory."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import make
from podidentity.core.assignment.planning import Write
from podidentity.core.model.arm import ArmState, IdentityId, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.identities import AzureAssignedIdentity, AzureIdentity, ObjectKey
from podidentity.core.model.matching import IneffectiveBinding
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Pod, Snapshot
from podidentity.core.target.drift import TargetChange
from podidentity.errors import AzureError
from podidentity.mic import slices
from podidentity.mic.changes import Changes
from podidentity.mic.context import TermContext
from podidentity.mic.ports import AssignedByMic, Ports
from podidentity.mic.settings import Settings
from podidentity.mic.term import Term
from podidentity.mic.workers import Workers

PATCH_SECONDS = 4.0


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when everybody waits, and then at once."""

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
        """Return how far the loop's time has jumped; the machine's own time does not count."""
        return self._jumped


class Azure:
    """Scale sets in memory. `errors` are raised first; `refused_identities` spoil a PATCH at once, all named."""

    def __init__(self) -> None:
        self.carries: dict[Target, set[IdentityId]] = {}
        self.seconds: dict[Target, float] = {}
        self.refused_identities: set[IdentityId] = set()
        self.errors: list[AzureError] = []
        self.patches: list[tuple[float, TargetChange]] = []

    async def get(self, target: Target) -> ArmState:
        """Return which identities a target carries."""
        identities = sorted(self.carries.setdefault(target, set()))
        return ArmState(
            frozenset(identities), tuple((identity, f"client-of-{identity.name}") for identity in identities)
        )

    async def client_id(self, identity: IdentityId) -> str:
        """Return the client ID of an identity."""
        return f"client-of-{identity.name}"

    async def patch(self, target: Target, change: TargetChange, state: ArmState) -> ArmState:
        """Change a target after its seconds have passed."""
        del state
        self.patches.append((asyncio.get_running_loop().time(), change))
        if self.errors:
            raise self.errors.pop(0)
        bad = self.refused_identities & {*change.assign}
        if bad:
            message = ", ".join(identity.text for identity in sorted(bad))
            raise AzureError(message, status=403, code="LinkedAuthorizationFailed", service_message=message)
        await asyncio.sleep(self.seconds.get(target, PATCH_SECONDS))
        self.carries[target] = (self.carries[target] | {*change.assign}) - {*change.unassign}
        return await self.get(target)


class Memory:
    """All ports to a cluster. `full_plans` counts full plans; `partial_plan_sizes` has each partial plan's pods.

    `created` has the pod of each write, in their order.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = snapshot
        self.changes = Changes()
        self.assigned_at: dict[tuple[str, str], float] = {}
        self.partial_plan_sizes: list[int] = []
        self.full_plans = 0
        self.create_seconds = 0.0
        self.created: list[str] = []
        self._objects: dict[ObjectKey, AzureAssignedIdentity] = {}

    def snapshot(
        self,
        targets: Mapping[Target, ArmState],
        assigned_by_mic: AssignedByMic,
        failing: tuple[AssignmentFailure, ...] = (),
    ) -> Snapshot:
        """Return a snapshot of the complete cluster, as for a full plan."""
        self.full_plans += 1
        objects = tuple(self._objects.values())
        return replace(
            self.now,
            assigned_identities=objects,
            targets=dict(targets),
            assigned_by_mic=dict(assigned_by_mic),
            failing=failing,
        )

    def pods_on(self, targets: AbstractSet[Target], policy: Policy) -> Iterable[ObjectKey]:
        """Return the pods on the nodes of some targets."""
        nodes = {name for name, node in self.now.nodes.items() if policy.target_of(node) in targets}
        return [pod.key for pod in self.now.pods if pod.node in nodes]

    def partial_snapshot(self, pods: AbstractSet[ObjectKey], targets: Mapping[Target, ArmState]) -> Snapshot:
        """Return a snapshot of a few pods."""
        values = tuple(pod for pod in self.now.pods if pod.key in pods)
        self.partial_plan_sizes.append(len(pods))
        objects = tuple(identity for identity in self._objects.values() if identity.pod in pods)
        return replace(self.now, pods=values, assigned_identities=objects, targets=dict(targets))

    @property
    def objects(self) -> tuple[AzureAssignedIdentity, ...]:
        """Return all objects."""
        return tuple(self._objects.values())

    @property
    def assigned_now(self) -> int:
        """Return how many objects are in the state Assigned."""
        return sum(identity.state == "Assigned" for identity in self._objects.values())

    def remove(self, pod: Pod) -> None:
        """Delete a pod."""
        self.now = replace(self.now, pods=tuple(other for other in self.now.pods if other.key != pod.key))
        self.changes.note_pod(pod.key)

    def add(self, *pods: Pod) -> None:
        """Create pods."""
        self.now = replace(self.now, pods=(*self.now.pods, *pods))
        for pod in pods:
            self.changes.note_pod(pod.key)

    async def create(self, identity: AzureAssignedIdentity) -> None:
        """Write an object, and note when it first became Assigned."""
        if self.create_seconds:
            await asyncio.sleep(self.create_seconds)
        self._objects[identity.key] = identity
        self.created.append(identity.pod.name)
        if identity.state == "Assigned":
            key = (identity.pod.name, identity.identity.key.name)
            self.assigned_at.setdefault(key, asyncio.get_running_loop().time())
        self.changes.schedule_full_plan()

    replace = mark = create

    async def delete(self, identity: AzureAssignedIdentity) -> None:
        """Delete an object."""
        self._objects.pop(identity.key, None)
        self.changes.note_pod(identity.pod)

    async def load(self) -> AssignedByMic | None:
        """Return an empty record."""
        return {}

    async def store(self, assigned_by_mic: AssignedByMic) -> None:
        """Write the record."""

    def report_assigned(self, identity: IdentityId, target: Target) -> None:
        """Report nothing."""

    def report_removed(self, identity: IdentityId, target: Target) -> None:
        """Report nothing."""

    def report_failing(self, identity: IdentityId, target: Target, message: str) -> None:
        """Report nothing."""

    def report_writes(self, writes: Sequence[Write]) -> None:
        """Report nothing."""

    def report_failed_write(self, write: Write, message: str) -> None:
        """Report nothing."""

    def report_wrong_client_id(self, identity: AzureIdentity, message: str) -> None:
        """Report nothing."""

    def report_unreadable(self, key: ObjectKey, message: str) -> None:
        """Report nothing."""

    def report_skipped(self, skip: IneffectiveBinding) -> None:
        """Report nothing."""

    def update(self, identities: object, bindings: object) -> None:
        """Write no conditions."""

    def show(self, target: Target, state: ArmState) -> None:
        """Do nothing: there is no NMI."""

    def replace_all(self, states: Mapping[Target, ArmState], targets: Iterable[Target]) -> None:
        """Do nothing: there is no NMI."""

    async def run(self) -> None:
        """Write no conditions, and tell no NMI."""


class Play:
    """A running MIC."""

    def __init__(self, memory: Memory, azure: Azure, term: Term) -> None:
        self.memory = memory
        self.azure = azure
        self._term = term

    @property
    def workers(self) -> Workers:
        """The workers, once the term has begun."""
        assert self._term.workers is not None
        return self._term.workers

    def seconds(self, pod: str, identity: str) -> float:
        """Return when an identity was assigned to a pod."""
        return self.memory.assigned_at[pod, identity]

    @property
    def time(self) -> float:
        """Return the current moment on the clock that jumps."""
        return asyncio.get_running_loop().time()

    async def until(self, moment: float) -> None:
        """Let time pass until a moment."""
        await asyncio.sleep(moment - asyncio.get_running_loop().time())


def play(
    story: Callable[[Play], Awaitable[None]], names: str = "a", *, pause_seconds: float = 0.0, **nodes: str
) -> None:
    """Run a story in a cluster with these nodes on these scale sets, where every pod has all identities `names`."""

    async def run() -> None:
        node_values = {name: make.node(name, scale_set) for name, scale_set in (nodes or {"n1": "ss"}).items()}
        bindings = [make.binding(name, azure_identity=name) for name in names]
        memory = Memory(make.snapshot([], [make.identity(name) for name in names], bindings, nodes=node_values))
        azure = Azure()
        ports = Ports(
            cluster=memory,
            objects=memory,
            records=memory,
            machines=azure,
            events=memory,
            conditions=memory,
            machine_states=memory,
            remove_leftovers=memory.run,
            identity_changes=lambda _: nullcontext(),
        )
        term = Term(TermContext(ports, memory.changes, make.policy(), Settings()))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(term.run())
            await story(Play(memory, azure, term))
            task.cancel()

    # How many slices a plan has depends on the machine; unless a test counts them, they take no time on this clock.
    with mock.patch.object(slices, "PAUSE_SECONDS", pause_seconds), asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(run())
