"""What to do: the wanted assigned identities against the existing ones, and which identities each target must carry.

`plan` is a pure function of a snapshot: wherever an earlier plan was cut short, planning again from what is there now
converges. Objects are matched by pod and identity, never by name. `mic.apply` carries a plan out.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core import arm
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Assignment, Policy, Wanted, object_namespace, plain_name
from podidentity.core.cluster import Node, Snapshot
from podidentity.core.crd import FINALIZER
from podidentity.core.identities import (
    AssignedState,
    AssignmentKey,
    AzureAssignedIdentity,
    IdentityType,
    ObjectKey,
)
from podidentity.core.matching import Skipped

NAME_LIMIT = 253
"""The longest object name Kubernetes takes."""


@dataclass(frozen=True, slots=True)
class Create:
    """Create this object."""

    assigned: AzureAssignedIdentity


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace the stored object of this name: node, identity or binding changed."""

    assigned: AzureAssignedIdentity


@dataclass(frozen=True, slots=True)
class Mark:
    """Set the state of a stored object and nothing else."""

    assigned: AzureAssignedIdentity


@dataclass(frozen=True, slots=True)
class Delete:
    """Take the finalizer off a stored object and delete it."""

    assigned: AzureAssignedIdentity


Write = Create | Replace | Mark | Delete


@dataclass(frozen=True, slots=True)
class Plan:
    """Writes to Kubernetes in their order, the identities in use on each target, and what was left out and why.

    `in_use` also names targets with nothing in use, when MIC once put something on them.
    """

    writes: tuple[Write, ...] = ()
    in_use: Mapping[Target, frozenset[IdentityId]] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


def plan(wanted: Wanted, snapshot: Snapshot, policy: Policy) -> Plan:
    """Compare and decide. Deletions stand first: they free names and close access."""
    existing, surplus = _by_subject(snapshot.assigned)
    writes: list[Write] = [Delete(assigned) for assigned in surplus]
    writes += [Delete(assigned) for about, assigned in existing.items() if about not in wanted.assignments]
    taken = {assigned.key for assigned in snapshot.assigned}
    for about, assignment in sorted(wanted.assignments.items()):
        state = _state(assignment, snapshot, policy)
        if about not in existing:
            key = _free_key(assignment, taken, policy)
            taken.add(key)
            writes.append(Create(_stored(assignment, key, state)))
        else:
            writes += _update(existing[about], assignment, state)
    return Plan(tuple(writes), _in_use(wanted, snapshot, policy), wanted.skipped)


def taken_over(snapshot: Snapshot, policy: Policy) -> Mapping[Target, frozenset[IdentityId]]:
    """Say what counts as put by MIC when no record exists yet: what the assigned identities in Assigned name.

    Called once, when MIC first finds no record: after a swap from upstream.
    """
    put: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    for assigned in snapshot.assigned:
        identity, node = assigned.identity.arm_id, snapshot.nodes.get(assigned.node)
        if identity is not None and node is not None and assigned.state == AssignedState.ASSIGNED:
            put[_target(node, policy)].add(identity)
    return {target: frozenset(identities) for target, identities in put.items()}


def _by_subject(
    assigned: Iterable[AzureAssignedIdentity],
) -> tuple[dict[AssignmentKey, AzureAssignedIdentity], list[AzureAssignedIdentity]]:
    """One object for each pod and identity; what is second, or being deleted, is surplus."""
    first: dict[AssignmentKey, AzureAssignedIdentity] = {}
    ordered = sorted(assigned, key=lambda one: one.key)
    surplus = [one for one in ordered if one.deleting or first.setdefault(one.about, one) is not one]
    return first, surplus


def _update(stored: AzureAssignedIdentity, assignment: Assignment, state: AssignedState) -> list[Write]:
    moved = stored.node != assignment.node or stored.identity != assignment.identity
    if not moved and stored.state == AssignedState.ASSIGNED:
        state = AssignedState.ASSIGNED  # what Azure lost is put back by drift; the pod keeps asking meanwhile
    if moved or stored.binding != assignment.binding:
        fresh = _stored(assignment, stored.key, state)
        return [Replace(replace(fresh, resource_version=stored.resource_version, finalizers=stored.finalizers))]
    if stored.state != state:
        return [Mark(replace(stored, state=state))]
    return []


def _stored(assignment: Assignment, key: ObjectKey, state: AssignedState) -> AzureAssignedIdentity:
    return AzureAssignedIdentity(
        key=key,
        identity=assignment.identity,
        binding=assignment.binding,
        pod=assignment.pod,
        node=assignment.node,
        state=state,
        finalizers=(FINALIZER,),
    )


def _state(assignment: Assignment, snapshot: Snapshot, policy: Policy) -> AssignedState:
    """Assigned when nothing is left to do in Azure, else Created."""
    if assignment.identity.type != IdentityType.USER_ASSIGNED:
        return AssignedState.ASSIGNED
    node = snapshot.nodes.get(assignment.node)
    known = snapshot.targets.get(_target(node, policy), TargetState()) if node else TargetState()
    return AssignedState.ASSIGNED if assignment.identity.arm_id in known.identities else AssignedState.CREATED


def _in_use(wanted: Wanted, snapshot: Snapshot, policy: Policy) -> dict[Target, frozenset[IdentityId]]:
    in_use: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    for target in snapshot.put:
        in_use[target] = set()
    for assignment in wanted.assignments.values():
        identity, node = assignment.identity.arm_id, snapshot.nodes.get(assignment.node)
        if identity is not None and node is not None:
            in_use[_target(node, policy)].add(identity)
    return {
        target: frozenset(identities) for target, identities in sorted(in_use.items(), key=lambda item: item[0].path)
    }


def _target(node: Node, policy: Policy) -> Target:
    return arm.target_of(node.name, node.provider_id, policy.subscription, policy.group)


def _free_key(assignment: Assignment, taken: set[ObjectKey], policy: Policy) -> ObjectKey:
    """Upstream's name, or that name cut and hashed when it is too long or another pod's object has it."""
    namespace = object_namespace(assignment.identity, policy)
    name = plain_name(assignment.pod, assignment.identity)
    if len(name) > NAME_LIMIT or ObjectKey(namespace, name) in taken:
        subject = "/".join((*assignment.pod, *assignment.identity.key))
        digest = hashlib.sha256(subject.encode()).hexdigest()[:10]
        name = f"{name[: NAME_LIMIT - 11].rstrip('.-')}-{digest}"
    return ObjectKey(namespace, name)
