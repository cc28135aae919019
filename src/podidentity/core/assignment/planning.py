"""What to do: the wanted assigned identities against the existing ones, and which identities each target must carry.

`plan` is a pure function of a snapshot: wherever an earlier plan was cut short, planning again from what is there now
converges. Objects are matched by pod and identity, never by name. `mic.apply` carries a plan out.
"""

import hashlib
import itertools
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core.assignment import idle_identities
from podidentity.core.assignment.assigning import Assignment, DesiredAssignments, object_namespace, plain_name
from podidentity.core.model import arm, steps
from podidentity.core.model.arm import ArmState, IdentityId, Target
from podidentity.core.model.crd import FINALIZER
from podidentity.core.model.identities import (
    AssignedState,
    AssignmentKey,
    AzureAssignedIdentity,
    IdentityType,
    ObjectKey,
)
from podidentity.core.model.matching import IneffectiveBinding
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Snapshot
from podidentity.core.model.steps import Steps

NAME_LIMIT = 253
"""The longest object name Kubernetes takes."""


@dataclass(frozen=True, slots=True)
class Create:
    """Create this object."""

    assigned_identity: AzureAssignedIdentity


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace the stored object of this name: node, identity or binding changed."""

    assigned_identity: AzureAssignedIdentity


@dataclass(frozen=True, slots=True)
class Mark:
    """Set the state of a stored object and nothing else."""

    assigned_identity: AzureAssignedIdentity


@dataclass(frozen=True, slots=True)
class Delete:
    """Take the finalizer off a stored object and delete it."""

    assigned_identity: AzureAssignedIdentity


Write = Create | Replace | Mark | Delete


@dataclass(frozen=True, slots=True)
class Plan:
    """Writes to Kubernetes in their order, the identities in use on each target, and what was left out and why.

    `in_use` also names targets with nothing in use, when MIC once put something on them.
    """

    writes: tuple[Write, ...] = ()
    in_use: Mapping[Target, frozenset[IdentityId]] = field(default_factory=dict)
    ineffective: tuple[IneffectiveBinding, ...] = ()


def plan(desired: DesiredAssignments, snapshot: Snapshot, policy: Policy) -> Plan:
    """Return what to do. Of each namespace, deletions stand first: they close access.

    Every write is about another object. A name that a deletion frees is used by the next plan, not by this one.
    """
    return steps.finish(plan_in_steps(desired, snapshot, policy, arm.client_ids(snapshot.targets.values())))


def plan_in_steps(
    desired: DesiredAssignments, snapshot: Snapshot, policy: Policy, client_ids: Mapping[IdentityId, str]
) -> Steps[Plan]:
    """Return the same, in steps. `client_ids` are those of the snapshot's targets."""
    by_subject, surplus = yield from _by_subject(snapshot.assigned_identities)
    writes: list[Write] = [Delete(item) for item in surplus]
    for entries in steps.parts(by_subject.items()):
        writes += [Delete(item) for subject, item in entries if subject not in desired.assignments]
        yield
    leaving = {write.assigned_identity.key for write in writes}
    carried_by_node = yield from _carried_by_node(snapshot, policy)
    new: list[AssignmentKey] = []
    for candidates in steps.parts(desired.assignments.items()):
        for subject, assignment in candidates:
            current = by_subject.get(subject)
            if current is None:
                new.append(subject)
                continue
            assignment_now = _with_client_id(assignment, current, client_ids)
            is_filled_in = assignment_now.identity is not assignment.identity
            state = _state(assignment, carried_by_node)
            writes += _update(current, assignment_now, state, is_filled_in=is_filled_in)
        yield
    names: set[ObjectKey] = set(snapshot.unreadable)
    for items in steps.parts(snapshot.assigned_identities if new else ()):
        names.update(item.key for item in items)
        yield
    for subjects in steps.parts((yield from steps.ordered(new, tuple))):  # their names depend on their order
        for assignment in map(desired.assignments.__getitem__, subjects):
            if _plain_key(assignment, policy) not in leaving:
                key = _free_key(assignment, names, policy)
                names.add(key)
                state = _state(assignment, carried_by_node)
                writes.append(Create(_object(_with_client_id(assignment, None, client_ids), key, state)))
        yield
    in_order = yield from by_turns(writes)
    in_use = yield from _in_use(desired, snapshot, policy)
    return Plan(tuple(in_order), in_use, desired.ineffective)


def by_turns(writes: Iterable[Write]) -> Steps[list[Write]]:
    """Return the writes so that the namespaces of their pods take turns; of each namespace, deletions first.

    Thousands of writes for one namespace's pods must not stand between another's pod and its identity.
    """
    deletions: defaultdict[str, deque[Write]] = defaultdict(deque)
    updates: defaultdict[str, deque[Write]] = defaultdict(deque)
    turns: dict[str, deque[Write]] = {}
    for part in steps.parts(writes):
        for write in part:
            namespace = write.assigned_identity.pod.namespace
            (deletions if isinstance(write, Delete) else updates)[namespace].append(write)
        yield
    for namespace in (*deletions, *updates):
        turns[namespace] = deletions[namespace] + updates[namespace]
    in_order: list[Write] = []
    while turns:
        for namespaces in steps.parts(tuple(turns)):
            for namespace in namespaces:
                in_order.append(turns[namespace].popleft())
                if not turns[namespace]:
                    del turns[namespace]
            yield
    return in_order


def with_newer(remaining: Iterable[Write], plan: Plan, pods: Collection[ObjectKey]) -> Steps[list[Write]]:
    """Return what is to be written after `plan` for `pods`: its writes, and those of an older plan for all others."""
    keys = {write.assigned_identity.key for write in plan.writes}
    older = (
        write
        for write in remaining
        if write.assigned_identity.pod not in pods and write.assigned_identity.key not in keys
    )
    return (yield from by_turns(itertools.chain(older, plan.writes)))


def adopted(snapshot: Snapshot, policy: Policy) -> Mapping[Target, frozenset[IdentityId]]:
    """Return what counts as put on targets by MIC when no record exists: what assigned identities in Assigned name.

    That is so after a swap from upstream.
    """
    by_target: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    for item in snapshot.assigned_identities:
        identity, node = item.identity.arm_id, snapshot.nodes.get(item.node)
        if identity is not None and node is not None and item.state == AssignedState.ASSIGNED:
            by_target[policy.target_of(node)].add(identity)
    return {target: frozenset(identities) for target, identities in by_target.items()}


def _by_subject(
    items: Iterable[AzureAssignedIdentity],
) -> Steps[tuple[dict[AssignmentKey, AzureAssignedIdentity], list[AzureAssignedIdentity]]]:
    """Return one object for each pod and identity, and the surplus: a second one, or one that is being deleted.

    Of several the first by name counts. An object under deletion that only others still hold is none of our business
    any more.
    """
    first: dict[AssignmentKey, AzureAssignedIdentity] = {}
    surplus: list[AzureAssignedIdentity] = []
    for part in steps.parts(items):
        for item in part:
            if item.deleting:
                surplus += [] if _is_others(item) else [item]
            elif (other := first.setdefault(item.assignment_key, item)) is not item:
                first[item.assignment_key], last = sorted((item, other), key=lambda entry: entry.key)
                surplus.append(last)
        yield
    return first, sorted(surplus, key=lambda entry: entry.key)


def _is_others(item: AzureAssignedIdentity) -> bool:
    return item.deleting and FINALIZER not in item.finalizers


def _with_client_id(
    assignment: Assignment, current: AzureAssignedIdentity | None, client_ids: Mapping[IdentityId, str]
) -> Assignment:
    """Return the assignment with the client ID that ARM reports; until it does, with its own or the stored one.

    The author of an AzureIdentity could otherwise give it another's client ID and answer requests for that one.
    """
    identity = assignment.identity
    if identity.arm_id is None:
        return assignment
    previous_client_id = current.identity.client_id if current and current.identity.arm_id == identity.arm_id else ""
    client_id = client_ids.get(identity.arm_id) or identity.client_id or previous_client_id
    if client_id.lower() == identity.client_id.lower():
        return assignment
    return replace(assignment, identity=replace(identity, client_id=client_id))


def _update(
    current: AzureAssignedIdentity, assignment: Assignment, state: AssignedState, *, is_filled_in: bool
) -> list[Write]:
    """Return what to write. A client ID that was only filled in is written, and takes nothing away from the pod."""
    is_same_identity = current.identity == assignment.identity
    only_filled_in = (
        is_filled_in and replace(current.identity, client_id=assignment.identity.client_id) == assignment.identity
    )
    moved = current.node != assignment.node or not (is_same_identity or only_filled_in)
    if not moved and current.state == AssignedState.ASSIGNED:
        state = AssignedState.ASSIGNED  # what Azure lost is put back by drift; the pod keeps asking meanwhile
    if moved or not is_same_identity or current.binding != assignment.binding:
        fresh = _object(assignment, current.key, state)
        return [Replace(replace(fresh, resource_version=current.resource_version, finalizers=current.finalizers))]
    if current.state != state:
        return [Mark(replace(current, state=state))]
    return []


def _object(assignment: Assignment, key: ObjectKey, state: AssignedState) -> AzureAssignedIdentity:
    return AzureAssignedIdentity(
        key=key,
        identity=assignment.identity,
        binding=assignment.binding,
        pod=assignment.pod,
        node=assignment.node,
        state=state,
        finalizers=(FINALIZER,),
    )


def _carried_by_node(snapshot: Snapshot, policy: Policy) -> Steps[dict[str, frozenset[IdentityId]]]:
    """Return the identities on each node's machine, as far as ARM has reported them."""
    empty = ArmState()
    by_node: dict[str, frozenset[IdentityId]] = {}
    for nodes in steps.parts(snapshot.nodes.values()):
        for node in nodes:
            by_node[node.name] = snapshot.targets.get(policy.target_of(node), empty).identities
        yield
    return by_node


def _state(assignment: Assignment, carried_by_node: Mapping[str, frozenset[IdentityId]]) -> AssignedState:
    """Return Assigned when nothing remains to be done in Azure, else Created."""
    if assignment.identity.type != IdentityType.USER_ASSIGNED:
        return AssignedState.ASSIGNED
    is_present = assignment.identity.arm_id in carried_by_node.get(assignment.node, ())
    return AssignedState.ASSIGNED if is_present else AssignedState.CREATED


def _in_use(
    desired: DesiredAssignments, snapshot: Snapshot, policy: Policy
) -> Steps[dict[Target, frozenset[IdentityId]]]:
    """Return what pods use and, with `--assign-on=binding`, what bindings put on targets before any pod."""
    in_use: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    for target in snapshot.assigned_by_mic:
        in_use[target] = set()
    for target, identities in (yield from idle_identities.preassigned(snapshot, policy)).items():
        in_use[target] |= identities
    by_node: defaultdict[str, set[IdentityId]] = defaultdict(set)
    for assignments in steps.parts(desired.assignments.values()):
        for assignment in assignments:
            identity = assignment.identity.arm_id
            if identity is not None:
                by_node[assignment.node].add(identity)
        yield
    for entries in steps.parts(by_node.items()):
        for name, identities in entries:
            node = snapshot.nodes.get(name)
            if node is not None:
                in_use[policy.target_of(node)] |= identities
        yield
    return {
        target: frozenset(identities) for target, identities in sorted(in_use.items(), key=lambda item: item[0].path)
    }


def _plain_key(assignment: Assignment, policy: Policy) -> ObjectKey:
    return ObjectKey(object_namespace(assignment.identity, policy), plain_name(assignment.pod, assignment.identity))


def _free_key(assignment: Assignment, names: set[ObjectKey], policy: Policy) -> ObjectKey:
    """Return upstream's name, or that name cut and hashed when it is too long or another object has it.

    That may be another pod's, or one that cannot be read: what we do not understand we do not write over.
    """
    namespace, name = _plain_key(assignment, policy)
    if len(name) > NAME_LIMIT or ObjectKey(namespace, name) in names:
        subject = "/".join((*assignment.pod, *assignment.identity.key))
        digest = hashlib.sha256(subject.encode()).hexdigest()[:10]
        name = f"{name[: NAME_LIMIT - 11].rstrip('.-')}-{digest}"
    return ObjectKey(namespace, name)
