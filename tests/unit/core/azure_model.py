"""One scale set in memory and a worker's course over it, on a clock that jumps: for tests of `core.keeping`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import make
from podidentity.core import courses, keeping, outcomes
from podidentity.core.arm import IdentityId, TargetState
from podidentity.core.courses import Course, Read, Record, Send, Step, Wait
from podidentity.core.drift import Change
from podidentity.core.refusals import Refusal

TARGET = make.target()


@dataclass
class Azure:
    """ARM for one target. `bad` identities spoil a PATCH; `faults` are answered first."""

    carries: dict[IdentityId, str] = field(default_factory=dict)
    bad: frozenset[IdentityId] = frozenset()
    dead: frozenset[IdentityId] = frozenset()
    names: bool = True
    all_names: bool = False
    tells: bool = True
    gone: bool = False
    patch_seconds: float = 0.0
    faults: list[Refusal] = field(default_factory=list)
    client_ids: dict[IdentityId, str] = field(default_factory=dict)

    def get(self) -> TargetState:
        """Say what is there."""
        if self.gone:
            return TargetState(gone=True)
        return TargetState(frozenset(self.carries), tuple(sorted(self.carries.items())))

    def patch(self, change: Change) -> TargetState | Refusal:
        """Change it, or say why not."""
        if self.faults:
            return self.faults.pop(0)
        bad = [one for one in change.assign if one in self.bad]
        bad += sorted(self.dead & self.carries.keys() - {*change.unassign})
        if bad:
            named = bad if self.all_names else bad[:1]
            text = ", ".join(f"'{one.text}'" for one in named) if self.names else "something"
            return Refusal(403, "LinkedAuthorizationFailed", f"no permission on the linked scope(s) {text}.")
        self.carries |= {one: self.client_ids.get(one, f"client-of-{one.name}") for one in change.assign}
        for one in change.unassign:
            self.carries.pop(one, None)
        return self.get() if self.tells else TargetState()


@dataclass
class Run:
    """A course and what was done on it. `put` is the durable record."""

    azure: Azure
    course: Course
    now: float = 1000.0
    put: frozenset[IdentityId] = frozenset()
    log: list[tuple[float, Step]] = field(default_factory=list)

    def step(self) -> Step:
        """Take one step, or jump to the next moment when there is nothing to do."""
        step = keeping.next_step(self.course, self.now)
        match step:
            case Wait(until):
                assert until > self.now, "a wait must end later"
                self.now = self.now if until == courses.NEVER else until
                return step
            case Read():
                self.course = outcomes.reading(self.course, self.now)
                self.course = outcomes.read(self.course, self.azure.get(), self.now)
            case Record(add, drop):
                self.put = (self.put | add) - drop
                self.course = outcomes.recorded(self.course, step)
            case Send(change):
                assert {*change.assign} <= self.put, "recorded before it is put"
                self.course = outcomes.sending(self.course, step, self.now)
                self.log.append((self.now, step))
                self._send(step)
                return step
        self.log.append((self.now, step))
        return step

    def _send(self, send: Send) -> None:
        answer = self.azure.patch(send.change)
        self.now += self.azure.patch_seconds
        if isinstance(answer, Refusal):
            self.course = outcomes.failed(self.course, send, answer, self.now)
        else:
            self.course = outcomes.sent(self.course, send, answer, self.now)

    def until(self, moment: float) -> None:
        """Take all steps up to a moment."""
        for _ in range(2000):
            step = keeping.next_step(self.course, self.now)
            if isinstance(step, Wait) and step.until > moment:
                self.now = max(self.now, moment)
                return
            self.step()
        raise AssertionError(f"no rest: {self.log[-5:]}")

    def want(self, *names: str) -> None:
        """Wish for identities."""
        self.course = keeping.want(self.course, ids(*names), self.now)

    def crash(self) -> None:
        """Lose everything that is not durable; a new leader comes a little later."""
        in_use, policy = self.course.in_use, self.course.policy
        self.now += 1
        self.course = keeping.want(replace(fresh(policy=policy), put=self.put), in_use, self.now)

    @property
    def patches(self) -> list[Change]:
        """All PATCHes so far."""
        return [step.change for _, step in self.log if isinstance(step, Send)]

    @property
    def patched_at(self) -> list[float]:
        """When they were sent, in seconds since the start."""
        return [at - 1000.0 for at, step in self.log if isinstance(step, Send)]

    @property
    def reads(self) -> int:
        """How many GETs so far."""
        return sum(isinstance(step, Read) for _, step in self.log)


def ids(*names: str) -> frozenset[IdentityId]:
    """Name identities."""
    return frozenset(make.identity_id(name) for name in names)


def one(name: str) -> IdentityId:
    """Name an identity."""
    return make.identity_id(name)


def carried(*names: str) -> dict[IdentityId, str]:
    """What a target carries, with the client IDs that ARM tells."""
    return {make.identity_id(name): f"client-of-{name}" for name in names}


def fresh(**fields: object) -> Course:
    """Build a course of which nothing is known."""
    given: dict[str, object] = {"policy": make.policy(), "reconcile_seconds": 180.0} | fields
    return Course(TARGET, **given)  # type: ignore[arg-type]  # tests name any field


def run(azure: Azure | None = None, *, wants: Iterable[str] = (), put: Iterable[str] = (), **fields: object) -> Run:
    """Start a course."""
    begun = Run(azure or Azure(), fresh(put=ids(*put), **fields), put=ids(*put))
    begun.want(*wants)
    return begun
