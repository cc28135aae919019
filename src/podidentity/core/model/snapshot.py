"""Pods and nodes as far as decisions need them, and one frozen picture of the cluster: the Snapshot.

MIC plans from a Snapshot; NMI looks at single pods.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podidentity.core.model.allow_list import AllowList
from podidentity.core.model.arm import ArmState, IdentityId, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.identities import (
    POD_LABEL,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)

LIVE_PHASES = frozenset({"Pending", "Running"})


class Owner(NamedTuple):
    """The controller that created a pod."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod. `ips` is empty until the network is set up; a host-network pod has its node's addresses."""

    key: ObjectKey
    uid: str
    node: str = ""
    phase: str = "Pending"
    ips: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    host_network: bool = False
    owner: Owner | None = None
    service_account: str = ""
    ending: bool = False
    """It has been deleted and stays until its containers have ended."""

    @property
    def selector(self) -> str:
        """The value of the label that bindings select by; empty without the label."""
        return self.labels.get(POD_LABEL, "")

    @property
    def live(self) -> bool:
        """Pending or Running: a finished pod keeps its address in its status but no longer owns it."""
        return self.phase in LIVE_PHASES


@dataclass(frozen=True, slots=True)
class Node:
    """A node and what Azure calls it (`spec.providerID`, empty on clusters without a cloud provider)."""

    name: str
    provider_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment: all that a plan is made from.

    `targets` is the state of each VM and scale set in ARM (absent: not yet read); `assigned_by_mic` the identities that
    MIC itself put on each target, as recorded in its ConfigMap; `failing` is what Azure refuses.
    """

    pods: tuple[Pod, ...] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    identities: Mapping[ObjectKey, AzureIdentity] = field(default_factory=dict)
    bindings: tuple[AzureIdentityBinding, ...] = ()
    assigned_identities: tuple[AzureAssignedIdentity, ...] = ()
    targets: Mapping[Target, ArmState] = field(default_factory=dict)
    assigned_by_mic: Mapping[Target, frozenset[IdentityId]] = field(default_factory=dict)
    failing: tuple[AssignmentFailure, ...] = ()
    allow_list: AllowList = field(default_factory=dict)
    """What each namespace is allowed; counts only with `Policy.allow_list`."""
    unreadable: Mapping[ObjectKey, str] = field(default_factory=dict)
    """Assigned identities that cannot be parsed, and why: their names are in use."""
