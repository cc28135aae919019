"""Which assigned identities should exist: pods with a label and a node, against bindings and identities.

The first half of a plan; `planning` compares the result with what exists. Linear in pods.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from podidentity.core import matching
from podidentity.core.cluster import Pod, Snapshot
from podidentity.core.identities import (
    AssignmentKey,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.core.matching import Match, Skipped

DEFAULT_NAMESPACE = "default"
"""Where assigned identities of identities that are not namespaced live (upstream: `pkg/mic`, makeAssignedIDs)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that decisions depend on; built once from MIC's flags and azure.json.

    `immutable_client_ids` and `cluster_client_id` (lower case) are never unassigned. `subscription` and `group` say
    where a node without an Azure provider ID lies.
    """

    force_namespaced: bool = False
    immutable_client_ids: frozenset[str] = frozenset()
    cluster_client_id: str = ""
    subscription: str = ""
    group: str = ""
    allow_list: bool = False
    """Whether namespaces must be allowed the identities that they name (`Snapshot.allowed`)."""
    assign_on_binding: bool = False
    """Whether a binding's identity goes on the targets before the first pod."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One pod on one node should have one identity because of one binding. No name yet: names are given on creation."""

    pod: ObjectKey
    node: str
    identity: AzureIdentity
    binding: AzureIdentityBinding

    @property
    def about(self) -> AssignmentKey:
        """The pod and the identity."""
        return AssignmentKey(self.pod, self.identity.key)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should exist, and what was left out and why."""

    assignments: Mapping[AssignmentKey, Assignment] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


def wanted(snapshot: Snapshot, policy: Policy) -> Wanted:
    """Say which assigned identities should exist.

    A finished pod, or one on a node that is gone, gets nothing new but keeps what it has: a CronJob would otherwise
    cost a PATCH with every run.
    """
    bindings = matching.by_selector(snapshot.bindings)
    existing = {assigned.about for assigned in snapshot.assigned}
    found: dict[AssignmentKey, Assignment] = {}
    skipped: dict[tuple[ObjectKey, str], Skipped] = {}  # thousands of pods may share one binding's mistake
    for pod in snapshot.pods:
        if not (pod.selector and pod.node):
            continue
        keeps_only = None if pod.live and pod.node in snapshot.nodes else existing
        for result in _of_pod(pod, bindings, snapshot, policy):
            if isinstance(result, Skipped):
                skipped.setdefault((result.binding, result.why), result)
            elif _may_exist(result, keeps_only):
                found[result.about] = result
    return Wanted(found, tuple(skipped.values()))


def object_namespace(identity: AzureIdentity, policy: Policy) -> str:
    """Where the assigned identity lives: with a namespaced identity, else in `default`."""
    return identity.key.namespace if identity.namespaced or policy.force_namespaced else DEFAULT_NAMESPACE


def plain_name(pod: ObjectKey, identity: AzureIdentity) -> str:
    """Upstream's name of an assigned identity."""
    return f"{pod.name}-{pod.namespace}-{identity.key.name}"


def _may_exist(assignment: Assignment, keeps_only: Collection[AssignmentKey] | None) -> bool:
    return keeps_only is None or assignment.about in keeps_only


def _of_pod(
    pod: Pod, bindings: matching.BindingsBySelector, snapshot: Snapshot, policy: Policy
) -> list[Assignment | Skipped]:
    """One assignment for each object name; the first in binding order wins."""
    results: list[Assignment | Skipped] = []
    by_object: dict[ObjectKey, Match] = {}
    for found in matching.matches(
        pod,
        bindings,
        snapshot.identities,
        force_namespaced=policy.force_namespaced,
        allowed=snapshot.allowed if policy.allow_list else None,
    ):
        if isinstance(found, Skipped):
            results.append(found)
            continue
        why = matching.identity_refusal(found.identity)
        if why is not None:
            results.append(Skipped(pod.key, found.binding.key, "MalformedResourceID", why))
            continue
        name = ObjectKey(object_namespace(found.identity, policy), plain_name(pod.key, found.identity))
        first = by_object.setdefault(name, found)
        if first is found:
            results.append(Assignment(pod.key, pod.node, found.identity, found.binding))
        elif first.identity.key != found.identity.key:
            results.append(_shadowed(found, first))
    return results


def _shadowed(found: Match, first: Match) -> Skipped:
    return Skipped(
        found.pod.key,
        found.binding.key,
        "NameTaken",
        f"AzureIdentity {found.identity.key} has the name of {first.identity.key}, which comes first; rename one",
    )
