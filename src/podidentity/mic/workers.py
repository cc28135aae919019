"""One worker for each VM or scale set: carries out what `next_step` decides, at that target's own pace.

A target whose PATCH takes a minute, or whose ARM asks for patience, delays no other. A worker decides nothing: it takes
the next step, carries it out, and leaves it to `outcomes` what follows. What it learns asks for a new plan.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from podidentity.bounded import BoundedDict
from podidentity.core.model.arm import ArmState, IdentityId, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.policy import Policy
from podidentity.core.target import next_step, outcomes
from podidentity.core.target import state as target_state
from podidentity.core.target.arm_limits import TOUCHES
from podidentity.core.target.blame import ArmRefusal
from podidentity.core.target.state import Read, Record, Send, Step, TargetState, Verify, Wait
from podidentity.errors import AzureError, KubernetesError
from podidentity.mic.ports import AssignedByMic, Machines, TargetEvents
from podidentity.mic.record_batch import BatchedRecord

if TYPE_CHECKING:
    from podidentity.core.model.token_bucket import TokenBucket

_FORMER_TARGETS = 4096

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class WorkerDependencies:
    """What all workers share. `on_change` asks for a new plan for the pods of a target."""

    machines: Machines
    record: BatchedRecord
    events: TargetEvents
    policy: Policy
    on_change: Callable[[Target], None]
    reconcile_seconds: float = 180.0


class Worker:
    """The worker of one target."""

    def __init__(
        self,
        target: Target,
        dependencies: WorkerDependencies,
        expected_client_ids: Mapping[IdentityId, str],
        former: TargetState | None = None,
    ) -> None:
        state = TargetState(
            target,
            dependencies.policy,
            dependencies.reconcile_seconds,
            assigned_by_mic=dependencies.record.assigned_by_mic.get(target, frozenset()),
            named_client_ids=expected_client_ids,
        )
        self.state = target_state.resume(state, former) if former is not None else state
        self.failing: tuple[AssignmentFailure, ...] = ()
        self._dependencies = dependencies
        self._wake = asyncio.Event()

    def use_state(self, state: TargetState) -> None:
        """Replace the state; takes effect soon, and never waits for Azure."""
        if state is not self.state:
            self.state = state
            self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            step = next_step.next_step(self.state, loop.time())
            if isinstance(step, Wait):
                await self._wait(step.until)
                continue
            previous = self.state.arm_state
            try:
                await self._do(step, loop)
            except (AzureError, KubernetesError) as error:
                self.state = outcomes.step_failed(self.state, step, refusal_of(error), loop.time())
                _log.info("%s: %s did not succeed: %s", self.state.target, type(step).__name__, error)
            self._report(previous)

    async def _wait(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(None if deadline == target_state.INFINITY else deadline):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _do(self, step: Step, loop: asyncio.AbstractEventLoop) -> None:
        machines, events, target = self._dependencies.machines, self._dependencies.events, self.state.target
        match step:
            case Read():
                self.state = outcomes.read_started(self.state, loop.time())
                arm_state = await machines.get(target)
                self.state = outcomes.read_done(self.state, arm_state, loop.time())
            case Verify(identity):
                client_id = await machines.client_id(identity)
                self.state = outcomes.verify_done(self.state, identity, client_id, loop.time())
            case Record(add, drop):
                await self._dependencies.record.change(target, add=add, drop=drop)
                self.state = outcomes.record_done(self.state, step)
            case Send(change, arm_state):
                self.state = outcomes.patch_started(self.state, step, loop.time())
                response = await machines.patch(target, change, arm_state)
                self.state = outcomes.patch_done(self.state, step, response, loop.time())
                for identity in change.assign:
                    events.report_assigned(identity, target)
                for identity in change.unassign:
                    events.report_removed(identity, target)

    def _report(self, previous: ArmState | None) -> None:
        """Report what fails now and did not before; ask for a new plan when it may come out differently."""
        reported = {(failure.identity, failure.code) for failure in self.failing}
        self.failing = target_state.failing(self.state)
        fresh = [failure for failure in self.failing if (failure.identity, failure.code) not in reported]
        for message in dict.fromkeys(failure.message for failure in fresh):
            _log.warning("%s: %s", self.state.target, message)
        for failure in fresh:
            self._dependencies.events.report_failing(failure.identity, failure.target, failure.message)
        if fresh or len(reported) != len(self.failing) or self.state.arm_state != previous:
            self._dependencies.on_change(self.state.target)


def refusal_of(error: AzureError | KubernetesError) -> ArmRefusal:
    """Return an error as the decisions take it."""
    if isinstance(error, AzureError):
        return ArmRefusal(error.status, error.code, error.service_message or str(error), error.retry_after_seconds)
    return ArmRefusal(0, "", f"MIC's own record cannot be written: {error}", error.retry_after_seconds)


class Workers:
    """All workers: one starts when a plan first names its target, and ends when none does and it has nothing to do.

    What an ended one knew of refusals and of ARM's buckets is kept for as long as it matters: who makes and deletes
    pods of a refused identity all the time must not begin with full buckets each time.
    """

    def __init__(self, dependencies: WorkerDependencies, group: asyncio.TaskGroup) -> None:
        self._dependencies = dependencies
        self._group = group
        self._workers: dict[Target, Worker] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._expected_client_ids: Mapping[IdentityId, str] = {}
        self._former: BoundedDict[Target, TargetState] = BoundedDict(_FORMER_TARGETS)
        self._touches: dict[IdentityId, TokenBucket] = {}
        self._pending_touches: dict[IdentityId, asyncio.TimerHandle] = {}

    @property
    def arm_states(self) -> dict[Target, ArmState]:
        """The identities that pods may rely on, of each target that ARM has described."""
        by_target = {target: target_state.usable_state(worker.state) for target, worker in self._workers.items()}
        return {target: state for target, state in by_target.items() if state is not None}

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets that are followed."""
        return tuple(self._workers)

    def arm_state(self, target: Target) -> ArmState | None:
        """Return the identities that pods may rely on, of one target; None when ARM has not described it."""
        worker = self._workers.get(target)
        return target_state.usable_state(worker.state) if worker is not None else None

    @property
    def assigned_by_mic(self) -> AssignedByMic:
        """The identities that MIC itself assigned, as recorded."""
        return self._dependencies.record.assigned_by_mic

    @property
    def failing(self) -> tuple[AssignmentFailure, ...]:
        """The identities that ARM refuses to assign, and why."""
        return tuple(failure for worker in self._workers.values() for failure in worker.failing)

    def require(self, in_use: Mapping[Target, frozenset[IdentityId]]) -> None:
        """Replace what must be on the targets; nothing need be on a target that is not named. Never waits."""
        self._forget_former(asyncio.get_running_loop().time())
        for target in self._workers.keys() - in_use.keys():
            self._require_on(target, frozenset())
            self._end_idle(target)
        for target, identities in in_use.items():
            self._require_on(target, identities)

    def require_also(self, in_use: Mapping[Target, frozenset[IdentityId]]) -> None:
        """Add to what must be on these targets. Never waits."""
        for target, identities in in_use.items():
            worker = self._workers.get(target)
            self._require_on(target, identities | worker.state.in_use if worker else identities)

    def _require_on(self, target: Target, in_use: frozenset[IdentityId]) -> None:
        worker = self._workers.get(target)
        if worker is None:
            former = self._former.pop(target, None)
            worker = self._workers[target] = Worker(target, self._dependencies, self._expected_client_ids, former)
            self._tasks[target] = self._group.create_task(worker.run())
        worker.use_state(next_step.want(worker.state, in_use, asyncio.get_running_loop().time()))

    def expect(self, client_ids: Mapping[IdentityId, str]) -> None:
        """Replace the client IDs that AzureIdentities state."""
        self._expected_client_ids = client_ids
        for worker in self._workers.values():
            worker.use_state(next_step.expect(worker.state, client_ids))

    def touch(self, identities: Iterable[IdentityId]) -> None:
        """Try refused identities again, because their AzureIdentities changed; how often is bounded for each."""
        loop = asyncio.get_running_loop()
        for identity in identities:
            if identity in self._pending_touches or not any(
                target_state.is_tried(worker.state, identity) for worker in self._workers.values()
            ):
                continue
            start = self._touches.get(identity, TOUCHES).ready_at(loop.time())
            self._pending_touches[identity] = loop.call_at(start, self._touch, identity)

    def _touch(self, identity: IdentityId) -> None:
        now = asyncio.get_running_loop().time()
        del self._pending_touches[identity]
        self._touches = {
            key: bucket for key, bucket in self._touches.items() if bucket.tokens_at(now) < bucket.capacity
        }
        self._touches[identity] = self._touches.get(identity, TOUCHES).take(now)
        for worker in self._workers.values():
            if identity in worker.state.in_use:
                worker.use_state(next_step.touch(worker.state, identity))

    def stop(self) -> None:
        """Cancel all workers."""
        for task in self._tasks.values():
            task.cancel()

    def _end_idle(self, target: Target) -> None:
        state = self._workers[target].state
        if target_state.is_idle(state):
            self._former[target] = replace(state, arm_state=None)
            del self._workers[target]
            self._tasks.pop(target).cancel()

    def _forget_former(self, now: float) -> None:
        for target in [target for target, state in self._former.items() if target_state.matters_until(state) <= now]:
            del self._former[target]
