"""One worker for each VM or scale set: carries out what `core.keeping` says, at that target's own pace.

A target whose PATCH takes a minute, or whose ARM says "later", delays nobody else. Nothing is decided here: a worker
asks for the next step, does it, and tells `outcomes` what came of it. What it learns asks for a new plan.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from podidentity.core import courses, keeping, outcomes
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.courses import Course, Read, Record, Send, Step, Wait
from podidentity.core.failing import Failing
from podidentity.core.refusals import Refusal
from podidentity.core.throttling import TOUCHES, Bucket
from podidentity.errors import AzureError, KubernetesError
from podidentity.mic.book import Book
from podidentity.mic.ports import Machines, Put, Storyteller

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tools:
    """What every worker works with. `changed` asks for a new plan for the pods of a target."""

    machines: Machines
    book: Book
    story: Storyteller
    policy: Policy
    changed: Callable[[Target], None]
    reconcile_seconds: float = 180.0


class Worker:
    """One target."""

    def __init__(self, target: Target, tools: Tools, expected: Mapping[IdentityId, str]) -> None:
        put = tools.book.put.get(target, frozenset())
        self.course = Course(target, tools.policy, tools.reconcile_seconds, put=put, expected=expected)
        self.failing: tuple[Failing, ...] = ()
        self._tools = tools
        self._wake = asyncio.Event()

    def become(self, course: Course) -> None:
        """Take note of a wish; takes effect soon, and never waits for Azure."""
        if course is not self.course:
            self.course = course
            self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            step = keeping.next_step(self.course, loop.time())
            if isinstance(step, Wait):
                await self._wait(step.until)
                continue
            before = self.course.state
            try:
                await self._do(step, loop)
            except (AzureError, KubernetesError) as error:
                self.course = outcomes.failed(self.course, step, refusal_of(error), loop.time())
                _log.info("%s: %s did not succeed: %s", self.course.target, type(step).__name__, error)
            self._tell(before)

    async def _wait(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(None if until == courses.NEVER else until):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _do(self, step: Step, loop: asyncio.AbstractEventLoop) -> None:
        tools, target = self._tools, self.course.target
        match step:
            case Read():
                self.course = outcomes.reading(self.course, loop.time())
                state = await tools.machines.get(target)
                self.course = outcomes.read(self.course, state, loop.time())
            case Record(add, drop):
                await tools.book.change(target, add=add, drop=drop)
                self.course = outcomes.recorded(self.course, step)
            case Send(change, state):
                self.course = outcomes.sending(self.course, step, loop.time())
                answered = await tools.machines.patch(target, change, state)
                self.course = outcomes.sent(self.course, step, answered, loop.time())
                for identity in change.assign:
                    tools.story.assigned(identity, target)
                for identity in change.unassign:
                    tools.story.removed(identity, target)

    def _tell(self, before: TargetState | None) -> None:
        """Ask for a new plan when it could come out differently; tell users of what fails now and did not before."""
        told, self.failing = {(one.identity, one.code) for one in self.failing}, courses.failing(self.course)
        fresh = [one for one in self.failing if (one.identity, one.code) not in told]
        for why in dict.fromkeys(one.why for one in fresh):
            _log.warning("%s: %s", self.course.target, why)
        for one in fresh:
            self._tools.story.failed(one.identity, one.target, one.why)
        if fresh or len(told) != len(self.failing) or self.course.state != before:
            self._tools.changed(self.course.target)


def refusal_of(error: AzureError | KubernetesError) -> Refusal:
    """Say what an error means to the decisions."""
    if isinstance(error, AzureError):
        return Refusal(error.status, error.code, error.said or str(error), error.retry_after_seconds)
    return Refusal(0, "", f"MIC's own record cannot be written: {error}", error.retry_after_seconds)


class Workers:
    """All targets' workers: one is started when its target is first named, and ends when it is named no more."""

    def __init__(self, tools: Tools, group: asyncio.TaskGroup) -> None:
        self._tools = tools
        self._group = group
        self._workers: dict[Target, Worker] = {}
        self._tasks: dict[Target, asyncio.Task[None]] = {}
        self._expected: Mapping[IdentityId, str] = {}
        self._touches: dict[IdentityId, Bucket] = {}
        self._later: dict[IdentityId, asyncio.TimerHandle] = {}

    @property
    def states(self) -> dict[Target, TargetState]:
        """What pods may rely on, of each target that ARM has told of."""
        carried = {target: courses.carried(worker.course) for target, worker in self._workers.items()}
        return {target: state for target, state in carried.items() if state is not None}

    @property
    def put(self) -> Put:
        """What MIC put where."""
        return self._tools.book.put

    @property
    def failing(self) -> tuple[Failing, ...]:
        """What ARM refuses to put where."""
        return tuple(one for worker in self._workers.values() for one in worker.failing)

    def want_all(self, in_use: Mapping[Target, frozenset[IdentityId]]) -> None:
        """Say what must be on which target; on a target that is not named, nothing. Never waits."""
        for target in self._workers.keys() - in_use.keys():
            self.want(target, frozenset())
            self._end_idle(target)
        for target, identities in in_use.items():
            self.want(target, identities)

    def want_more(self, in_use: Mapping[Target, frozenset[IdentityId]]) -> None:
        """Say what must be on these targets besides. Never waits."""
        for target, identities in in_use.items():
            worker = self._workers.get(target)
            self.want(target, identities | worker.course.in_use if worker else identities)

    def want(self, target: Target, in_use: frozenset[IdentityId]) -> None:
        """Say what must be on a target. Never waits."""
        worker = self._workers.get(target)
        if worker is None:
            worker = self._workers[target] = Worker(target, self._tools, self._expected)
            self._tasks[target] = self._group.create_task(worker.run())
        worker.become(keeping.want(worker.course, in_use, asyncio.get_running_loop().time()))

    def expect(self, client_ids: Mapping[IdentityId, str]) -> None:
        """Say which client IDs AzureIdentities name (`courses.expected_client_ids`)."""
        self._expected = client_ids
        for worker in self._workers.values():
            worker.become(keeping.expect(worker.course, client_ids))

    def touch(self, identities: Iterable[IdentityId]) -> None:
        """Somebody changed AzureIdentities: try at once what was refused, but one that changes all the time seldom."""
        loop = asyncio.get_running_loop()
        for identity in identities:
            if identity in self._later or not any(
                courses.is_tried(worker.course, identity) for worker in self._workers.values()
            ):
                continue
            at = self._touches.get(identity, TOUCHES).ready_at(loop.time())
            self._later[identity] = loop.call_at(at, self._touch, identity)

    def _touch(self, identity: IdentityId) -> None:
        now = asyncio.get_running_loop().time()
        del self._later[identity]
        self._touches = {one: left for one, left in self._touches.items() if left.left_at(now) < left.capacity}
        self._touches[identity] = self._touches.get(identity, TOUCHES).take(now)
        for worker in self._workers.values():
            if identity in worker.course.in_use:
                worker.become(keeping.touch(worker.course, identity))

    def _end_idle(self, target: Target) -> None:
        if courses.idle(self._workers[target].course):
            del self._workers[target]
            self._tasks.pop(target).cancel()
