"""What to do next for one VM or scale set: read it, record, send a PATCH, or wait. A state machine without I/O.

`next_step` says what to do now; the functions below it say what a wish from outside makes of the `Course`. What the
outcome of a step makes of it is decided by `outcomes`, what must change by `drift`, who is to blame for a refusal by
`refusals`, which identities are set aside by `quarantine`. A `mic.targets.Worker` carries the steps out and decides
nothing.

Whatever happens, at most one request is under way, ARM's Retry-After and token buckets hold, and a target without
anything to do is read once in a reconcile interval and otherwise left alone.
"""

from collections.abc import Mapping
from dataclasses import replace

from podidentity.core import drift, quarantine
from podidentity.core.arm import IdentityId, TargetState
from podidentity.core.courses import NEVER, Course, Read, Record, Send, Step, Wait, stale
from podidentity.core.drift import Change

GATHER_SECONDS = 0.05
"""How long a burst of pods may gather before its PATCH. Doubles with each PATCH that ARM's bucket lacks."""
LONGEST_GATHER_SECONDS = 2.0
GONE_SECONDS = 15.0
"""A target that was gone is looked at again after this when somebody needs it: names of scale sets come back."""
FRESH_SECONDS = 30.0
"""A PATCH says anew whether there is a system-assigned identity: what is older than this must not decide it."""
EMPTYING_FRESH_SECONDS = 1.0
"""A PATCH that leaves nothing (type None) takes away whatever somebody else has put there since the last answer."""


def next_step(course: Course, now: float) -> Step:
    """Say what to do at `now`."""
    if not (course.in_use or course.put):
        return Wait(NEVER)
    if now < course.held_until:
        return Wait(course.held_until)
    due = _read_due(course)
    if course.state is None or now >= due:
        return _read_step(course, now)
    at, send = _send(course, course.state, now)
    if send is None:
        return _forget_step(course, course.state) or Wait(due)
    at = max(at, course.updates.ready_at(now))
    fresh = EMPTYING_FRESH_SECONDS if _empties(send) else FRESH_SECONDS
    if at <= now + LONGEST_GATHER_SECONDS and now >= course.read_at + fresh:
        return _read_step(course, now)  # while the burst gathers: nobody waits for it
    if at > now:
        return _forget_step(course, course.state) or Wait(min(at, due))
    unrecorded = frozenset(send.change.assign) - course.put
    return Record(add=unrecorded) if unrecorded else send


def _empties(send: Send) -> bool:
    remaining = (send.state.identities | {*send.change.assign}) - {*send.change.unassign}
    return not (remaining or send.state.others)


def _read_step(course: Course, now: float) -> Step:
    ready = course.reads.ready_at(now)
    return Read() if ready <= now else Wait(ready)


def _read_due(course: Course) -> float:
    if course.doubtful or course.state is None:
        return -NEVER
    if course.state.gone and course.in_use:
        return course.read_at + min(GONE_SECONDS, course.reconcile_seconds)
    return course.read_at + course.reconcile_seconds


def _send(course: Course, state: TargetState, now: float) -> tuple[float, Send | None]:
    """Say what is sent next, and when.

    Additions that nothing speaks against; removals; those of whom one is bad; at last those that were refused.
    """
    if state.gone:
        return NEVER, None
    wanted = _wanted(course, state)
    change = _ordinary(course, wanted, now)
    if change:
        return _gathered_at(course, now), Send(change, state)
    half = course.quarantine.half()
    if half:
        return now, Send(Change(half), state)
    tokens_at = course.updates.ready_at(now, quarantine.TOKENS_LEFT_TO_OTHERS)
    at, again = course.quarantine.next(wanted.assign, tokens_at)
    if wanted.unassign and course.removals_held_until <= at:
        return course.removals_held_until, Send(drift.first_patch(Change((), wanted.unassign), apart=True), state)
    return at, Send(Change((again,)), state, retry_of=again) if again else None


def _ordinary(course: Course, wanted: Change, now: float) -> Change:
    """Name what nothing speaks against."""
    free = tuple(one for one in wanted.assign if not course.quarantine.holds(one))
    removals = wanted.unassign if now >= course.removals_held_until else ()
    return drift.first_patch(Change(free, removals), apart=course.apart)


def _wanted(course: Course, state: TargetState) -> Change:
    """What drift asks for, and the removal of what is dead or must be renewed."""
    wanted = drift.change(course.in_use, course.put, state, course.policy)
    unsound = course.quarantine.dead | stale(course, state)
    if not unsound:
        return wanted
    ours = (course.put & state.identities) - drift.protected(state, course.policy)
    return replace(wanted, unassign=tuple(sorted({*wanted.unassign} | (unsound & ours))))


def _gathered_at(course: Course, now: float) -> float:
    if course.gathering_since is None:
        return now
    lacking = int(course.updates.capacity - course.updates.left_at(now))
    return course.gathering_since + min(GATHER_SECONDS * float(2**lacking), LONGEST_GATHER_SECONDS)


def _forget_step(course: Course, state: TargetState) -> Record | None:
    """Drop from the record what is not there and will not be put there now."""
    sendable = course.in_use - course.quarantine.asides.keys()
    lost = course.put - state.identities - (frozenset() if state.gone else sendable)
    return Record(drop=lost) if lost else None


# Wishes from outside.


def want(course: Course, in_use: frozenset[IdentityId], now: float) -> Course:
    """Take note of what must be on the target. A burst begins when nothing was to be sent before."""
    if in_use == course.in_use:
        return course
    pending = course.state is not None and _ordinary(course, _wanted(course, course.state), now)
    since = course.gathering_since if pending else now
    return replace(course, in_use=in_use, gathering_since=since, quarantine=quarantine.keep(course.quarantine, in_use))


def expect(course: Course, client_ids: Mapping[IdentityId, str]) -> Course:
    """Take note of the client IDs that AzureIdentities name (`courses.expected_client_ids`)."""
    return replace(course, expected=client_ids)


def touch(course: Course, identity: IdentityId) -> Course:
    """Somebody changed an AzureIdentity: what was refused is tried again at once, what is there may be another."""
    return replace(
        course,
        quarantine=quarantine.touch(course.quarantine, identity),
        questioned=course.questioned | {identity},
        renewed=course.renewed - {identity},
    )
