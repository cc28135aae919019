"""All that is known of one VM or scale set, the steps that can be taken there, and what others may know of it.

`keeping` says which step is next, `outcomes` what its outcome makes of the course; a `mic.targets.Worker` carries the
steps out. Times are seconds of one clock that never goes back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core import refusals
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.drift import Change
from podidentity.core.failing import Failing
from podidentity.core.quarantine import Quarantine
from podidentity.core.refusals import Refusal
from podidentity.core.throttling import READS, UPDATES, Bucket

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`, unless somebody wishes something."""

    until: float


@dataclass(frozen=True, slots=True)
class Read:
    """Ask ARM what is there."""


@dataclass(frozen=True, slots=True)
class Record:
    """Make durable that MIC is about to put `add` there, and that `drop` is not there any more."""

    add: frozenset[IdentityId] = frozenset()
    drop: frozenset[IdentityId] = frozenset()


@dataclass(frozen=True, slots=True)
class Send:
    """PATCH the target, which carries `state`."""

    change: Change
    state: TargetState
    retry_of: IdentityId | None = None
    """The quarantined identity that is tried once more, alone."""


Step = Wait | Read | Record | Send


@dataclass(frozen=True, slots=True)
class Course:
    """All that is known of a target.

    `state` is what ARM last said, kept while it is `doubtful` so that pods whose identity is there are served; `put` is
    the durable record; `expected` the client IDs that AzureIdentities name, `questioned` those of which one changed;
    `renewed` was taken off and put on again; `leaving` goes with the PATCH under way; `trouble` is what is wrong now.
    """

    target: Target
    policy: Policy
    reconcile_seconds: float
    in_use: frozenset[IdentityId] = frozenset()
    put: frozenset[IdentityId] = frozenset()
    expected: Mapping[IdentityId, str] = field(default_factory=dict)
    state: TargetState | None = None
    read_at: float = -NEVER
    doubtful: bool = True
    gathering_since: float | None = None
    held_until: float = -NEVER
    removals_held_until: float = -NEVER
    failures: int = 0
    apart: bool = False
    trouble: Refusal | None = None
    quarantine: Quarantine = field(default_factory=Quarantine)
    questioned: frozenset[IdentityId] = frozenset()
    renewed: frozenset[IdentityId] = frozenset()
    leaving: frozenset[IdentityId] = frozenset()
    reads: Bucket = READS
    updates: Bucket = UPDATES


def stale(course: Course, state: TargetState) -> frozenset[IdentityId]:
    """Name identities in use that were deleted in Azure and made again: the target carries the former one.

    ARM knows such a one under no client ID; or its AzureIdentity was changed, and names another one than ARM. Renewed
    once, since it may be the AzureIdentity that errs.
    """
    if state.busy:
        return frozenset()
    return frozenset(
        one
        for one, told in state.client_ids
        if one in course.in_use
        and (
            (not told and one not in course.renewed)
            or (one in course.questioned and told != course.expected.get(one, told))
        )
    )


def failing(course: Course) -> tuple[Failing, ...]:
    """Say which identities are wanted and cannot be put there, and why."""
    found = course.quarantine.failing(course.target, course.in_use)
    state = course.state or TargetState()
    missing = sorted(course.in_use - state.identities - {one.identity for one in found})
    if state.gone:
        why = f"{course.target} is being deleted or does not exist; correct azure.json or the node's providerID"
        return tuple(Failing(one, course.target, "ResourceNotFound", why) for one in missing)
    if course.trouble is not None and (course.failures > 1 or course.trouble.throttled):
        why = refusals.advise_target(course.trouble, course.target)
        found += tuple(Failing(one, course.target, course.trouble.code, why) for one in missing)
    return found


def carried(course: Course) -> TargetState | None:
    """Say what a pod that comes now may rely on: not what is just being taken off. None before the first answer."""
    state = course.state
    return state and replace(state, identities=state.identities - course.leaving) if course.leaving else state


def idle(course: Course) -> bool:
    """Whether nothing is wanted, and nothing of MIC's can be there: the target may be forgotten."""
    return not (course.in_use or course.put)


def is_tried(course: Course, identity: IdentityId) -> bool:
    """Whether it is wanted and was put there, or refused: one that is still to be sent has nothing to hurry for."""
    there = course.state is not None and identity in course.state.identities
    return identity in course.in_use and (there or course.quarantine.holds(identity))


def expected_client_ids(named: Iterable[tuple[IdentityId | None, str]]) -> dict[IdentityId, str]:
    """Say which client ID each identity should have; identities about which the AzureIdentities disagree are left out.

    `named` are resource and client IDs of all AzureIdentities: no tenant alone can make another's identity look stale.
    One that leaves its client ID to MIC agrees with nobody.
    """
    found: dict[IdentityId, set[str]] = {}
    for identity, client_id in named:
        if identity is not None:
            found.setdefault(identity, set()).add(client_id.lower())
    return {identity: one for identity, told in found.items() if len(told) == 1 for one in told if one}
