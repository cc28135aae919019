"""Identities that spoil a target's PATCHes: found by name or by halving, set aside, tried again alone.

Part of a `keeping.Course`. Two kinds: `asides` are known to be bad; a group of `suspects` holds at least one that is.
Everything else goes on without them. Who was refused comes back by itself after a pause that doubles, one at a time and
never in the company of others, at a pace that leaves ARM's bucket to the good ones.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from podidentity.core import refusals
from podidentity.core.arm import IdentityId, Target
from podidentity.core.failing import Failing
from podidentity.core.refusals import Refusal

FIRST_PAUSE_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 40.0
"""Who was granted a role is not to wait for a minute."""
BETWEEN_RETRIES_SECONDS = 15.0
"""Of one target: what ARM's bucket gets back."""
TOKENS_LEFT_TO_OTHERS = 6.0
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Aside:
    """An identity that ARM refused. `dead`: it is on the target, and ARM says that it does not exist."""

    until: float
    pause_seconds: float
    refusal: Refusal
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Suspects:
    """At least one of these is bad."""

    identities: tuple[IdentityId, ...]
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Who is kept out of the ordinary PATCHes of one target. `tried_at` is when somebody was last tried again."""

    asides: Mapping[IdentityId, Aside] = field(default_factory=dict)
    suspects: tuple[Suspects, ...] = ()
    tried_at: float = -NEVER

    def holds(self, identity: IdentityId) -> bool:
        """Whether it is known to be bad, or one of several of which one is."""
        return identity in self.asides or any(identity in group.identities for group in self.suspects)

    @property
    def dead(self) -> frozenset[IdentityId]:
        """Those that are on the target and should not be."""
        return frozenset(one for one, aside in self.asides.items() if aside.dead)

    def half(self) -> tuple[IdentityId, ...]:
        """The half of a group to be tried next."""
        return self.suspects[0].identities[: len(self.suspects[0].identities) // 2] if self.suspects else ()

    def next(self, missing: Iterable[IdentityId], tokens_at: float) -> tuple[float, IdentityId | None]:
        """Who of those `missing` on the target is tried again next, and when.

        `tokens_at` is when ARM's bucket has `TOKENS_LEFT_TO_OTHERS`. One that a user touched waits for nothing else.
        """
        turn = max(self.tried_at + BETWEEN_RETRIES_SECONDS, tokens_at)
        waiting = ((self.asides[one].until, one) for one in missing if one in self.asides)
        until, first = min(waiting, default=(NEVER, None))
        return (tokens_at if until == -NEVER else max(until, turn)), first

    def failing(self, target: Target, in_use: Iterable[IdentityId]) -> tuple[Failing, ...]:
        """What users are told."""
        found = ((one, self.asides[one].refusal) for one in sorted(in_use) if one in self.asides)
        return tuple(
            Failing(one, target, refusal.code, refusals.advise_identity(refusal, one, target)) for one, refusal in found
        )


def set_aside(kept: Quarantine, identities: Iterable[IdentityId], refusal: Refusal, now: float) -> Quarantine:
    """Keep these out, each for longer than the last time."""
    asides = dict(kept.asides)
    for one in identities:
        before = asides.get(one)
        again = before is not None and before.pause_seconds > 0
        pause = min(before.pause_seconds * 2, LONGEST_PAUSE_SECONDS) if before and again else FIRST_PAUSE_SECONDS
        asides[one] = Aside(now + pause, pause, refusal)
    return _dissolve(replace(kept, asides=asides), identities)


def set_dead(kept: Quarantine, identities: Iterable[IdentityId], refusal: Refusal, now: float) -> Quarantine:
    """Keep these out, and off the target."""
    made = set_aside(kept, identities, refusal, now)
    dead = {one: replace(made.asides[one], dead=True) for one in identities}
    return replace(made, asides={**made.asides, **dead})


def suspect(kept: Quarantine, identities: tuple[IdentityId, ...], refusal: Refusal, now: float) -> Quarantine:
    """One of these is bad. Alone, it is that one; else they are tried by halves.

    When they are half of a group, the other half is as good as any: nothing speaks against it any more.
    """
    if len(identities) == 1:
        return set_aside(kept, identities, refusal, now)
    rest = _dissolve(kept, identities)
    return replace(rest, suspects=(Suspects(identities, refusal), *rest.suspects))


def accepted(kept: Quarantine, identities: Iterable[IdentityId], now: float) -> Quarantine:
    """These are on the target. What is left of a group whose half they were has a bad one; alone, it is that one."""
    good = frozenset(identities)
    asides = {one: aside for one, aside in kept.asides.items() if one not in good}
    made = replace(kept, asides=asides, suspects=())
    for group in kept.suspects:
        left = tuple(one for one in group.identities if one not in good)
        if len(left) <= 1:
            made = set_aside(made, left, group.refusal, now)
        else:
            made = replace(made, suspects=(*made.suspects, replace(group, identities=left)))
    return made


def clear(kept: Quarantine, present: frozenset[IdentityId]) -> Quarantine:
    """Release what is on the target after all, unless it is dead; a dead one that has left is one like the others."""
    asides = {
        one: replace(aside, dead=aside.dead and one in present)
        for one, aside in kept.asides.items()
        if aside.dead or one not in present
    }
    return _dissolve(replace(kept, asides=asides), present)


def keep(kept: Quarantine, in_use: frozenset[IdentityId]) -> Quarantine:
    """Forget who is not wanted any more. A group that loses one may have lost its bad one: nothing is known of it."""
    asides = {one: aside for one, aside in kept.asides.items() if one in in_use or aside.dead}
    groups = tuple(group for group in kept.suspects if in_use.issuperset(group.identities))
    return replace(kept, asides=asides, suspects=groups)


def touch(kept: Quarantine, identity: IdentityId) -> Quarantine:
    """Try this one at once, and begin with short pauses again."""
    aside = kept.asides.get(identity)
    if aside is None:
        return kept
    return replace(kept, asides={**kept.asides, identity: replace(aside, until=-NEVER, pause_seconds=0.0)})


def tried(kept: Quarantine, now: float) -> Quarantine:
    """A retry begins."""
    return replace(kept, tried_at=now)


def _dissolve(kept: Quarantine, identities: Iterable[IdentityId]) -> Quarantine:
    """Forget groups of which somebody was told apart."""
    known = frozenset(identities)
    return replace(kept, suspects=tuple(group for group in kept.suspects if known.isdisjoint(group.identities)))
