"""What `kubectl describe` tells of an AzureIdentity and an AzureIdentityBinding: the plan's facts as conditions.

`Assigned` on an identity says whether it is on every VM and scale set that needs it; `ClientIDMatches` whether its
`clientID` is the one that Azure knows; `Applied` on a binding whether every pod that it selects has the identity. Made
by `mic.sync` with each plan, written by `condition_writer` when they differ, and shown by `explain`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core.assignment.assigning import Assignment, DesiredAssignments
from podidentity.core.assignment.planning import Plan
from podidentity.core.model import arm, label_selector, matching, redact, steps
from podidentity.core.model.arm import IdentityId, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.identities import (
    POD_LABEL,
    AssignedState,
    AssignmentKey,
    AzureIdentity,
    AzureIdentityBinding,
    Condition,
    IdentityType,
    ObjectKey,
)
from podidentity.core.model.label_selector import BadSelector
from podidentity.core.model.matching import Unusable
from podidentity.core.model.policy import ConditionLevel, Policy
from podidentity.core.model.snapshot import Snapshot
from podidentity.core.model.steps import Steps
from podidentity.core.model.wording import some_of

ASSIGNED_TYPE = "Assigned"
CLIENT_ID_MATCHES = "ClientIDMatches"
APPLIED = "Applied"

PASSING = frozenset({"NotInUse", "NoPods", "Assigning"})
"""Reasons of a condition that is False for now, or for want of pods: nobody has to act."""

ITEMS_NAMED = 5  # of a list in a message; the rest is counted
MESSAGE_LIMIT = 1024
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")  # what Kubernetes allows as a reason

Conditions = Mapping[ObjectKey, tuple[Condition, ...]]


@dataclass(slots=True)
class _Facts:
    """The plan, by what the conditions are about."""

    targets: defaultdict[IdentityId, list[Target]] = field(default_factory=lambda: defaultdict(list))
    failing: defaultdict[IdentityId, list[AssignmentFailure]] = field(default_factory=lambda: defaultdict(list))
    assignments: defaultdict[ObjectKey, list[Assignment]] = field(default_factory=lambda: defaultdict(list))
    ready: set[AssignmentKey] = field(default_factory=set)


def of_plan(
    plan: Plan, desired: DesiredAssignments, snapshot: Snapshot, policy: Policy
) -> tuple[Conditions, Conditions]:
    """Return what the conditions of all identities, and of all bindings, should be."""
    client_ids = arm.client_ids(snapshot.targets.values())
    return steps.finish(of_plan_in_steps(plan, desired, snapshot, policy, client_ids))


def of_plan_in_steps(
    plan: Plan,
    desired: DesiredAssignments,
    snapshot: Snapshot,
    policy: Policy,
    client_ids: Mapping[IdentityId, str],
) -> Steps[tuple[Conditions, Conditions]]:
    """Return the same, in steps. `client_ids` are those of the snapshot's targets."""
    facts = yield from _facts(plan, desired, snapshot)
    identities: dict[ObjectKey, tuple[Condition, ...]] = {}
    for entries in steps.parts(snapshot.identities.items()):
        for key, identity in entries:
            identities[key] = tuple(_of_identity(identity, facts, snapshot, client_ids))
        yield
    skipped_bindings = {entry.binding: entry for entry in reversed(desired.ineffective)}
    bindings: dict[ObjectKey, tuple[Condition, ...]] = {}
    for items in steps.parts(snapshot.bindings):
        for binding in items:
            status = _unusable(binding, snapshot, policy)
            entry = skipped_bindings.get(binding.key)
            if status is None and not facts.assignments[binding.key] and entry:
                status = _false(APPLIED, entry.code, entry.message)
            bindings[binding.key] = (status or _applied(binding, facts),)
        yield
    return identities, bindings


def _facts(plan: Plan, desired: DesiredAssignments, snapshot: Snapshot) -> Steps[_Facts]:
    """Return the plan by what the conditions are about."""
    facts = _Facts()
    for target, in_use in plan.in_use.items():
        for part in steps.parts(in_use):
            for identity in part:
                facts.targets[identity].append(target)
            yield
    for failing in snapshot.failing:
        facts.failing[failing.identity].append(failing)
    for assignments in steps.parts(desired.assignments.values()):
        for assignment in assignments:
            facts.assignments[assignment.binding.key].append(assignment)
        yield
    for items in steps.parts(snapshot.assigned_identities):
        facts.ready.update(item.assignment_key for item in items if item.state == AssignedState.ASSIGNED)
        yield
    return facts


def wrong_client_id(identity: AzureIdentity, client_ids: Mapping[IdentityId, str]) -> str | None:
    """Return the sentence for a client ID that is not the one in Azure; None when it is, or Azure was not asked."""
    right = client_ids.get(identity.arm_id) if identity.arm_id else None
    if right is None or not identity.client_id or identity.client_id.lower() == right:
        return None
    return (
        f"AzureIdentity {identity.key}: clientID is {redact.printable(identity.client_id)}, "
        f"but Azure says {right} for its resourceID; correct clientID"
    )


def is_problem(condition: Condition) -> bool:
    """Whether somebody has to act."""
    return condition.status == "False" and condition.reason not in PASSING


def selected(
    current: tuple[Condition, ...], fresh: Iterable[Condition], level: ConditionLevel
) -> tuple[Condition, ...]:
    """Return which of `fresh` are written: of problems, those and what takes the place of one."""
    if level != ConditionLevel.PROBLEMS:
        return tuple(fresh) if level == ConditionLevel.ALL else ()
    problems = {condition.type for condition in current if is_problem(condition)}
    return tuple(condition for condition in fresh if is_problem(condition) or condition.type in problems)


def merge(
    current: tuple[Condition, ...], fresh: Iterable[Condition], now: str, generation: int = 0
) -> tuple[Condition, ...] | None:
    """Merge `fresh` into what is stored, other parties' conditions included; None when nothing differs.

    `now` is the time that a changed status is stamped with. `generation` is the object's now; 0: it does not count.
    Without a status subresource, which upstream could not write to, a write of the status makes a new generation
    (kube-apiserver: `customResourceStrategy.PrepareForUpdate`): everything of `fresh` is stamped with that one, else
    what stays as it is would look older than the object.
    """
    previous = {condition.type: condition for condition in current}
    by_type = {**previous, **{condition.type: _stamped(condition, previous, now, generation) for condition in fresh}}
    differs = any(
        condition != previous.get(kind) or (generation and kind in by_type and previous[kind].generation != generation)
        for kind, condition in by_type.items()
        if condition is not previous.get(kind)
    )
    return tuple(by_type.values()) if differs else None


def _stamped(condition: Condition, previous: Mapping[str, Condition], now: str, generation: int) -> Condition:
    old = previous.get(condition.type)
    since = old.since if old and old.status == condition.status and old.since else now
    return replace(condition, since=since, generation=generation + 1 if generation else 0)


def is_older(condition: Condition, generation: int) -> bool:
    """Whether a condition speaks of a former generation of its object, whose generation is now this."""
    return 0 < condition.generation < generation


def _of_identity(
    identity: AzureIdentity, facts: _Facts, snapshot: Snapshot, client_ids: Mapping[IdentityId, str]
) -> Iterable[Condition]:
    if identity.type != IdentityType.USER_ASSIGNED:
        return
    if identity.arm_id is None:
        yield _false(ASSIGNED_TYPE, "MalformedResourceID", matching.identity_refusal(identity) or "")
        return
    yield _assignment_status(identity.arm_id, facts, snapshot)
    wrong = wrong_client_id(identity, client_ids)
    if wrong is not None:
        yield _false(CLIENT_ID_MATCHES, "WrongClientID", wrong)
    elif identity.client_id and identity.arm_id in client_ids and _has(identity.conditions, CLIENT_ID_MATCHES):
        yield Condition(CLIENT_ID_MATCHES, "True", "Matches", "clientID is the one that Azure knows")


def _assignment_status(identity: IdentityId, facts: _Facts, snapshot: Snapshot) -> Condition:
    failures = facts.failing[identity]
    if failures:
        return _false(
            ASSIGNED_TYPE,
            _reason(failures[0]),
            some_of(sorted(f"{failure.target}: {failure.message}" for failure in failures), ITEMS_NAMED),
        )
    targets = facts.targets[identity]
    if not targets:
        return _false(ASSIGNED_TYPE, "NotInUse", "no pod uses it")
    missing = [
        target
        for target in targets
        if target not in snapshot.targets or identity not in snapshot.targets[target].identities
    ]
    if missing:
        return _false(ASSIGNED_TYPE, "Assigning", f"not yet on {some_of(sorted(map(str, missing)), ITEMS_NAMED)}")
    return Condition(
        ASSIGNED_TYPE, "True", "Assigned", _shorten(f"on {some_of(sorted(map(str, targets)), ITEMS_NAMED)}")
    )


def _unusable(binding: AzureIdentityBinding, snapshot: Snapshot, policy: Policy) -> Condition | None:
    """Why a binding has no effect, whatever the pods."""
    if not binding.selector:
        return _false(APPLIED, "NoSelector", f"selector is empty; write the value of the pods' label {POD_LABEL}")
    result = matching.usable(binding, snapshot.identities, snapshot.allow_list if policy.allow_list else None)
    if isinstance(result, Unusable):
        return _false(APPLIED, result.code, result.message)
    message = matching.identity_refusal(result)
    if message is not None:
        return _false(APPLIED, "MalformedResourceID", message)
    selector = label_selector.parse_selector(binding.node_selector)
    if policy.assign_on_binding and isinstance(selector, BadSelector):
        return _false(APPLIED, "BadNodeSelector", f"annotation podidentity.io/node-selector: {selector.message}")
    return None


def _applied(binding: AzureIdentityBinding, facts: _Facts) -> Condition:
    """Return whether the pods that a binding gives its identity have it."""
    assignments = facts.assignments[binding.key]
    if not assignments:
        return _false(APPLIED, "NoPods", f"no pod with a node has the label {POD_LABEL}={binding.selector}")
    # No counts: a message that moves with each pod would be written, and watched by many, with each pod.
    if all(item.assignment_key in facts.ready for item in assignments):
        return Condition(APPLIED, "True", "Applied", "every pod that it selects has the identity")
    identity = assignments[0].identity.arm_id
    failures = facts.failing[identity] if identity else []
    if failures:
        return _false(
            APPLIED,
            _reason(failures[0]),
            some_of(sorted(f"{failure.target}: {failure.message}" for failure in failures), ITEMS_NAMED),
        )
    return _false(APPLIED, "Assigning", "pods that it selects wait for the identity")


def _reason(failing: AssignmentFailure) -> str:
    return failing.code if _REASON.fullmatch(failing.code) else "AssignmentFailed"


def _false(kind: str, reason: str, message: str) -> Condition:
    return Condition(kind, "False", reason, _shorten(message))


def _has(conditions: Iterable[Condition], kind: str) -> bool:
    return any(condition.type == kind for condition in conditions)


def _shorten(message: str) -> str:
    return message if len(message) <= MESSAGE_LIMIT else f"{message[: MESSAGE_LIMIT - 3]}..."
