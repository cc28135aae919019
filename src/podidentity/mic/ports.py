"""What MIC's loops need of Kubernetes and Azure: `wiring` supplies the adapters, tests supply fakes."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from podidentity.core.assignment.conditions import Conditions
from podidentity.core.assignment.planning import Write
from podidentity.core.model.arm import ArmState, IdentityId, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.identities import AzureAssignedIdentity, AzureIdentity, ObjectKey
from podidentity.core.model.matching import IneffectiveBinding
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Snapshot
from podidentity.core.target.drift import TargetChange

AssignedByMic = Mapping[Target, frozenset[IdentityId]]
"""The identities that MIC itself assigned to each VM or scale set. Only these may it ever remove."""


class Machines(Protocol):
    """VMs and scale sets in ARM."""

    async def get(self, target: Target) -> ArmState:
        """Return which identities a target carries. Raises AzureError."""
        ...

    async def client_id(self, identity: IdentityId) -> str:
        """Return the client ID that an identity has now. Raises AzureError."""
        ...

    async def patch(self, target: Target, change: TargetChange, state: ArmState) -> ArmState:
        """Change the identities of a target and return, once ARM is done, what its answer says. Raises AzureError."""
        ...


class Objects(Protocol):
    """AzureAssignedIdentities in Kubernetes. Every method raises KubernetesError."""

    async def create(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Create the object."""
        ...

    async def replace(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Replace the object."""
        ...

    async def mark(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Write the object's state and nothing else."""
        ...

    async def delete(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Remove MIC's finalizer and delete the object; a missing object is no error."""
        ...


class Records(Protocol):
    """Where the next leader finds what MIC assigned."""

    async def load(self) -> AssignedByMic | None:
        """Return the record; None when there is none yet. Raises KubernetesError."""
        ...

    async def store(self, assigned_by_mic: AssignedByMic) -> None:
        """Write the record. Raises KubernetesError."""
        ...


class Cluster(Protocol):
    """The cluster as the watches show it."""

    def snapshot(
        self,
        targets: Mapping[Target, ArmState],
        assigned_by_mic: AssignedByMic,
        failing: tuple[AssignmentFailure, ...] = (),
    ) -> Snapshot:
        """Return the whole cluster as it is now."""
        ...

    def pods_on(self, targets: AbstractSet[Target], policy: Policy) -> Iterable[ObjectKey]:
        """Return the pods on the nodes of some targets."""
        ...

    def partial_snapshot(self, pods: AbstractSet[ObjectKey], targets: Mapping[Target, ArmState]) -> Snapshot:
        """Return only these pods, and what concerns them."""
        ...


class TargetEvents(Protocol):
    """Events about identities on targets."""

    def report_assigned(self, identity: IdentityId, target: Target) -> None:
        """Report that an identity is on a target."""
        ...

    def report_removed(self, identity: IdentityId, target: Target) -> None:
        """Report that an identity was removed from a target."""
        ...

    def report_failing(self, identity: IdentityId, target: Target, message: str) -> None:
        """Report that an identity cannot be assigned to a target."""
        ...


class Events(TargetEvents, Protocol):
    """Events for users, about identities on targets and about single objects."""

    def report_writes(self, writes: Sequence[Write]) -> None:
        """Report writes of assigned identities that succeeded."""
        ...

    def report_failed_write(self, write: Write, message: str) -> None:
        """Report a write that failed, that is not outdated."""
        ...

    def report_skipped(self, skip: IneffectiveBinding) -> None:
        """Report that a binding has no effect on a pod that it selects."""
        ...

    def report_wrong_client_id(self, identity: AzureIdentity, message: str) -> None:
        """Report an AzureIdentity whose client ID is not the one in Azure."""
        ...

    def report_unreadable(self, key: ObjectKey, message: str) -> None:
        """Report an assigned identity that cannot be read and is therefore left alone."""
        ...


class ConditionWriter(Protocol):
    """Conditions in the status of AzureIdentities and AzureIdentityBindings."""

    def update(self, identities: Conditions, bindings: Conditions) -> None:
        """Replace the conditions that are to be written. Never waits."""
        ...

    async def run(self) -> None:
        """Write conditions until cancelled."""
        ...


class MachineStates(Protocol):
    """What NMI is told of each VM and scale set."""

    def show(self, target: Target, state: ArmState) -> None:
        """Have written what is on a target. Never waits."""
        ...

    def replace_all(self, states: Mapping[Target, ArmState], targets: Iterable[Target]) -> None:
        """Have written what is on all targets, and removed what is about others than `targets`. Never waits."""
        ...

    async def run(self) -> None:
        """Write and remove until cancelled."""
        ...


class IdentityListener(Protocol):
    """Receives the changes that users make to AzureIdentities."""

    def expect(self, client_ids: Mapping[IdentityId, str]) -> None:
        """Replace the client IDs that AzureIdentities state."""
        ...

    def touch(self, identities: Iterable[IdentityId]) -> None:
        """Take note that users changed the AzureIdentities of these identities."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside MIC that one term as leader works with."""

    cluster: Cluster
    objects: Objects
    records: Records
    machines: Machines
    events: Events
    conditions: ConditionWriter
    machine_states: MachineStates
    remove_leftovers: Callable[[], Coroutine[Any, Any, None]]
    """Remove what former settings left in Kubernetes."""

    identity_changes: Callable[[IdentityListener], AbstractContextManager[None]]
    """Make the context in which a listener hears of changed AzureIdentities."""
