"""All that is known of one VM or scale set, the steps that can be taken there, and what others may know of it.

`next_step` decides which step is next, `outcomes` returns the state after it; a `mic.targets.Worker` carries the steps
out. Times are seconds of one clock that never goes back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core.model.arm import ArmState, IdentityId, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.policy import Policy
from podidentity.core.model.token_bucket import TokenBucket
from podidentity.core.target import blame
from podidentity.core.target.arm_limits import READS, UPDATES
from podidentity.core.target.blame import ArmRefusal
from podidentity.core.target.drift import TargetChange
from podidentity.core.target.quarantine import Quarantine

INFINITY = float("inf")
REMEMBERED_SECONDS = 300.0
"""For how long after the pauses of its identities an idle target is remembered."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`, unless a wish comes from outside."""

    until: float


@dataclass(frozen=True, slots=True)
class Read:
    """Read the target in ARM."""


@dataclass(frozen=True, slots=True)
class Record:
    """Make durable that MIC is about to put `add` there, and that `drop` is not there any more."""

    add: frozenset[IdentityId] = frozenset()
    drop: frozenset[IdentityId] = frozenset()


@dataclass(frozen=True, slots=True)
class Send:
    """PATCH the target, which carries `arm_state`."""

    change: TargetChange
    arm_state: ArmState
    retry_of: IdentityId | None = None
    """The quarantined identity that is tried once more, alone."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Ask ARM which client ID an identity has: its AzureIdentity was changed and names another one than the target."""

    identity: IdentityId


Step = Wait | Read | Record | Send | Verify


@dataclass(frozen=True, slots=True)
class TargetState:
    """All that is known of a target.

    `arm_state` is what ARM last said, kept while it is `doubtful` so that pods whose identity is there are served;
    `assigned_by_mic` is the durable record; `named_client_ids` are those that AzureIdentities name, `questioned` the
    identities of which one changed; `recreated` are known to be others in Azure than those on the target; `renewals`
    were taken off and put on again; `leaving` goes with the PATCH under way; `trouble` is what is wrong now.
    """

    target: Target
    policy: Policy
    reconcile_seconds: float
    in_use: frozenset[IdentityId] = frozenset()
    assigned_by_mic: frozenset[IdentityId] = frozenset()
    named_client_ids: Mapping[IdentityId, str] = field(default_factory=dict)
    arm_state: ArmState | None = None
    read_at: float = -INFINITY
    doubtful: bool = True
    gathering_since: float | None = None
    held_until: float = -INFINITY
    removals_held_until: float = -INFINITY
    failures: int = 0
    separate_removals: bool = False
    trouble: ArmRefusal | None = None
    quarantine: Quarantine = field(default_factory=Quarantine)
    questioned: frozenset[IdentityId] = frozenset()
    recreated: frozenset[IdentityId] = frozenset()
    renewals: frozenset[IdentityId] = frozenset()
    leaving: frozenset[IdentityId] = frozenset()
    reads: TokenBucket = READS
    updates: TokenBucket = UPDATES


def stale(state: TargetState, arm_state: ArmState) -> frozenset[IdentityId]:
    """Return the identities in use that were deleted in Azure and created again: the target carries the former one.

    ARM reports no client ID for such a one, and it is renewed once; or ARM was asked for the identity itself, which has
    another client ID than the one on the target.
    """
    if arm_state.is_busy:
        return frozenset()
    return frozenset(
        identity
        for identity, client_id in arm_state.client_ids
        if identity in state.in_use
        and ((not client_id and identity not in state.renewals) or identity in state.recreated)
    )


def doubted(state: TargetState, arm_state: ArmState) -> IdentityId | None:
    """Return an identity in use of which ARM must say whether it was made again, or its AzureIdentity errs; or None."""
    if arm_state.is_busy or not state.questioned:
        return None
    client_ids = dict(arm_state.client_ids)
    doubts = (
        identity
        for identity in sorted(state.questioned & state.in_use)
        if client_ids.get(identity)
        and client_ids[identity] != state.named_client_ids.get(identity, client_ids[identity])
    )
    return next(doubts, None)


def failing(state: TargetState) -> tuple[AssignmentFailure, ...]:
    """Return the identities in use that cannot be put there, and why."""
    failures = state.quarantine.failing(state.target, state.in_use)
    arm_state, trouble = state.arm_state or ArmState(), state.trouble
    if arm_state.is_gone:
        code = "ResourceNotFound"
        message = f"{state.target} is being deleted or does not exist; correct azure.json or the node's providerID"
    elif trouble is not None and (state.failures > 1 or trouble.throttled):
        code, message = trouble.code, blame.advise_target(trouble, state.target)
    else:
        return failures
    missing = sorted(state.in_use - arm_state.identities - {failure.identity for failure in failures})
    of_target = tuple(AssignmentFailure(identity, state.target, code, message) for identity in missing)
    return of_target if arm_state.is_gone else failures + of_target


def usable_state(state: TargetState) -> ArmState | None:
    """Return what a new pod may rely on: without what is just being taken off. None before the first answer of ARM."""
    arm_state = state.arm_state
    return (
        arm_state and replace(arm_state, identities=arm_state.identities - state.leaving)
        if state.leaving
        else arm_state
    )


def is_idle(state: TargetState) -> bool:
    """Whether nothing is in use and nothing of MIC's can be there: the target needs no worker."""
    return not (state.in_use or state.assigned_by_mic)


def matters_until(state: TargetState) -> float:
    """Return until when an idle target must be remembered: somebody may put the same refused identity to use again.

    By then ARM's buckets are full, no pause is under way, and who was refused has not been tried for long.
    """
    buckets = (bucket.ready_at(bucket.updated_at, bucket.capacity) for bucket in (state.reads, state.updates))
    asides = (aside.until + REMEMBERED_SECONDS for aside in state.quarantine.asides.values())
    return max(state.held_until, state.removals_held_until, *buckets, *asides)


def resume(state: TargetState, former: TargetState) -> TargetState:
    """Return a target's first state with what was known before it was idle: pauses, buckets, and who was refused.

    What ARM said then is not believed: it is read anew.
    """
    return replace(
        state,
        held_until=former.held_until,
        removals_held_until=former.removals_held_until,
        failures=former.failures,
        trouble=former.trouble,
        quarantine=former.quarantine,
        renewals=former.renewals,
        reads=former.reads,
        updates=former.updates,
    )


def is_tried(state: TargetState, identity: IdentityId) -> bool:
    """Whether an identity in use was put there or refused; one that is still to be sent need not hurry."""
    is_present = state.arm_state is not None and identity in state.arm_state.identities
    return identity in state.in_use and (is_present or state.quarantine.holds(identity))


def expected_client_ids(pairs: Iterable[tuple[IdentityId | None, str]]) -> dict[IdentityId, str]:
    """Return the client ID that each identity should have, without those about which AzureIdentities disagree.

    `named` are resource and client IDs of all AzureIdentities: no tenant alone can make another's identity look stale.
    One that leaves its client ID to MIC agrees with nobody.
    """
    by_identity: dict[IdentityId, set[str]] = {}
    for identity, client_id in pairs:
        if identity is not None:
            by_identity.setdefault(identity, set()).add(client_id.lower())
    return {
        identity: client_id
        for identity, client_ids in by_identity.items()
        if len(client_ids) == 1
        for client_id in client_ids
        if client_id
    }
