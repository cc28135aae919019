"""What to do next for one VM or scale set: read it, record, send a PATCH, or wait. A state machine without I/O.

A `Course` is all that is known of a target. `next_step` says what to do now; the functions below it say what the
outcome of a step, or a wish from outside, makes of the course. A `mic.targets.Worker` carries the steps out and decides
nothing. Times are seconds of one clock that never goes back. What must change is decided by `drift`, who is to blame
for a refusal by `refusals`, which identities are set aside by `quarantine`.

Whatever happens, at most one request is under way, ARM's Retry-After and token buckets hold, and a target without
anything to do is read once in a reconcile interval and otherwise left alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core import drift, quarantine, refusals
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.drift import Change
from podidentity.core.failing import Failing
from podidentity.core.quarantine import Quarantine
from podidentity.core.refusals import Blame, Refusal
from podidentity.core.throttling import READS, UPDATES, Bucket

GATHER_SECONDS = 0.05
"""How long a burst of pods may gather before its PATCH. Doubles with each PATCH that ARM's bucket lacks."""
LONGEST_GATHER_SECONDS = 2.0
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
THROTTLED_SECONDS = 15.0
"""The pause after a 429 without Retry-After: when the bucket has a token again."""
GONE_SECONDS = 15.0
"""A target that was gone is looked at again after this when somebody needs it: names of scale sets come back."""
FRESH_SECONDS = 30.0
"""A PATCH says anew whether there is a system-assigned identity: what is older than this must not decide it."""
EMPTYING_FRESH_SECONDS = 1.0
"""A PATCH that leaves nothing (type None) takes away whatever somebody else has put there since the last answer."""
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
    unsound = course.quarantine.dead | _stale(course, state)
    if not unsound:
        return wanted
    ours = (course.put & state.identities) - drift.protected(state, course.policy)
    return replace(wanted, unassign=tuple(sorted({*wanted.unassign} | (unsound & ours))))


def _stale(course: Course, state: TargetState) -> frozenset[IdentityId]:
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
    """Take note of the client IDs that AzureIdentities name (`expected_client_ids`)."""
    return replace(course, expected=client_ids)


def touch(course: Course, identity: IdentityId) -> Course:
    """Somebody changed an AzureIdentity: what was refused is tried again at once, what is there may be another."""
    return replace(
        course,
        quarantine=quarantine.touch(course.quarantine, identity),
        questioned=course.questioned | {identity},
        renewed=course.renewed - {identity},
    )


# Outcomes of steps.


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
    renewing = _stale(course, send.state) & {*send.change.unassign}
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


# What others may know.


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


def expected_client_ids(named: Iterable[tuple[IdentityId | None, str]]) -> dict[IdentityId, str]:
    """Say which client ID each identity should have; identities about which the AzureIdentities disagree are left out.

    `named` are resource and client IDs of all AzureIdentities: no tenant alone can make another's identity look stale.
    """
    found: dict[IdentityId, set[str]] = {}
    for identity, client_id in named:
        if identity is not None and client_id:
            found.setdefault(identity, set()).add(client_id.lower())
    return {identity: told.pop() for identity, told in found.items() if len(told) == 1}
