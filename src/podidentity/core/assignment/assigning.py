"""Which assigned identities should exist: pods with a label and a node, against bindings and identities.

The first half of a plan; `planning` compares the result with what exists. Linear in pods.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podidentity.core.model import matching, steps
from podidentity.core.model.identities import AssignmentKey, AzureIdentity, AzureIdentityBinding, ObjectKey
from podidentity.core.model.matching import BindingResult, IneffectiveBinding, Unusable
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Snapshot
from podidentity.core.model.steps import Steps

DEFAULT_NAMESPACE = "default"
"""Namespace of assigned identities for identities that are not namespaced (upstream: `pkg/mic`, makeAssignedIDs)."""
IDENTITIES_PER_POD = 32
"""More give a pod nothing: each is an object in etcd, an entry in NMI and a part of each plan."""
ASSIGNMENTS_PER_NAMESPACE = 20_000
"""Of one namespace's pods, so that its pods times its identities cannot fill etcd, MIC and NMI for all."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One pod on one node should have one identity because of one binding. No name yet: names are given on creation."""

    pod: ObjectKey
    node: str
    identity: AzureIdentity
    binding: AzureIdentityBinding

    @property
    def assignment_key(self) -> AssignmentKey:
        """The pod and the identity."""
        return AssignmentKey(self.pod, self.identity.key)


@dataclass(frozen=True, slots=True)
class DesiredAssignments:
    """The assigned identities that should exist, and the bindings that give nothing and why."""

    assignments: Mapping[AssignmentKey, Assignment] = field(default_factory=dict)
    ineffective: tuple[IneffectiveBinding, ...] = ()
    full: frozenset[str] = frozenset()
    """Namespaces at their bound of assigned identities: only a full plan can say which pod gets one."""


class Grant(NamedTuple):
    """An identity, and the binding that gives it."""

    identity: AzureIdentity
    binding: AzureIdentityBinding


class Offer(NamedTuple):
    """The grants and the bindings without effect for some pods, both in the order of the bindings."""

    grants: tuple[Grant, ...]
    unusable: tuple[tuple[ObjectKey, Unusable], ...]


class Offers:
    """The offers for pods by their namespace and label.

    Stands for as long as bindings, identities and what namespaces are allowed do.
    """

    def __init__(self, snapshot: Snapshot, policy: Policy) -> None:
        self._policy = policy
        self._selections = matching.Selections(
            snapshot.bindings,
            snapshot.identities,
            force_namespaced=policy.force_namespaced,
            permissions=snapshot.allow_list if policy.allow_list else None,
        )
        self._offers: dict[tuple[str, str], Offer] = {}

    def offer_for(self, namespace: str, selector: str) -> Offer:
        """Return what the pods of a namespace with this label are offered."""
        offer = self._offers.get((namespace, selector))
        if offer is None:
            offer = self._offer(namespace, self._selections.selecting(namespace, selector))
            if offer.grants or offer.unusable:  # anybody may write any label
                self._offers[namespace, selector] = offer
        return offer

    def _offer(self, namespace: str, selection: Iterable[BindingResult]) -> Offer:
        """Return one identity for each object name, and no more than a pod may have.

        The first in binding order gets a name, but those of the pods' own namespace come before all others: nobody
        elsewhere can take their place.
        """
        grants: dict[ObjectKey, Grant] = {}
        unusable: list[tuple[ObjectKey, Unusable]] = []
        for binding, result in sorted(selection, key=lambda entry: entry.binding.key.namespace != namespace):
            identity = result if isinstance(result, Unusable) else self._admitted(result, grants)
            if isinstance(identity, Unusable):
                unusable.append((binding.key, identity))
            else:
                grants.setdefault(self._object_name(identity), Grant(identity, binding))
        in_order = sorted(grants.values(), key=lambda grant: grant.binding.key)
        return Offer(tuple(in_order), tuple(sorted(unusable, key=lambda entry: entry[0])))

    def _admitted(self, identity: AzureIdentity, grants: Mapping[ObjectKey, Grant]) -> AzureIdentity | Unusable:
        """Return an identity that can be added to `grants` or is there already; or why it cannot."""
        message = matching.identity_refusal(identity)
        if message is not None:
            return Unusable("MalformedResourceID", message)
        first = grants.get(self._object_name(identity))
        if first is not None:
            return identity if first.identity.key == identity.key else _shadowed(identity, first.identity)
        return _TOO_MANY if len(grants) >= IDENTITIES_PER_POD else identity

    def _object_name(self, identity: AzureIdentity) -> ObjectKey:
        return ObjectKey(object_namespace(identity, self._policy), identity.key.name)


def desired_assignments(snapshot: Snapshot, policy: Policy, offers: Offers | None = None) -> DesiredAssignments:
    """Return which assigned identities should exist. `offers` are those of this snapshot and policy, when at hand."""
    return steps.finish(desired_in_steps(snapshot, offers or Offers(snapshot, policy)))


def desired_in_steps(snapshot: Snapshot, offers: Offers) -> Steps[DesiredAssignments]:
    """Return the same, in steps.

    A finished pod, or one on a node that is gone, gets nothing new but keeps what it has: a CronJob would otherwise
    cost a PATCH with every run.
    """
    current_keys = yield from _current_keys(snapshot)
    assignments: dict[AssignmentKey, Assignment] = {}
    counts: Counter[str] = Counter()
    ineffective: dict[
        tuple[ObjectKey, str], IneffectiveBinding
    ] = {}  # thousands of pods may share one binding's mistake
    reported: set[int] = set()
    for pods in steps.parts(snapshot.pods):
        for pod in pods:
            selector = pod.selector
            if not (selector and pod.node):
                continue
            offer = offers.offer_for(pod.key.namespace, selector)
            keeps_only = None if pod.live and pod.node in snapshot.nodes else current_keys
            for identity, binding in offer.grants:
                subject = AssignmentKey(pod.key, identity.key)
                if keeps_only is None or subject in keeps_only:
                    assignments[subject] = Assignment(pod.key, pod.node, identity, binding)
                    counts[pod.key.namespace] += 1
            if offer.unusable and id(offer) not in reported:  # an empty one does not last: its ID would come again
                reported.add(id(offer))
                for key, (code, message) in offer.unusable:
                    ineffective.setdefault((key, message), IneffectiveBinding(pod.key, key, code, message))
        yield
    surplus = yield from _surplus(assignments, counts, current_keys)
    for part in steps.parts(surplus):
        for subject in part:
            binding = assignments.pop(subject).binding
            code, message = _namespace_full(subject.pod.namespace)
            ineffective.setdefault((binding.key, message), IneffectiveBinding(subject.pod, binding.key, code, message))
        yield
    return DesiredAssignments(
        assignments, tuple(ineffective.values()), frozenset(subject.pod.namespace for subject in surplus)
    )


def _current_keys(snapshot: Snapshot) -> Steps[set[AssignmentKey]]:
    """Return which pods have which identities now.

    What is being deleted is no longer there: a plan that is cut between its deletion and its return must end alike.
    """
    current_keys: set[AssignmentKey] = set()
    for items in steps.parts(snapshot.assigned_identities):
        current_keys.update(item.assignment_key for item in items if not item.deleting)
        yield
    return current_keys


def _surplus(
    assignments: Mapping[AssignmentKey, Assignment],
    counts: Mapping[str, int],
    current_keys: Collection[AssignmentKey],
) -> Steps[list[AssignmentKey]]:
    """Return what is over the bound of its pods' namespace: what exists stays, then the first pods by name."""
    full = {namespace for namespace, count in counts.items() if count > ASSIGNMENTS_PER_NAMESPACE}
    by_namespace: defaultdict[str, list[AssignmentKey]] = defaultdict(list)
    for part in steps.parts(assignments if full else ()):
        for subject in part:
            if subject.pod.namespace in full:
                by_namespace[subject.pod.namespace].append(subject)
        yield
    surplus: list[AssignmentKey] = []
    for subjects in by_namespace.values():
        in_order = yield from steps.ordered(subjects, lambda subject: (subject not in current_keys, subject))
        surplus += in_order[ASSIGNMENTS_PER_NAMESPACE:]
    return surplus


def object_namespace(identity: AzureIdentity, policy: Policy) -> str:
    """Return the namespace of the assigned identity: that of a namespaced identity, else `default`."""
    return identity.key.namespace if identity.namespaced or policy.force_namespaced else DEFAULT_NAMESPACE


def plain_name(pod: ObjectKey, identity: AzureIdentity) -> str:
    """Return upstream's name of an assigned identity."""
    return f"{pod.name}-{pod.namespace}-{identity.key.name}"


def _shadowed(identity: AzureIdentity, first: AzureIdentity) -> Unusable:
    message = f"AzureIdentity {identity.key} has the name of {first.key}, which comes first; rename one"
    return Unusable("NameTaken", message)


def _namespace_full(namespace: str) -> Unusable:
    message = (
        f"the pods of namespace {namespace} have {ASSIGNMENTS_PER_NAMESPACE} assigned identities, the most that one "
        "namespace may have; give its pods fewer identities"
    )
    return Unusable("NamespaceFull", message)


_TOO_MANY = Unusable(
    "TooManyIdentities",
    f"its pods have {IDENTITIES_PER_POD} identities already, the most that a pod may have; give them fewer, or another "
    "label",
)
