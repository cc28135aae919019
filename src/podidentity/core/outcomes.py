"""What the beginning and the outcome of a step make of a course: `keeping` decided it, a worker carries it out.

Pure functions from a course to the next one. Who is to blame for a refusal is decided by `refusals`, which identities
are set aside by `quarantine`. Used by `mic.targets.Worker`.
"""

from dataclasses import replace

from podidentity.core import drift, quarantine, refusals
from podidentity.core.arm import IdentityId, TargetState
from podidentity.core.courses import Course, Read, Record, Send, stale
from podidentity.core.drift import Change
from podidentity.core.quarantine import Quarantine
from podidentity.core.refusals import Blame, Refusal

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
THROTTLED_SECONDS = 15.0
"""The pause after a 429 without Retry-After: when the bucket has a token again."""


def reading(course: Course, now: float) -> Course:
    """A Read begins."""
    return replace(course, reads=course.reads.take(now))


def read(course: Course, state: TargetState, now: float) -> Course:
    """ARM said what is there."""
    quiet = not drift.change(course.in_use, course.put, state, course.policy)
    return replace(
        course,
        state=state,
        read_at=now,
        doubtful=False,
        failures=0 if quiet else course.failures,
        trouble=None if quiet or course.failures == 0 else course.trouble,
        quarantine=_released(course, course.quarantine, state),
    )


def _released(course: Course, kept: Quarantine, state: TargetState) -> Quarantine:
    return quarantine.keep(quarantine.clear(kept, state.identities), course.in_use)


def recorded(course: Course, record: Record) -> Course:
    """The record is durable."""
    return replace(course, put=(course.put | record.add) - record.drop)


def sending(course: Course, send: Send, now: float) -> Course:
    """A PATCH begins."""
    renewing = stale(course, send.state) & {*send.change.unassign}
    return replace(
        course,
        updates=course.updates.take(now),
        gathering_since=None,
        quarantine=quarantine.tried(course.quarantine, now) if send.retry_of else course.quarantine,
        renewed=course.renewed | renewing,
        questioned=course.questioned - renewing,
        leaving=frozenset(send.change.unassign),
    )


def sent(course: Course, send: Send, answered: TargetState, now: float) -> Course:
    """ARM has done it; `answered` is what the answer to the PATCH said, which may be less than what is there now.

    A GET follows only when that answer does not tell the client IDs of what was put there.
    """
    change, before = send.change, send.state
    identities = (before.identities | {*change.assign}) - {*change.unassign}
    told = dict(before.client_ids) | {one: client_id for one, client_id in answered.client_ids if client_id}
    state = replace(
        before,
        identities=identities,
        client_ids=tuple(sorted((one, told[one]) for one in identities if one in told)),
    )
    return replace(
        course,
        state=state,
        read_at=now,
        leaving=frozenset(),
        doubtful=any(not told.get(one) for one in change.assign),
        failures=0,
        trouble=None,
        apart=course.apart and not change.unassign,
        quarantine=_released(course, quarantine.accepted(course.quarantine, change.assign, now), state),
    )


def failed(course: Course, step: Read | Record | Send, refusal: Refusal, now: float) -> Course:
    """A step did not succeed; `refusal` says why. It is not held against who is not wanted any more since."""
    if not isinstance(step, Send):
        return _later(course, refusal, now)
    course = replace(course, leaving=frozenset())
    blamed = refusals.blame(refusal, step.change, step.state.identities)
    if blamed is Blame.TARGET:
        # A request that was throttled changed nothing; of others, who knows.
        return _later(replace(course, doubtful=course.doubtful or not refusal.throttled), refusal, now)
    # A refusal that is an answer to the PATCH changed nothing; an operation that failed may have done half of it.
    course = replace(course, doubtful=refusal.of_operation)
    if blamed is Blame.SOMEBODY:
        course = _somebody(course, step.change, refusal, now)
    else:
        course = _named(course, step, frozenset(blamed), refusal, now)
    return replace(course, quarantine=quarantine.keep(course.quarantine, course.in_use))


def _later(course: Course, refusal: Refusal, now: float) -> Course:
    """What ARM asked for, else longer each time."""
    pause = min(FIRST_RETRY_SECONDS * 2**course.failures, LONGEST_RETRY_SECONDS)
    if refusal.throttled:
        pause = max(pause, THROTTLED_SECONDS) if refusal.retry_after_seconds is None else refusal.retry_after_seconds
    return replace(course, held_until=now + pause, failures=min(course.failures + 1, 10), trouble=refusal)


def _somebody(course: Course, change: Change, refusal: Refusal, now: float) -> Course:
    """ARM does not say which one it was: first keep removals out of it, then halve."""
    if change.unassign:
        return replace(course, apart=True)
    return replace(course, quarantine=quarantine.suspect(course.quarantine, change.assign, refusal, now))


def _named(course: Course, send: Send, names: frozenset[IdentityId], refusal: Refusal, now: float) -> Course:
    """Set aside what ARM named; what is on the target already is dead, and leaves it when MIC put it there."""
    added = names & {*send.change.assign}
    dead = (names & send.state.identities & course.put) - drift.protected(send.state, course.policy)
    leaving = names & {*send.change.unassign}
    if not added and (leaving or not dead):
        held = _later(course, refusal, now)
        if leaving:  # additions need not wait for a removal that does not work
            return replace(
                held, held_until=course.held_until, removals_held_until=held.held_until, trouble=None, doubtful=True
            )
        return held
    kept = quarantine.set_aside(course.quarantine, added, refusal, now)
    return replace(course, quarantine=quarantine.set_dead(kept, dead, refusal, now))
