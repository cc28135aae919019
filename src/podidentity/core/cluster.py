"""What the decisions need to know of pods and nodes, and one frozen picture of the cluster: the Snapshot.

`kube` fills these from the API, `tests/make.py` builds them; `mic` plans from a Snapshot, `nmi` looks at single pods.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podidentity.core.allowing import AllowList
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.failing import Failing
from podidentity.core.identities import (
    POD_LABEL,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)

LIVE_PHASES = frozenset({"Pending", "Running"})


class Owner(NamedTuple):
    """The controller that made a pod."""

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
    """Somebody has deleted it; it is still there until its containers have ended."""

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
    """Everything a plan is made from, at one moment.

    `targets` holds what ARM last said of each VM and scale set (absent: never asked); `put` holds the identities that
    MIC itself put on each target, as recorded in its ConfigMap; `failing` is what Azure refuses.
    """

    pods: tuple[Pod, ...] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    identities: Mapping[ObjectKey, AzureIdentity] = field(default_factory=dict)
    bindings: tuple[AzureIdentityBinding, ...] = ()
    assigned: tuple[AzureAssignedIdentity, ...] = ()
    targets: Mapping[Target, TargetState] = field(default_factory=dict)
    put: Mapping[Target, frozenset[IdentityId]] = field(default_factory=dict)
    failing: tuple[Failing, ...] = ()
    allowed: AllowList = field(default_factory=dict)
    """What namespaces are allowed; counts only with `Policy.allow_list`."""
    unreadable: Mapping[ObjectKey, str] = field(default_factory=dict)
    """Assigned identities that nobody can read, and why: their names are taken."""
