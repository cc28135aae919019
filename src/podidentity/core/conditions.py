"""What `kubectl describe` tells of an AzureIdentity and an AzureIdentityBinding: the plan's facts as conditions.

`Assigned` on an identity says whether it is on every VM and scale set that needs it; `ClientIDMatches` whether its
`clientID` is the one that Azure knows; `Applied` on a binding whether every pod that it selects has the identity. Made
by `mic.sync` with each plan, written by `mic.statuses` when they differ from what is stored, shown by `explain`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core import arm, matching, redact, selecting
from podidentity.core.arm import IdentityId, Target
from podidentity.core.assigning import Assignment, Policy, Wanted
from podidentity.core.cluster import Snapshot
from podidentity.core.failing import Failing
from podidentity.core.identities import (
    POD_LABEL,
    AssignedState,
    AzureIdentity,
    AzureIdentityBinding,
    Condition,
    IdentityType,
    ObjectKey,
)
from podidentity.core.matching import Unusable
from podidentity.core.planning import Plan
from podidentity.core.selecting import BadSelector

ASSIGNED = "Assigned"
CLIENT_ID_MATCHES = "ClientIDMatches"
APPLIED = "Applied"

SHOWN = 5  # of a list in a message; the rest is counted
MESSAGE_LIMIT = 1024
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")  # what Kubernetes allows as a reason

Conditions = Mapping[ObjectKey, tuple[Condition, ...]]


@dataclass(slots=True)
class _Facts:
    """The plan, by what the conditions are about."""

    targets: defaultdict[IdentityId, list[Target]] = field(default_factory=lambda: defaultdict(list))
    failing: defaultdict[IdentityId, list[Failing]] = field(default_factory=lambda: defaultdict(list))
    assignments: defaultdict[ObjectKey, list[Assignment]] = field(default_factory=lambda: defaultdict(list))


def of_plan(plan: Plan, wanted: Wanted, snapshot: Snapshot, policy: Policy) -> tuple[Conditions, Conditions]:
    """Say what the conditions of all identities, and of all bindings, should be."""
    facts = _Facts()
    for target, in_use in plan.in_use.items():
        for used in in_use:
            facts.targets[used].append(target)
    for failing in snapshot.failing:
        facts.failing[failing.identity].append(failing)
    for assignment in wanted.assignments.values():
        facts.assignments[assignment.binding.key].append(assignment)
    told = arm.client_ids(snapshot.targets.values())
    identities = {
        key: tuple(_of_identity(identity, facts, snapshot, told)) for key, identity in snapshot.identities.items()
    }
    ready = {one.about for one in snapshot.assigned if one.state == AssignedState.ASSIGNED}
    refused = {skipped.binding: skipped for skipped in reversed(wanted.skipped)}
    bindings: dict[ObjectKey, tuple[Condition, ...]] = {}
    for binding in snapshot.bindings:
        status = _unusable(binding, snapshot, policy)
        skipped = refused.get(binding.key)
        if status is None and not facts.assignments[binding.key] and skipped:
            status = _false(APPLIED, skipped.code, skipped.why)
        if status is None:
            ours = facts.assignments[binding.key]
            failures = facts.failing[ours[0].identity.arm_id] if ours and ours[0].identity.arm_id else []
            status = _applied(binding, ours, sum(one.about in ready for one in ours), failures)
        bindings[binding.key] = (status,)
    return identities, bindings


def wrong_client_id(identity: AzureIdentity, told: Mapping[IdentityId, str]) -> str | None:
    """Say that a given client ID is not the one that Azure knows; None when it is, or when Azure was not asked."""
    right = told.get(identity.arm_id) if identity.arm_id else None
    if right is None or not identity.client_id or identity.client_id.lower() == right:
        return None
    return (
        f"AzureIdentity {identity.key}: clientID is {redact.shown(identity.client_id)}, "
        f"but Azure says {right} for its resourceID; correct clientID"
    )


def changed(
    stored: tuple[Condition, ...], fresh: Iterable[Condition], now: str, generation: int = 0
) -> tuple[Condition, ...] | None:
    """Merge `fresh` into what is stored, other parties' conditions included; None when nothing differs.

    `now` is the time that a changed status is stamped with. `generation` is the object's now; 0: it does not count.
    Without a status subresource, which upstream could not write to, a write of the status makes a new generation
    (kube-apiserver: `customResourceStrategy.PrepareForUpdate`): what is written is stamped with that one.
    """
    known = {one.type: one for one in stored}
    after = dict(known)
    for one in fresh:
        before = known.get(one.type)
        if before is None or before != one or (generation and before.generation != generation):
            since = before.since if before and before.status == one.status and before.since else now
            stamp = generation + 1 if generation else 0
            after[one.type] = replace(one, since=since, generation=stamp)
    return tuple(after.values()) if any(one is not known.get(kind) for kind, one in after.items()) else None


def is_older(condition: Condition, generation: int) -> bool:
    """Whether a condition speaks of a former generation of its object, whose generation is now this."""
    return 0 < condition.generation < generation


def _of_identity(
    identity: AzureIdentity, facts: _Facts, snapshot: Snapshot, told: Mapping[IdentityId, str]
) -> Iterable[Condition]:
    if identity.type != IdentityType.USER_ASSIGNED:
        return
    if identity.arm_id is None:
        yield _false(ASSIGNED, "MalformedResourceID", matching.identity_refusal(identity) or "")
        return
    yield _assigned(identity.arm_id, facts, snapshot)
    wrong = wrong_client_id(identity, told)
    if wrong is not None:
        yield _false(CLIENT_ID_MATCHES, "WrongClientID", wrong)
    elif identity.client_id and identity.arm_id in told and _has(identity.conditions, CLIENT_ID_MATCHES):
        yield Condition(CLIENT_ID_MATCHES, "True", "Matches", "clientID is the one that Azure knows")


def _assigned(identity: IdentityId, facts: _Facts, snapshot: Snapshot) -> Condition:
    failures = facts.failing[identity]
    if failures:
        return _false(ASSIGNED, _reason(failures[0]), _several(f"{one.target}: {one.why}" for one in failures))
    targets = facts.targets[identity]
    if not targets:
        return _false(ASSIGNED, "NotInUse", "no pod uses it")
    missing = [
        one for one in targets if one not in snapshot.targets or identity not in snapshot.targets[one].identities
    ]
    if missing:
        return _false(ASSIGNED, "Assigning", f"not yet on {_several(map(str, missing))}")
    return Condition(ASSIGNED, "True", "Assigned", _cut(f"on {_several(map(str, targets))}"))


def _unusable(binding: AzureIdentityBinding, snapshot: Snapshot, policy: Policy) -> Condition | None:
    """Why a binding has no effect, whatever the pods."""
    if not binding.selector:
        return _false(APPLIED, "NoSelector", f"selector is empty; write the value of the pods' label {POD_LABEL}")
    found = matching.usable(binding, snapshot.identities, snapshot.allowed if policy.allow_list else None)
    if isinstance(found, Unusable):
        return _false(APPLIED, found.code, found.why)
    why = matching.identity_refusal(found)
    if why is not None:
        return _false(APPLIED, "MalformedResourceID", why)
    selector = selecting.parse_selector(binding.node_selector)
    if policy.assign_on_binding and isinstance(selector, BadSelector):
        return _false(APPLIED, "BadNodeSelector", f"annotation podidentity.io/node-selector: {selector.why}")
    return None


def _applied(binding: AzureIdentityBinding, ours: list[Assignment], ready: int, failures: list[Failing]) -> Condition:
    if not ours:
        return _false(APPLIED, "NoPods", f"no pod with a node has the label {POD_LABEL}={binding.selector}")
    nodes = len({one.node for one in ours})
    count = f"{_plural(len(ours), 'pod')} on {_plural(nodes, 'node')}, {ready} assigned"
    if ready == len(ours):
        return Condition(APPLIED, "True", "Applied", count)
    if failures:
        return _false(
            APPLIED, _reason(failures[0]), f"{count}; {_several(f'{one.target}: {one.why}' for one in failures)}"
        )
    return _false(APPLIED, "Assigning", count)


def _reason(failing: Failing) -> str:
    return failing.code if _REASON.fullmatch(failing.code) else "AssignmentFailed"


def _false(kind: str, reason: str, message: str) -> Condition:
    return Condition(kind, "False", reason, _cut(message))


def _has(conditions: Iterable[Condition], kind: str) -> bool:
    return any(one.type == kind for one in conditions)


def _several(texts: Iterable[str]) -> str:
    every = sorted(texts)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _cut(message: str) -> str:
    return message if len(message) <= MESSAGE_LIMIT else f"{message[: MESSAGE_LIMIT - 3]}..."
