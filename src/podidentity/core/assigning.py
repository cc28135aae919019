"""Which assigned identities should exist: pods with a label and a node, against bindings and identities.

The first half of a plan; `planning` compares the result with what exists. Linear in pods.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podidentity.core import matching
from podidentity.core.cluster import Snapshot
from podidentity.core.identities import (
    AssignmentKey,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.core.matching import Found, Skipped, Unusable

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


class Offer(NamedTuple):
    """Identities with the bindings that give them, and the bindings that give nothing."""

    given: list[tuple[AzureIdentity, AzureIdentityBinding]]
    left_out: list[tuple[ObjectKey, Unusable]]


class Offers:
    """What pods are offered by their namespace and label, whoever they are.

    Stands for as long as bindings, identities and what namespaces are allowed do.
    """

    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self._policy = policy
        self._selections = matching.Selections(
            snapshot.bindings,
            snapshot.identities,
            force_namespaced=policy.force_namespaced,
            allowed=snapshot.allowed if policy.allow_list else None,
        )
        self._known: dict[tuple[str, str], Offer] = {}

    def of(self, namespace: str, selector: str) -> Offer:
        """Say what these pods are offered."""
        offer = self._known.get((namespace, selector))
        if offer is None:
            offer = self._offer(self._selections.found(namespace, selector))
            if offer.given or offer.left_out:  # anybody may write any label
                self._known[namespace, selector] = offer
        return offer

    def _offer(self, found: Iterable[Found]) -> Offer:
        """One identity for each object name; the first in binding order wins."""
        offer = Offer([], [])
        by_name: dict[ObjectKey, AzureIdentity] = {}
        for binding, comes_to in found:
            if isinstance(comes_to, Unusable):
                offer.left_out.append((binding.key, comes_to))
                continue
            why = matching.identity_refusal(comes_to)
            if why is not None:
                offer.left_out.append((binding.key, Unusable("MalformedResourceID", why)))
                continue
            name = ObjectKey(object_namespace(comes_to, self._policy), comes_to.key.name)
            first = by_name.get(name)
            if first is None:
                by_name[name] = comes_to
                offer.given.append((comes_to, binding))
            elif first.key != comes_to.key:
                offer.left_out.append((binding.key, _shadowed(comes_to, first)))
        return offer


def wanted(snapshot: Snapshot, policy: Policy, offers: Offers | None = None) -> Wanted:
    """Say which assigned identities should exist. `offers` are those of this snapshot and policy, when at hand.

    A finished pod, or one on a node that is gone, gets nothing new but keeps what it has: a CronJob would otherwise
    cost a PATCH with every run.
    """
    offers = offers or Offers(snapshot, policy)
    existing = {assigned.about for assigned in snapshot.assigned}
    found: dict[AssignmentKey, Assignment] = {}
    skipped: dict[tuple[ObjectKey, str], Skipped] = {}  # thousands of pods may share one binding's mistake
    for pod in snapshot.pods:
        selector = pod.selector
        if not (selector and pod.node):
            continue
        offer = offers.of(pod.key.namespace, selector)
        keeps_only = None if pod.live and pod.node in snapshot.nodes else existing
        for identity, binding in offer.given:
            about = AssignmentKey(pod.key, identity.key)
            if keeps_only is None or about in keeps_only:
                found[about] = Assignment(pod.key, pod.node, identity, binding)
        for key, (code, why) in offer.left_out:
            if (key, why) not in skipped:
                skipped[key, why] = Skipped(pod.key, key, code, why)
    return Wanted(found, tuple(skipped.values()))


def object_namespace(identity: AzureIdentity, policy: Policy) -> str:
    """Where the assigned identity lives: with a namespaced identity, else in `default`."""
    return identity.key.namespace if identity.namespaced or policy.force_namespaced else DEFAULT_NAMESPACE


def plain_name(pod: ObjectKey, identity: AzureIdentity) -> str:
    """Upstream's name of an assigned identity."""
    return f"{pod.name}-{pod.namespace}-{identity.key.name}"


def _shadowed(identity: AzureIdentity, first: AzureIdentity) -> Unusable:
    why = f"AzureIdentity {identity.key} has the name of {first.key}, which comes first; rename one"
    return Unusable("NameTaken", why)
