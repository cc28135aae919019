"""What MIC's parts need of the world, and no more. `daemon` gives the real things, tests give fakes."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.cluster import Snapshot
from podidentity.core.conditions import Conditions
from podidentity.core.drift import Change
from podidentity.core.failing import Failing
from podidentity.core.identities import AzureAssignedIdentity, AzureIdentity, ObjectKey
from podidentity.core.matching import Skipped
from podidentity.core.planning import Write
from podidentity.mic.changes import Near

Put = Mapping[Target, frozenset[IdentityId]]


class Machines(Protocol):
    """The Azure side."""

    async def get(self, target: Target) -> TargetState:
        """Read what a target carries. Raises AzureError."""
        ...

    async def patch(self, target: Target, change: Change, state: TargetState) -> TargetState:
        """Change it and return when done; what the answer said of it. Raises AzureError."""
        ...


class Objects(Protocol):
    """Assigned identities in Kubernetes. Each raises KubernetesError."""

    async def create(self, assigned: AzureAssignedIdentity) -> None:
        """Create one."""
        ...

    async def replace(self, assigned: AzureAssignedIdentity) -> None:
        """Replace one."""
        ...

    async def mark(self, assigned: AzureAssignedIdentity) -> None:
        """Write its state and nothing else."""
        ...

    async def delete(self, assigned: AzureAssignedIdentity) -> None:
        """Release its finalizer and delete it; gone already is fine."""
        ...


class Records(Protocol):
    """What MIC itself put on each target, kept where the next leader finds it."""

    async def load(self) -> Put | None:
        """Read the record; None when there is none yet. Raises KubernetesError."""
        ...

    async def store(self, put: Put) -> None:
        """Write it. Raises KubernetesError."""
        ...


class Cluster(Protocol):
    """The cluster as the watches know it."""

    def snapshot(self, targets: Mapping[Target, TargetState], put: Put, failing: tuple[Failing, ...] = ()) -> Snapshot:
        """Freeze what is known now."""
        ...

    def close_up(self, near: Near, targets: Mapping[Target, TargetState], policy: Policy) -> Snapshot:
        """Freeze what is known of a few pods."""
        ...


class Storyteller(Protocol):
    """Tells users what happened to a binding."""

    def assigned(self, identity: IdentityId, target: Target) -> None:
        """An identity is on a target."""
        ...

    def removed(self, identity: IdentityId, target: Target) -> None:
        """An identity left a target."""
        ...

    def failed(self, identity: IdentityId, target: Target, why: str) -> None:
        """An identity cannot be put on a target."""
        ...


class Narrator(Protocol):
    """Tells users what became of the objects that a plan is about."""

    def wrote(self, writes: Sequence[Write]) -> None:
        """These writes went through."""
        ...

    def refused(self, write: Write, why: str) -> None:
        """A write did not go through, for a reason that is not just somebody else's write."""
        ...

    def skipped(self, skipped: Skipped) -> None:
        """A binding has no effect on a pod that it selects."""
        ...

    def mistaken(self, identity: AzureIdentity, why: str) -> None:
        """An AzureIdentity says something that Azure contradicts."""
        ...

    def unreadable(self, assigned: ObjectKey, why: str) -> None:
        """An assigned identity cannot be read, and is left alone."""
        ...


class Board(Protocol):
    """Where conditions are shown."""

    def want(self, identities: Conditions, bindings: Conditions) -> None:
        """Say what they should be. Never waits."""
        ...
