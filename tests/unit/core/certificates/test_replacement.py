"""When a CA is replaced: what holds at every moment, for every replica, whatever fails and however late it is."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podidentity.core.certificates.replacement import (
    MOST_PREDECESSORS,
    AuthorityState,
    Create,
    Prepare,
    Promote,
    Publish,
    Retire,
    Role,
    Schedule,
    Step,
    Validity,
    Wait,
    next_step,
    serving_validity,
    trust_order,
)
from podidentity.errors import ConfigurationError

DAY = 24 * 3600.0
SCHEDULE = Schedule(authority_seconds=90 * DAY, serving_seconds=3 * DAY, spread_seconds=600)
FIRST = Validity(0, 90 * DAY)
SECOND = Validity(60 * DAY, 150 * DAY)
IN_USE = AuthorityState(FIRST)
PREPARED = AuthorityState(FIRST, successor=SECOND)
PUBLISHED = replace(PREPARED, successor_published_at=60 * DAY)
PROMOTED = AuthorityState(SECOND, in_use_since=60 * DAY + 600, predecessors=1)


@pytest.mark.parametrize(
    ("state", "now", "step"),
    [
        (AuthorityState(), 5.0, Create()),
        (IN_USE, 1.0, Wait(60 * DAY)),
        (IN_USE, 60 * DAY, Prepare()),
        (PREPARED, 60 * DAY, Publish()),
        (PUBLISHED, 60 * DAY + 1, Wait(60 * DAY + 600)),
        (PUBLISHED, 60 * DAY + 600, Promote()),
        (PROMOTED, 60 * DAY + 700, Wait(60 * DAY + 1200)),
        (PROMOTED, 60 * DAY + 1200, Wait(63 * DAY + 1200)),
        (PROMOTED, 63 * DAY + 1200, Retire()),
        (IN_USE, 90 * DAY, Create()),
        (PREPARED, 90 * DAY, Promote()),
        (PREPARED, 150 * DAY, Create()),
        (replace(PREPARED, successor=Validity(0, 60 * DAY)), 61 * DAY, Prepare()),
    ],
    ids=str,
)
def test_one_step_after_the_other(state: AuthorityState, now: float, step: Step) -> None:
    """The steps from the first CA to the removal of its predecessor; a CA that has expired begins anew."""
    assert next_step(state, SCHEDULE, now) == step


def test_a_bundle_that_cannot_be_published_does_not_let_the_ca_run_out() -> None:
    """An unpublished successor signs when the CA in use has only the spread time left."""
    assert next_step(PREPARED, SCHEDULE, FIRST.end - 601) == Publish()
    assert next_step(PREPARED, SCHEDULE, FIRST.end - 600) == Promote()


def test_an_order_is_carried_out_once() -> None:
    """An annotation starts one replacement at once; another one needs another text."""
    assert next_step(replace(IN_USE, wish="leaked"), SCHEDULE, 1.0) == Prepare()
    assert next_step(replace(IN_USE, wish="leaked", answer="leaked"), SCHEDULE, 1.0) == Wait(60 * DAY)
    assert next_step(replace(IN_USE, wish="again", answer="leaked"), SCHEDULE, 1.0) == Prepare()


def test_an_order_replaces_a_prepared_successor() -> None:
    """An order discards a successor that is prepared already: whoever orders may know that the Secret was read."""
    assert next_step(replace(PUBLISHED, wish="leaked"), SCHEDULE, 60 * DAY + 1) == Prepare()


def test_an_order_need_not_wait_for_the_end_of_a_predecessor() -> None:
    """An order is carried out while a predecessor is still trusted, up to a number of predecessors."""
    state = replace(PROMOTED, wish="leaked")
    assert next_step(state, SCHEDULE, 61 * DAY) == Prepare()
    crowded = replace(state, predecessors=MOST_PREDECESSORS)
    assert next_step(crowded, SCHEDULE, 61 * DAY) == Wait(63 * DAY + 1200)


def test_the_ca_in_use_stands_first() -> None:
    """The CA in use stands first in the bundle, except right after a promotion.

    The predecessor then still does: not every replica knows of the new one.
    """
    usual = (Role.CURRENT, Role.SUCCESSOR, Role.PREDECESSORS)
    assert trust_order(PUBLISHED, SCHEDULE, 60 * DAY + 1) == usual
    assert trust_order(PROMOTED, SCHEDULE, 60 * DAY + 1199)[0] is Role.PREDECESSORS
    assert trust_order(PROMOTED, SCHEDULE, 60 * DAY + 1200) == usual


def test_a_serving_certificate_ends_with_its_ca() -> None:
    """A certificate ends with its CA, or after its own lifetime, which counts from when the Secret was read."""
    assert serving_validity(FIRST, SCHEDULE, 100.0, 160.0) == Validity(160.0, 100.0 + 3 * DAY)
    assert serving_validity(FIRST, SCHEDULE, 89 * DAY, 89 * DAY + 5) == Validity(89 * DAY + 5, FIRST.end)


@pytest.mark.parametrize(
    ("authority_seconds", "serving_seconds", "spread_seconds"), [(30.0, 10.0, 1.0), (30.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_a_life_too_short_for_a_replacement_is_refused(
    authority_seconds: float, serving_seconds: float, spread_seconds: float
) -> None:
    """The error gives the lifetime in seconds."""
    with pytest.raises(ConfigurationError, match=f"{authority_seconds:.0f} s"):
        Schedule(authority_seconds, serving_seconds, spread_seconds)


# A model of several replicas. CAs are numbers; the model's Secret has a version, as the real one.


@dataclass
class Certificate:
    """A serving certificate."""

    authority: int
    validity: Validity


@dataclass(frozen=True)
class Reading:
    """What a replica read of the Secret, and when."""

    state: AuthorityState
    authorities: tuple[int, ...]
    version: int
    at: float


@dataclass
class Model:
    """The Secret, the bundle, and the certificate that each replica serves with."""

    state: AuthorityState = field(default_factory=AuthorityState)
    authorities: tuple[int, ...] = ()
    """The CA in use, then the predecessors."""
    successor: int | None = None
    version: int = 0
    numbers: int = 0
    trusted_since: dict[int, float] = field(default_factory=dict)
    """The bundle: since when each CA is in it."""
    without_notice: set[int] = field(default_factory=set)
    """CAs that had to sign at once: the first, and one after the end of all before."""
    served: dict[int, Certificate] = field(default_factory=dict)
    readings: dict[int, Reading] = field(default_factory=dict)

    def publish(self, now: float) -> None:
        """Put the CAs of the Secret into the bundle."""
        numbers = {*self.authorities, *([] if self.successor is None else [self.successor])}
        self.trusted_since = {number: self.trusted_since.get(number, now) for number in numbers}

    def take(self, step: Step, now: float) -> None:
        """Carry out a step by writing the Secret."""
        self.version += 1
        new = Validity(now, now + SCHEDULE.authority_seconds)
        state = self.state
        match step:
            case Create():
                self.numbers += 1
                self.authorities, self.successor = (self.numbers,), None
                self.without_notice.add(self.numbers)
                self.state = AuthorityState(new, now, wish=state.wish, answer=state.wish)
            case Prepare():
                self.numbers += 1
                self.successor = self.numbers
                self.state = replace(state, successor=new, successor_published_at=None, answer=state.wish)
            case Publish():
                self.publish(now)
                self.state = replace(state, successor_published_at=now)
            case Promote():
                assert self.successor is not None
                if state.successor_published_at is None:
                    self.without_notice.add(self.successor)
                self.authorities, self.successor = (self.successor, *self.authorities), None
                self.state = AuthorityState(
                    state.successor, now, None, None, state.predecessors + 1, state.wish, state.answer
                )
            case _:
                self.authorities = self.authorities[:1]
                self.state = replace(state, predecessors=0)

    def read(self, replica: int, now: float) -> None:
        """Let a replica read the Secret."""
        self.readings[replica] = Reading(self.state, self.authorities, self.version, now)

    def act(self, replica: int, now: float) -> None:
        """Let a replica act on what it read, although others may have written since."""
        reading = self.readings.pop(replica)
        while True:
            self.sign(replica, reading.state, reading.authorities, reading.at, now)
            step = next_step(reading.state, SCHEDULE, now)
            if isinstance(step, Wait):
                assert step.until > now
            if reading.version != self.version:
                return  # a conflict: nothing is written
            if isinstance(step, Wait):
                self.publish(now)
                return
            self.take(step, now)
            reading = replace(reading, state=self.state, authorities=self.authorities, version=self.version)

    def look(self, replica: int, now: float) -> None:
        """Read and act at once."""
        self.read(replica, now)
        self.act(replica, now)

    def order(self) -> None:
        """Let an administrator order a replacement, with a new text."""
        self.version += 1
        self.state = replace(self.state, wish=f"order {self.version}")

    def copy(self) -> "Model":
        """Return the same state for another course of events."""
        return replace(
            self,
            trusted_since=dict(self.trusted_since),
            without_notice=set(self.without_notice),
            served=dict(self.served),
            readings=dict(self.readings),
        )

    def sign(
        self, replica: int, state: AuthorityState, authorities: tuple[int, ...], read_at: float, now: float
    ) -> None:
        """Serve with a new certificate if that is necessary."""
        certificate = self.served.get(replica)
        if state.current is None or (
            certificate and certificate.authority == authorities[0] and now < certificate.validity.renewal
        ):
            return
        validity = serving_validity(state.current, SCHEDULE, read_at, now)
        if validity.end > now:
            self.served[replica] = Certificate(authorities[0], validity)

    def check(self, now: float) -> None:
        """Hold that clients can verify each certificate at `now`.

        Their bundle may be as old as the spread time allows.
        """
        for certificate in self.served.values():
            if not certificate.validity.start <= now < certificate.validity.end:
                continue
            assert certificate.authority in self.trusted_since
            if certificate.authority not in self.without_notice:  # a tolerance for rounding
                assert (
                    certificate.validity.start - self.trusted_since[certificate.authority]
                    >= SCHEDULE.spread_seconds - 1e-6
                )


PAUSES = (10.0, 595.0, 600.0, 3 * DAY - 30, 3 * DAY + 597)
"""The times after which something begins or ends, or nearly: a mistake of a moment shows."""
EVENTS = ("look 0", "read 1", "act 1", "order")


def run(model: Model, event: str, now: float) -> None:
    """Let one event happen."""
    word, _, number = event.partition(" ")
    replica = int(number or 0)
    match word:
        case "order":
            model.order()
        case "look":
            model.look(replica, now)
        case "read":
            model.read(replica, now)
        case _ if replica in model.readings:
            model.act(replica, now)


def explore(model: Model, now: float, depth: int) -> int:
    """Try every sequence of `depth` more events; return how many sequences there are."""
    courses = 1
    for pause in PAUSES if depth else ():
        moment = now + pause
        model.check(moment)
        for event in EVENTS:
            copy = model.copy()
            run(copy, event, moment)
            copy.check(moment)
            courses += explore(copy, moment, depth - 1)
    return courses


def test_no_short_course_of_events_shows_a_client_what_it_cannot_verify() -> None:
    """No sequence of four events, at the worst moments, breaks a client.

    There are two replicas, one of which is slow, and a replacement was ordered.
    """
    model = Model()
    model.look(0, 0.0)
    model.order()
    model.look(0, 1.0)
    assert explore(model, 1.0, 4) > 100_000


events = st.lists(
    st.tuples(
        st.sampled_from(["look 0", "look 1", "look 2", "read 0", "read 1", "act 0", "act 1", "order"]),
        st.sampled_from(PAUSES) | st.floats(0, 1200) | st.floats(0, 40 * DAY),
    ),
    max_size=60,
)


@given(events)
def test_no_client_meets_a_certificate_that_it_cannot_verify(courses: list[tuple[str, float]]) -> None:
    """At every moment each valid certificate is of a CA in the bundle.

    The CA had been there for the spread time when it signed.
    """
    model, now = Model(), 0.0
    for event, pause in courses:
        model.check(now + pause / 2)
        now += pause
        model.check(now)
        run(model, event, now)
        model.check(now)


@given(st.floats(0, 10), st.integers(1, 3))
def test_replicas_that_look_each_minute_never_lack_a_certificate(offset: float, replicas: int) -> None:
    """Over a whole replacement each replica has a valid certificate, and the bundle ends with one CA."""
    model = Model()
    for replica in range(replicas):
        model.look(replica, 0.0)
    now = offset
    for pause in [DAY / 2] * 120 + [60.0] * 30 + [DAY / 2] * 8:
        now += pause
        assert all(now < certificate.validity.end for certificate in model.served.values())
        for replica in range(replicas):
            model.look(replica, now)
            model.check(now)
    assert model.numbers == 2
    assert {certificate.authority for certificate in model.served.values()} == {2}
    assert set(model.trusted_since) == {2}
