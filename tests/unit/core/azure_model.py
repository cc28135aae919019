"""One scale set in memory and a worker's `TargetState` for it, on a clock that jumps: for tests of `next_step`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import make
from podidentity.core.model.arm import ArmState, IdentityId
from podidentity.core.target import next_step, outcomes
from podidentity.core.target import state as target_state
from podidentity.core.target.blame import ArmRefusal
from podidentity.core.target.drift import TargetChange
from podidentity.core.target.state import Read, Record, Send, Step, TargetState, Verify, Wait

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
    is_gone: bool = False
    patch_seconds: float = 0.0
    faults: list[ArmRefusal] = field(default_factory=list)
    client_ids: dict[IdentityId, str] = field(default_factory=dict)

    def get(self) -> ArmState:
        """Return what ARM would say is on the target."""
        if self.is_gone:
            return ArmState(is_gone=True)
        return ArmState(frozenset(self.carries), tuple(sorted(self.carries.items())))

    def patch(self, change: TargetChange) -> ArmState | ArmRefusal:
        """Change it, or say why not."""
        if self.faults:
            return self.faults.pop(0)
        bad = [one for one in change.assign if one in self.bad]
        bad += sorted(self.dead & self.carries.keys() - {*change.unassign})
        if bad:
            named = bad if self.all_names else bad[:1]
            text = ", ".join(f"'{one.text}'" for one in named) if self.names else "something"
            return ArmRefusal(403, "LinkedAuthorizationFailed", f"no permission on the linked scope(s) {text}.")
        self.carries |= {one: self.client_ids.get(one, f"client-of-{one.name}") for one in change.assign}
        for one in change.unassign:
            self.carries.pop(one, None)
        return self.get() if self.tells else ArmState()


@dataclass
class Run:
    """A `TargetState` and what was done to the target. `assigned_by_mic` is the durable record."""

    azure: Azure
    state: TargetState
    now: float = 1000.0
    assigned_by_mic: frozenset[IdentityId] = frozenset()
    log: list[tuple[float, Step]] = field(default_factory=list)

    def step(self) -> Step:
        """Take one step, or jump to the next moment when there is nothing to do."""
        step = next_step.next_step(self.state, self.now)
        match step:
            case Wait(until):
                assert until > self.now, "a wait must end later"
                self.now = self.now if until == target_state.INFINITY else until
                return step
            case Read():
                self.state = outcomes.read_started(self.state, self.now)
                self.state = outcomes.read_done(self.state, self.azure.get(), self.now)
            case Verify(identity):
                client_id = self.azure.client_ids.get(identity, f"client-of-{identity.name}")
                self.state = outcomes.verify_done(self.state, identity, client_id, self.now)
            case Record(add, drop):
                self.assigned_by_mic = (self.assigned_by_mic | add) - drop
                self.state = outcomes.record_done(self.state, step)
            case Send(change):
                assert {*change.assign} <= self.assigned_by_mic, "recorded before it is put"
                self.state = outcomes.patch_started(self.state, step, self.now)
                self.log.append((self.now, step))
                self._send(step)
                return step
        self.log.append((self.now, step))
        return step

    def _send(self, send: Send) -> None:
        answer = self.azure.patch(send.change)
        self.now += self.azure.patch_seconds
        if isinstance(answer, ArmRefusal):
            self.state = outcomes.step_failed(self.state, send, answer, self.now)
        else:
            self.state = outcomes.patch_done(self.state, send, answer, self.now)

    def until(self, moment: float) -> None:
        """Take all steps up to a moment."""
        for _ in range(2000):
            step = next_step.next_step(self.state, self.now)
            if isinstance(step, Wait) and step.until > moment:
                self.now = max(self.now, moment)
                return
            self.step()
        raise AssertionError(f"no rest: {self.log[-5:]}")

    def want(self, *names: str) -> None:
        """Wish for identities."""
        self.state = next_step.want(self.state, ids(*names), self.now)

    def crash(self) -> None:
        """Lose everything that is not durable; a new leader comes a little later."""
        in_use, policy = self.state.in_use, self.state.policy
        self.now += 1
        self.state = next_step.want(
            replace(fresh(policy=policy), assigned_by_mic=self.assigned_by_mic), in_use, self.now
        )

    @property
    def patches(self) -> list[TargetChange]:
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
    """Return the IDs of identities by their names."""
    return frozenset(make.identity_id(name) for name in names)


def one(name: str) -> IdentityId:
    """Return the ID of an identity by its name."""
    return make.identity_id(name)


def carried(*names: str) -> dict[IdentityId, str]:
    """Return what a target carries, with the client IDs that ARM tells."""
    return {make.identity_id(name): f"client-of-{name}" for name in names}


def fresh(**fields: object) -> TargetState:
    """Return the state of a target of which nothing is known."""
    given: dict[str, object] = {"policy": make.policy(), "reconcile_seconds": 180.0} | fields
    return TargetState(TARGET, **given)  # type: ignore[arg-type]  # tests name any field


def run(
    azure: Azure | None = None, *, wants: Iterable[str] = (), assigned_by_mic: Iterable[str] = (), **fields: object
) -> Run:
    """Start with a target that needs these identities."""
    started_run = Run(
        azure or Azure(), fresh(assigned_by_mic=ids(*assigned_by_mic), **fields), assigned_by_mic=ids(*assigned_by_mic)
    )
    started_run.want(*wants)
    return started_run
