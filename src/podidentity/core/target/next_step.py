"""What to do next for one VM or scale set: read it, record, send a PATCH, or wait. A state machine without I/O.

`next_step` returns what to do now; the functions below it return the `TargetState` after a wish from outside, those of
`outcomes` after a step. `drift` decides what must change, `blame` whose fault a refusal is, and `quarantine` which
identities are set aside. A `mic.targets.Worker` carries the steps out and decides nothing.

Whatever happens, at most one request is under way, ARM's Retry-After and token buckets hold, and a target without
anything to do is read once in a reconcile interval and otherwise left alone.
"""

from collections.abc import Mapping
from dataclasses import replace

from podidentity.core.model.arm import ArmState, IdentityId
from podidentity.core.target import drift, quarantine
from podidentity.core.target.drift import TargetChange
from podidentity.core.target.state import INFINITY, Read, Record, Send, Step, TargetState, Verify, Wait, doubted, stale

GATHER_SECONDS = 0.05
"""How long a burst of pods may gather before its PATCH. Doubles with each PATCH that ARM's bucket lacks."""
LONGEST_GATHER_SECONDS = 2.0
GONE_SECONDS = 15.0
"""A target that was gone is looked at again after this when somebody needs it: names of scale sets come back."""
FRESH_SECONDS = 30.0
"""A PATCH says anew whether there is a system-assigned identity: what is older than this must not decide it."""
EMPTYING_FRESH_SECONDS = 1.0
"""A PATCH that leaves nothing (type None) takes away whatever somebody else has put there since the last answer."""


def next_step(state: TargetState, now: float) -> Step:
    """Return what to do at `now`."""
    if not (state.in_use or state.assigned_by_mic):
        return Wait(INFINITY)
    if now < state.held_until:
        return Wait(state.held_until)
    read_at = _read_due(state)
    if state.arm_state is None or now >= read_at:
        return _read_step(state, now)
    identity = doubted(state, state.arm_state)
    if identity is not None:
        ready = state.reads.ready_at(now)
        return Verify(identity) if ready <= now else Wait(ready)
    send_at, send = _send(state, state.arm_state, now)
    if send is None:
        return _forget_step(state, state.arm_state) or Wait(read_at)
    send_at = max(send_at, state.updates.ready_at(now))
    fresh = EMPTYING_FRESH_SECONDS if _empties(send) else FRESH_SECONDS
    if send_at <= now + LONGEST_GATHER_SECONDS and now >= state.read_at + fresh:
        return _read_step(state, now)  # while the burst gathers: nobody waits for it
    if send_at > now:
        return _forget_step(state, state.arm_state) or Wait(min(send_at, read_at))
    unrecorded = frozenset(send.change.assign) - state.assigned_by_mic
    return Record(add=unrecorded) if unrecorded else send


def _empties(send: Send) -> bool:
    remaining = (send.arm_state.identities | {*send.change.assign}) - {*send.change.unassign}
    return not (remaining or send.arm_state.has_unknown_identities)


def _read_step(state: TargetState, now: float) -> Step:
    ready = state.reads.ready_at(now)
    return Read() if ready <= now else Wait(ready)


def _read_due(state: TargetState) -> float:
    if state.doubtful or state.arm_state is None:
        return -INFINITY
    if state.arm_state.is_gone and state.in_use:
        return state.read_at + min(GONE_SECONDS, state.reconcile_seconds)
    return state.read_at + state.reconcile_seconds


def _send(state: TargetState, arm_state: ArmState, now: float) -> tuple[float, Send | None]:
    """Return when to send the next PATCH, and which.

    In this order: additions that nothing speaks against, removals, half of a group with a bad one, a retry.
    """
    if arm_state.is_gone:
        return INFINITY, None
    drifted = _required(state, arm_state)
    change = _ordinary(state, drifted, now)
    if change:
        return _burst_end(state, now), Send(change, arm_state)
    half = state.quarantine.half()
    if half:
        return now, Send(TargetChange(half), arm_state)
    tokens_at = state.updates.ready_at(now, quarantine.TOKENS_LEFT_TO_OTHERS)
    retry_at, retry = state.quarantine.next(drifted.assign, tokens_at)
    if drifted.unassign and state.removals_held_until <= retry_at:
        return state.removals_held_until, Send(
            drift.first_patch(TargetChange((), drifted.unassign), separate_removals=True), arm_state
        )
    return retry_at, Send(TargetChange((retry,)), arm_state, retry_of=retry) if retry else None


def _ordinary(state: TargetState, drifted: TargetChange, now: float) -> TargetChange:
    """Return the changes that nothing speaks against."""
    free = tuple(identity for identity in drifted.assign if not state.quarantine.holds(identity))
    removals = drifted.unassign if now >= state.removals_held_until else ()
    return drift.first_patch(TargetChange(free, removals), separate_removals=state.separate_removals)


def _required(state: TargetState, arm_state: ArmState) -> TargetChange:
    """Return the drift, with the removal of what is dead or must be renewed."""
    drifted = drift.change(state.in_use, state.assigned_by_mic, arm_state, state.policy)
    unsound = state.quarantine.dead | stale(state, arm_state)
    if not unsound:
        return drifted
    removable = (state.assigned_by_mic & arm_state.identities) - drift.protected(arm_state, state.policy)
    return replace(drifted, unassign=tuple(sorted({*drifted.unassign} | (unsound & removable))))


def _burst_end(state: TargetState, now: float) -> float:
    if state.gathering_since is None:
        return now
    missing_tokens = int(state.updates.capacity - state.updates.tokens_at(now))
    return state.gathering_since + min(GATHER_SECONDS * float(2**missing_tokens), LONGEST_GATHER_SECONDS)


def _forget_step(state: TargetState, arm_state: ArmState) -> Record | None:
    """Drop from the record what is not there and will not be put there now."""
    sendable = state.in_use - state.quarantine.asides.keys()
    absent = state.assigned_by_mic - arm_state.identities - (frozenset() if arm_state.is_gone else sendable)
    return Record(drop=absent) if absent else None


# Wishes from outside.


def want(state: TargetState, in_use: frozenset[IdentityId], now: float) -> TargetState:
    """Return the state with what must be on the target. A burst begins when nothing was to be sent before."""
    if in_use == state.in_use:
        return state
    pending = state.arm_state is not None and _ordinary(state, _required(state, state.arm_state), now)
    since = state.gathering_since if pending else now
    return replace(state, in_use=in_use, gathering_since=since, quarantine=quarantine.keep(state.quarantine, in_use))


def expect(state: TargetState, client_ids: Mapping[IdentityId, str]) -> TargetState:
    """Return the state with the client IDs that AzureIdentities name (`state.expected_client_ids`)."""
    return replace(state, named_client_ids=client_ids)


def touch(state: TargetState, identity: IdentityId) -> TargetState:
    """Return the state after an AzureIdentity has changed: retry it at once if refused, verify it if present."""
    return replace(
        state,
        quarantine=quarantine.touch(state.quarantine, identity),
        questioned=state.questioned | {identity},
        renewals=state.renewals - {identity},
    )
