"""What to do: the wanted assigned identities against the existing ones, and which identities each target must carry.

`plan` is a pure function of a snapshot: wherever an earlier plan was cut short, planning again from what is there now
converges. Objects are matched by pod and identity, never by name. `mic.apply` carries a plan out.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core import arm, warming
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Assignment, Policy, Wanted, object_namespace, plain_name
from podidentity.core.cluster import Snapshot
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
    """Compare and decide. Deletions stand first: they close access.

    Every write is about another object. A name that a deletion frees is used by the next plan, not by this one.
    """
    existing, surplus = _by_subject(snapshot.assigned)
    writes: list[Write] = [Delete(assigned) for assigned in surplus]
    writes += [Delete(assigned) for about, assigned in existing.items() if about not in wanted.assignments]
    leaving = {write.assigned.key for write in writes}
    taken = {assigned.key for assigned in snapshot.assigned} | snapshot.unreadable.keys()
    filling = any(not one.identity.client_id for one in wanted.assignments.values())
    told = arm.client_ids(snapshot.targets.values()) if filling else {}
    carried = _carried(snapshot, policy)
    new = sorted(wanted.assignments.keys() - existing.keys())  # their names depend on their order
    for about in [*(about for about in wanted.assignments if about in existing), *new]:
        assignment, stored = wanted.assignments[about], existing.get(about)
        filled = _filled(assignment, stored, told)
        state = _state(assignment, carried)
        if stored is not None:
            writes += _update(stored, filled, state, was_empty=not assignment.identity.client_id)
        elif _plain_key(assignment, policy) not in leaving:
            key = _free_key(assignment, taken, policy)
            taken.add(key)
            writes.append(Create(_stored(filled, key, state)))
    return Plan(tuple(writes), _in_use(wanted, snapshot, policy), wanted.skipped)


def taken_over(snapshot: Snapshot, policy: Policy) -> Mapping[Target, frozenset[IdentityId]]:
    """Say what counts as put by MIC when no record exists yet: what the assigned identities in Assigned name.

    Called once, when MIC first finds no record: after a swap from upstream.
    """
    put: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    for assigned in snapshot.assigned:
        identity, node = assigned.identity.arm_id, snapshot.nodes.get(assigned.node)
        if identity is not None and node is not None and assigned.state == AssignedState.ASSIGNED:
            put[warming.target_of(node, policy)].add(identity)
    return {target: frozenset(identities) for target, identities in put.items()}


def _by_subject(
    assigned: Iterable[AzureAssignedIdentity],
) -> tuple[dict[AssignmentKey, AzureAssignedIdentity], list[AzureAssignedIdentity]]:
    """One object for each pod and identity; what is second, or being deleted, is surplus.

    An object under deletion that only others still hold is none of our business any more.
    """
    first: dict[AssignmentKey, AzureAssignedIdentity] = {}
    ordered = sorted((one for one in assigned if not _is_others(one)), key=lambda one: one.key)
    surplus = [one for one in ordered if one.deleting or first.setdefault(one.about, one) is not one]
    return first, surplus


def _is_others(stored: AzureAssignedIdentity) -> bool:
    return stored.deleting and FINALIZER not in stored.finalizers


def _filled(assignment: Assignment, stored: AzureAssignedIdentity | None, told: Mapping[IdentityId, str]) -> Assignment:
    """Give an identity without a client ID the one that ARM tells; until ARM has been asked, what was stored."""
    identity = assignment.identity
    if identity.client_id or identity.arm_id is None:
        return assignment
    before = stored.identity.client_id if stored and stored.identity.arm_id == identity.arm_id else ""
    return replace(assignment, identity=replace(identity, client_id=told.get(identity.arm_id, before)))


def _update(
    stored: AzureAssignedIdentity, assignment: Assignment, state: AssignedState, *, was_empty: bool
) -> list[Write]:
    """Say what to write. A client ID that was only filled in is written, and takes nothing away from the pod."""
    same = stored.identity == assignment.identity
    filled_in = was_empty and replace(stored.identity, client_id=assignment.identity.client_id) == assignment.identity
    moved = stored.node != assignment.node or not (same or filled_in)
    if not moved and stored.state == AssignedState.ASSIGNED:
        state = AssignedState.ASSIGNED  # what Azure lost is put back by drift; the pod keeps asking meanwhile
    if moved or not same or stored.binding != assignment.binding:
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


def _carried(snapshot: Snapshot, policy: Policy) -> dict[str, frozenset[IdentityId]]:
    """Say what each node's machine carries, as far as ARM told."""
    nothing = TargetState()
    return {
        node.name: snapshot.targets.get(warming.target_of(node, policy), nothing).identities
        for node in snapshot.nodes.values()
    }


def _state(assignment: Assignment, carried: Mapping[str, frozenset[IdentityId]]) -> AssignedState:
    """Assigned when nothing is left to do in Azure, else Created."""
    if assignment.identity.type != IdentityType.USER_ASSIGNED:
        return AssignedState.ASSIGNED
    there = assignment.identity.arm_id in carried.get(assignment.node, ())
    return AssignedState.ASSIGNED if there else AssignedState.CREATED


def _in_use(wanted: Wanted, snapshot: Snapshot, policy: Policy) -> dict[Target, frozenset[IdentityId]]:
    """What pods use, and, with `--assign-on=binding`, what bindings promise."""
    in_use: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    for target in snapshot.put:
        in_use[target] = set()
    for target, identities in warming.promised(snapshot, policy).items():
        in_use[target] |= identities
    used: defaultdict[str, set[IdentityId]] = defaultdict(set)
    for assignment in wanted.assignments.values():
        identity = assignment.identity.arm_id
        if identity is not None:
            used[assignment.node].add(identity)
    for name, identities in used.items():
        node = snapshot.nodes.get(name)
        if node is not None:
            in_use[warming.target_of(node, policy)] |= identities
    return {
        target: frozenset(identities) for target, identities in sorted(in_use.items(), key=lambda item: item[0].path)
    }


def _plain_key(assignment: Assignment, policy: Policy) -> ObjectKey:
    return ObjectKey(object_namespace(assignment.identity, policy), plain_name(assignment.pod, assignment.identity))


def _free_key(assignment: Assignment, taken: set[ObjectKey], policy: Policy) -> ObjectKey:
    """Upstream's name, or that name cut and hashed when it is too long or another object has it.

    That may be another pod's, or one that cannot be read: what we do not understand we do not write over.
    """
    namespace, name = _plain_key(assignment, policy)
    if len(name) > NAME_LIMIT or ObjectKey(namespace, name) in taken:
        subject = "/".join((*assignment.pod, *assignment.identity.key))
        digest = hashlib.sha256(subject.encode()).hexdigest()[:10]
        name = f"{name[: NAME_LIMIT - 11].rstrip('.-')}-{digest}"
    return ObjectKey(namespace, name)
