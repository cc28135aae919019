"""The `TargetState` after a step has begun, succeeded or failed: `next_step` decided it, a worker carries it out.

Pure functions from a `TargetState` to the next one. `blame` decides whose fault a refusal is, `quarantine` which
identities are set aside.
"""

from dataclasses import replace

from podidentity.core.model.arm import ArmState, IdentityId
from podidentity.core.target import blame, drift, quarantine
from podidentity.core.target.blame import ArmRefusal, Blame
from podidentity.core.target.drift import TargetChange
from podidentity.core.target.quarantine import Quarantine
from podidentity.core.target.state import Read, Record, Send, TargetState, Verify, stale

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
THROTTLED_SECONDS = 15.0
"""The pause after a 429 without Retry-After: when the bucket has a token again."""


def read_started(state: TargetState, now: float) -> TargetState:
    """Return the state after a Read has begun."""
    return replace(state, reads=state.reads.take(now))


def read_done(state: TargetState, arm_state: ArmState, now: float) -> TargetState:
    """Return the state after ARM has answered a Read."""
    quiet = not drift.change(state.in_use, state.assigned_by_mic, arm_state, state.policy)
    return replace(
        state,
        arm_state=arm_state,
        read_at=now,
        doubtful=False,
        failures=0 if quiet else state.failures,
        trouble=None if quiet or state.failures == 0 else state.trouble,
        quarantine=_release(state, state.quarantine, arm_state),
    )


def _release(state: TargetState, current: Quarantine, arm_state: ArmState) -> Quarantine:
    return quarantine.keep(quarantine.clear(current, arm_state.identities), state.in_use)


def verify_done(state: TargetState, identity: IdentityId, client_id: str, now: float) -> TargetState:
    """Return the state after a Verify: only another client ID than the target's counts, "" (not known) does not."""
    client_ids = dict(state.arm_state.client_ids if state.arm_state else ())
    made_again = {identity} if client_id and client_id.lower() != client_ids.get(identity, "").lower() else set()
    return replace(
        state,
        reads=state.reads.take(now),
        questioned=state.questioned - {identity},
        recreated=state.recreated | made_again,
    )


def record_done(state: TargetState, record: Record) -> TargetState:
    """Return the state after the record is durable."""
    return replace(state, assigned_by_mic=(state.assigned_by_mic | record.add) - record.drop)


def patch_started(state: TargetState, send: Send, now: float) -> TargetState:
    """Return the state after a PATCH has begun."""
    renewing = stale(state, send.arm_state) & {*send.change.unassign}
    return replace(
        state,
        updates=state.updates.take(now),
        gathering_since=None,
        quarantine=quarantine.retry_started(state.quarantine, now) if send.retry_of else state.quarantine,
        renewals=state.renewals | renewing,
        questioned=state.questioned - renewing,
        recreated=state.recreated - renewing,
        leaving=frozenset(send.change.unassign),
    )


def patch_done(state: TargetState, send: Send, response: ArmState, now: float) -> TargetState:
    """Return the state after a PATCH was done; `response` is its answer, which may say less than what is there now.

    A GET follows only when that answer does not tell the client IDs of what was put there.
    """
    change, previous = send.change, send.arm_state
    identities = (previous.identities | {*change.assign}) - {*change.unassign}
    client_ids = dict(previous.client_ids) | {
        identity: client_id for identity, client_id in response.client_ids if client_id
    }
    arm_state = replace(
        previous,
        identities=identities,
        client_ids=tuple(sorted((identity, client_ids[identity]) for identity in identities if identity in client_ids)),
    )
    return replace(
        state,
        arm_state=arm_state,
        read_at=now,
        leaving=frozenset(),
        doubtful=any(not client_ids.get(identity) for identity in change.assign),
        failures=0,
        trouble=None,
        separate_removals=state.separate_removals and not change.unassign,
        quarantine=_release(state, quarantine.accept(state.quarantine, change.assign, now), arm_state),
    )


def step_failed(
    state: TargetState, step: Read | Record | Send | Verify, refusal: ArmRefusal, now: float
) -> TargetState:
    """Return the state after a step failed; an identity that is no longer in use is not blamed."""
    if isinstance(step, Verify):
        return verify_done(state, step.identity, "", now)
    if not isinstance(step, Send):
        return _later(state, refusal, now)
    state = replace(state, leaving=frozenset())
    blamed = blame.blame(refusal, step.change, step.arm_state.identities)
    if blamed is Blame.TARGET:
        # A request that was throttled changed nothing; of others, who knows.
        return _later(replace(state, doubtful=state.doubtful or not refusal.throttled), refusal, now)
    # A refusal that is an answer to the PATCH changed nothing; an operation that failed may have done half of it.
    state = replace(state, doubtful=refusal.of_operation)
    if blamed is Blame.UNNAMED:
        state = _suspect_all(state, step.change, refusal, now)
    else:
        state = _blame(state, step, frozenset(blamed), refusal, now)
    return replace(state, quarantine=quarantine.keep(state.quarantine, state.in_use))


def _later(state: TargetState, refusal: ArmRefusal, now: float) -> TargetState:
    """Pause for as long as ARM asked, else longer each time."""
    pause = min(FIRST_RETRY_SECONDS * 2**state.failures, LONGEST_RETRY_SECONDS)
    if refusal.throttled:
        pause = max(pause, THROTTLED_SECONDS) if refusal.retry_after_seconds is None else refusal.retry_after_seconds
    return replace(state, held_until=now + pause, failures=min(state.failures + 1, 10), trouble=refusal)


def _suspect_all(state: TargetState, change: TargetChange, refusal: ArmRefusal, now: float) -> TargetState:
    """ARM does not name the bad one: first leave removals out, then halve."""
    if change.unassign:
        return replace(state, separate_removals=True)
    return replace(state, quarantine=quarantine.suspect(state.quarantine, change.assign, refusal, now))


def _blame(
    state: TargetState, send: Send, names: frozenset[IdentityId], refusal: ArmRefusal, now: float
) -> TargetState:
    """Set aside what ARM named; what is on the target already is dead, and leaves it when MIC put it there."""
    added = names & {*send.change.assign}
    dead = (names & send.arm_state.identities & state.assigned_by_mic) - drift.protected(send.arm_state, state.policy)
    leaving = names & {*send.change.unassign}
    if not added and (leaving or not dead):
        postponed = _later(state, refusal, now)
        if leaving:  # additions need not wait for a removal that does not work
            return replace(
                postponed,
                held_until=state.held_until,
                removals_held_until=postponed.held_until,
                trouble=None,
                doubtful=True,
            )
        return postponed
    current = quarantine.set_aside(state.quarantine, added, refusal, now)
    return replace(state, quarantine=quarantine.set_dead(current, dead, refusal, now))
