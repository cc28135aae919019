"""What to do next about a daemon's own CA, so that no client ever meets a certificate that it cannot verify yet.

    Create ─▶ in use ─ two thirds of its life, or a wish ─▶ Prepare: a successor, which signs nothing yet
                 ▲                                             │
                 │                                             ▼
              Retire: the predecessor leaves the bundle     Publish: the successor joins the trust bundle
                 ▲                                             │ the spread time: every client has read the bundle
                 │ nothing that it signed is valid any more    ▼
                 └──────────────────────────────────────── Promote: the successor signs from now on

All replicas read one Secret, from which `AuthorityState` comes, and any of them takes the step. Nobody has to be told:
what a replica does with an old reading is harmless for as long as `serving_validity` says. All times are wall time in
seconds since 1970, because they are compared on several machines; the spread time is far longer than their clocks
differ.
"""

from dataclasses import dataclass
from enum import Enum, auto

from podidentity.errors import ConfigurationError

RENEWAL_SHARE = 2 / 3
"""The share of its life after which a certificate is renewed, and a CA replaced: the rest is for failures."""
MOST_PREDECESSORS = 3
"""How many CAs may wait for their end: replacements that are ordered minutes apart must not fill the bundle."""
_DAY_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate is valid."""

    start: float
    end: float

    @property
    def renewal(self) -> float:
        """The moment from which it should be renewed."""
        return self.start + (self.end - self.start) * RENEWAL_SHARE


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long everything lasts, in seconds. Raises ConfigurationError when a replacement does not fit in."""

    authority_seconds: float = 365 * _DAY_SECONDS
    """A CA's life."""
    serving_seconds: float = 3 * _DAY_SECONDS
    """A serving certificate's life. A CA stays in the bundle for as long after its replacement."""
    spread_seconds: float = 600.0
    """How long every client may take to read a changed bundle: kubelets take some 90 s to bring a ConfigMap."""

    def __post_init__(self) -> None:
        rest_seconds = self.authority_seconds * (1 - RENEWAL_SHARE)
        if not 0 < self.serving_seconds + 3 * self.spread_seconds <= rest_seconds:
            raise ConfigurationError(
                f"a CA's life of {self.authority_seconds:.0f} s: its last third is too short for serving certificates"
                f" of {self.serving_seconds:.0f} s and three times {self.spread_seconds:.0f} s to spread;"
                " give the CA more time, or the others less"
            )


@dataclass(frozen=True, slots=True)
class AuthorityState:
    """What the Secret says. Without `current` it is empty."""

    current: Validity | None = None
    """The CA that signs."""
    in_use_since: float = 0.0
    """When `current` began to sign."""
    successor: Validity | None = None
    """The CA that will sign next."""
    successor_published_at: float | None = None
    """When the bundle with it was everywhere; None before."""
    predecessors: int = 0
    """How many CAs signed before and are still trusted."""
    wish: str = ""
    """The text of the administrator's order to replace the CA."""
    answer: str = ""
    """The last such text that was acted on."""

    @property
    def has_new_wish(self) -> bool:
        """Whether there is an order that was not acted on."""
        return self.wish not in ("", self.answer)


@dataclass(frozen=True, slots=True)
class Create:
    """Make a CA that signs at once: there is none, or none that is still valid."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make a successor, in place of one that was prepared before; note the wish as acted on."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Put the bundle with the successor everywhere, then note when that was done."""


@dataclass(frozen=True, slots=True)
class Promote:
    """Let the successor sign. The CA in use becomes a predecessor and its key is dropped."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Take the predecessors out of the bundle."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done before `until`."""

    until: float


Step = Create | Prepare | Publish | Promote | Retire | Wait


def next_step(state: AuthorityState, schedule: Schedule, now: float) -> Step:
    """Return what to do now. After each step but `Wait`, ask again with what the Secret says then."""
    if state.current is None:
        return Create()
    successor = state.successor if state.successor is not None and now < state.successor.end else None
    if now >= state.current.end:
        return Promote() if successor else Create()
    if state.predecessors and now >= _retirement(state, schedule):
        return Retire()
    has_room = state.predecessors < MOST_PREDECESSORS
    if has_room and (state.has_new_wish or (successor is None and now >= state.current.renewal)):
        return Prepare()
    moments = [state.current.end]
    if state.predecessors:
        moments += [moment for moment in (_reordering(state, schedule), _retirement(state, schedule)) if moment > now]
    if successor is None:
        return Wait(min([*moments, state.current.renewal] if has_room else moments))
    # A bundle that cannot be published must not let the CA in use run out: then both would be of no use.
    promotion = state.current.end - schedule.spread_seconds
    if state.successor_published_at is not None:
        promotion = min(promotion, state.successor_published_at + schedule.spread_seconds)
    if now >= promotion:
        return Promote()
    return Publish() if state.successor_published_at is None else Wait(min(*moments, promotion))


def _retirement(state: AuthorityState, schedule: Schedule) -> float:
    """Return when nothing is valid any more that a predecessor signed; clocks may differ by the spread time."""
    return state.in_use_since + schedule.serving_seconds + schedule.spread_seconds


def _reordering(state: AuthorityState, schedule: Schedule) -> float:
    return state.in_use_since + schedule.spread_seconds


class Role(Enum):
    """Which CA of the Secret."""

    CURRENT = auto()
    SUCCESSOR = auto()
    PREDECESSORS = auto()


def trust_order(state: AuthorityState, schedule: Schedule, now: float) -> tuple[Role, ...]:
    """Return the order of the CAs in the bundle: the one in use first, because there are clients that read only one.

    Right after a promotion that is still the predecessor: some replicas do not know of it yet, and those that do send a
    certificate along by which the predecessor vouches for the CA in use.
    """
    if state.predecessors and now < _reordering(state, schedule):
        return Role.PREDECESSORS, Role.CURRENT, Role.SUCCESSOR
    return Role.CURRENT, Role.SUCCESSOR, Role.PREDECESSORS


def serving_validity(authority: Validity, schedule: Schedule, read_at: float, now: float) -> Validity:
    """Return how long a certificate lasts that is signed now by the CA that was in use at `read_at`.

    Its life counts from that reading: had the CA been replaced since, it would still be trusted until then.
    """
    return Validity(now, min(read_at + schedule.serving_seconds, authority.end))
