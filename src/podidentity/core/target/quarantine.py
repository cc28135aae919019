"""Identities that spoil a target's PATCHes: found by name or by halving, set aside, tried again alone.

Part of a `TargetState`. Two kinds: `asides` are known to be bad; a group of `suspects` holds at least one that is.
Everything else goes on without them. Who was refused comes back by itself after a pause that doubles, one at a time and
never in the company of others, at a pace that leaves ARM's bucket to the good ones.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core.model.arm import IdentityId, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.target import blame
from podidentity.core.target.blame import ArmRefusal

FIRST_PAUSE_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 40.0
"""Short, because a user who has just granted a role waits for it."""
BETWEEN_RETRIES_SECONDS = 15.0
"""Of one target: what ARM's bucket gets back."""
TOKENS_LEFT_TO_OTHERS = 6.0
UNWANTED_REMEMBERED = 256
"""Refused identities that no pod uses now. One that comes and goes is not tried afresh each time: that would spend the
PATCHes of everybody on its target."""
INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Aside:
    """An identity that ARM refused. `dead`: it is on the target, and ARM says that it does not exist."""

    until: float
    pause_seconds: float
    refusal: ArmRefusal
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Suspects:
    """A group of identities of which at least one is bad."""

    identities: tuple[IdentityId, ...]
    refusal: ArmRefusal


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The identities kept out of the ordinary PATCHes of one target. `tried_at` is the time of the last retry."""

    asides: Mapping[IdentityId, Aside] = field(default_factory=dict)
    suspects: tuple[Suspects, ...] = ()
    tried_at: float = -INFINITY

    def holds(self, identity: IdentityId) -> bool:
        """Whether an identity is known to be bad, or is in a group with a bad one."""
        return identity in self.asides or any(identity in group.identities for group in self.suspects)

    @property
    def dead(self) -> frozenset[IdentityId]:
        """The identities that are on the target and do not exist in Azure any more."""
        return frozenset(identity for identity, aside in self.asides.items() if aside.dead)

    def half(self) -> tuple[IdentityId, ...]:
        """Return the half of a group that is tried next."""
        return self.suspects[0].identities[: len(self.suspects[0].identities) // 2] if self.suspects else ()

    def next(self, missing: Iterable[IdentityId], tokens_at: float) -> tuple[float, IdentityId | None]:
        """Return when an identity is tried again, and which of those `missing` on the target it is.

        `tokens_at` is when ARM's bucket has `TOKENS_LEFT_TO_OTHERS`. One that a user touched waits for nothing else.
        """
        turn = max(self.tried_at + BETWEEN_RETRIES_SECONDS, tokens_at)
        waiting = ((self.asides[identity].until, identity) for identity in missing if identity in self.asides)
        until, first = min(waiting, default=(INFINITY, None))
        return (tokens_at if until == -INFINITY else max(until, turn)), first

    def failing(self, target: Target, in_use: Iterable[IdentityId]) -> tuple[AssignmentFailure, ...]:
        """Return the failures that users are to hear of."""
        identities = sorted(identity for identity in in_use if identity in self.asides)
        refusals = ((identity, self.asides[identity].refusal) for identity in identities)
        return tuple(
            AssignmentFailure(identity, target, refusal.code, blame.advise_identity(refusal, identity, target))
            for identity, refusal in refusals
        )


def set_aside(current: Quarantine, identities: Iterable[IdentityId], refusal: ArmRefusal, now: float) -> Quarantine:
    """Return a quarantine that keeps these out, each for longer than the last time."""
    asides = dict(current.asides)
    for identity in identities:
        previous = asides.get(identity)
        is_repeated = previous is not None and previous.pause_seconds > 0
        pause = (
            min(previous.pause_seconds * 2, LONGEST_PAUSE_SECONDS) if previous and is_repeated else FIRST_PAUSE_SECONDS
        )
        asides[identity] = Aside(now + pause, pause, refusal)
    return _dissolve(replace(current, asides=asides), identities)


def set_dead(current: Quarantine, identities: Iterable[IdentityId], refusal: ArmRefusal, now: float) -> Quarantine:
    """Return a quarantine that keeps these out, and off the target."""
    updated = set_aside(current, identities, refusal, now)
    dead = {identity: replace(updated.asides[identity], dead=True) for identity in identities}
    return replace(updated, asides={**updated.asides, **dead})


def suspect(current: Quarantine, identities: tuple[IdentityId, ...], refusal: ArmRefusal, now: float) -> Quarantine:
    """Return a quarantine that looks for the bad one among these: a single one is it, several are tried by halves.

    When they are half of a group, the other half is released: nothing speaks against it any more.
    """
    if len(identities) == 1:
        return set_aside(current, identities, refusal, now)
    dissolved = _dissolve(current, identities)
    return replace(dissolved, suspects=(Suspects(identities, refusal), *dissolved.suspects))


def accept(current: Quarantine, identities: Iterable[IdentityId], now: float) -> Quarantine:
    """Return the quarantine after these were put on the target: the bad one is in the rest of their group."""
    good = frozenset(identities)
    asides = {identity: aside for identity, aside in current.asides.items() if identity not in good}
    updated = replace(current, asides=asides, suspects=())
    for group in current.suspects:
        remaining = tuple(identity for identity in group.identities if identity not in good)
        if len(remaining) <= 1:
            updated = set_aside(updated, remaining, group.refusal, now)
        else:
            updated = replace(updated, suspects=(*updated.suspects, replace(group, identities=remaining)))
    return updated


def clear(current: Quarantine, present: frozenset[IdentityId]) -> Quarantine:
    """Return a quarantine without what is on the target after all; a dead one stays, and is alive when it has left."""
    asides = {
        identity: replace(aside, dead=aside.dead and identity in present)
        for identity, aside in current.asides.items()
        if aside.dead or identity not in present
    }
    return _dissolve(replace(current, asides=asides), present)


def keep(current: Quarantine, in_use: frozenset[IdentityId]) -> Quarantine:
    """Return a quarantine without most of what is not in use.

    A group that loses a member is dissolved: that one may have been the bad one.
    """
    unwanted = [identity for identity, aside in current.asides.items() if identity not in in_use and not aside.dead]
    forgotten = frozenset(unwanted[: max(len(unwanted) - UNWANTED_REMEMBERED, 0)])
    asides = {identity: aside for identity, aside in current.asides.items() if identity not in forgotten}
    groups = tuple(group for group in current.suspects if in_use.issuperset(group.identities))
    return replace(current, asides=asides, suspects=groups)


def touch(current: Quarantine, identity: IdentityId) -> Quarantine:
    """Return a quarantine that tries this one at once, and begins with short pauses again."""
    aside = current.asides.get(identity)
    if aside is None:
        return current
    return replace(current, asides={**current.asides, identity: replace(aside, until=-INFINITY, pause_seconds=0.0)})


def retry_started(current: Quarantine, now: float) -> Quarantine:
    """Return the quarantine after a retry has begun."""
    return replace(current, tried_at=now)


def _dissolve(current: Quarantine, identities: Iterable[IdentityId]) -> Quarantine:
    """Drop the groups that contain an identity whose state is known now."""
    resolved = frozenset(identities)
    return replace(
        current, suspects=tuple(group for group in current.suspects if resolved.isdisjoint(group.identities))
    )
