"""One worker for each VM or scale set: brings what it carries in line with what is in use, at its own pace.

A target whose PATCH takes a minute, or whose ARM says "later", delays nobody else. What must change is decided by
`core.drift`; here is only the order: record what will be put, PATCH, read back, tell. An identity that spoils a PATCH
is set aside for a while, so that the others go on.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from podidentity.core import drift
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.drift import Change
from podidentity.core.failing import Failing
from podidentity.errors import AzureError, KubernetesError
from podidentity.mic.ports import Machines, Put, Records, Storyteller

COALESCE_SECONDS = 0.05
"""How long a burst of pods may gather before its one PATCH."""
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
SET_ASIDE_SECONDS = 10.0
"""The first pause for an identity that ARM refused; it doubles up to LONGEST_RETRY_SECONDS."""
_IDENTITY_ERRORS = {"LinkedAuthorizationFailed", "FailedIdentityOperation"}

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Aside:
    """An identity that ARM refused on this target."""

    until: float
    pause_seconds: float
    code: str
    why: str


class Book:
    """The record of what MIC put where, shared by the workers: one write at a time."""

    def __init__(self, records: Records, put: Put) -> None:
        self._records = records
        self._lock = asyncio.Lock()
        self.put: dict[Target, frozenset[IdentityId]] = dict(put)

    async def change(self, target: Target, *, add: Iterable[IdentityId] = (), drop: Iterable[IdentityId] = ()) -> None:
        """Note what is being put on, or was taken off, a target; returns when it is durable. Raises KubernetesError."""
        async with self._lock:
            now = (self.put.get(target, frozenset()) | {*add}) - {*drop}
            if now == self.put.get(target, frozenset()):
                return
            fresh = {**self.put, target: now}
            await self._records.store({one: identities for one, identities in fresh.items() if identities})
            self.put = fresh


@dataclass(slots=True)
class Tools:
    """What every worker works with. `changed` asks for a new plan."""

    machines: Machines
    book: Book
    story: Storyteller
    policy: Policy
    changed: Callable[[], None]
    reconcile_seconds: float = 180.0
    asides: dict[tuple[Target, IdentityId], str] = field(default_factory=dict)


class Worker:
    """One target."""

    def __init__(self, target: Target, tools: Tools) -> None:
        self.target = target
        self.state: TargetState | None = None
        self._tools = tools
        self._in_use: frozenset[IdentityId] = frozenset()
        self._wake = asyncio.Event()
        self._aside: dict[IdentityId, _Aside] = {}
        self._failures = 0
        self._held = False
        self._read_at = 0.0

    def want(self, in_use: frozenset[IdentityId]) -> None:
        """Say what must be on the target; takes effect soon, and never waits for Azure."""
        if in_use != self._in_use or self.state is None:
            self._in_use = in_use
            self._wake.set()

    @property
    def failing(self) -> tuple[Failing, ...]:
        """What ARM refuses to put here."""
        return tuple(Failing(one, self.target, aside.code, aside.why) for one, aside in self._aside.items())

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            pause = await self._settle(loop.time())
            if self._held:
                await asyncio.sleep(pause)  # a new pod must not cut short what ARM asked for
                continue
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                await asyncio.sleep(COALESCE_SECONDS)
            except TimeoutError:
                if loop.time() - self._read_at >= self._tools.reconcile_seconds:
                    self.state = None  # time to look again whether Azure still has it all
            self._wake.clear()

    async def _settle(self, now: float) -> float:
        """Do what must be done; how long to wait for the next look."""
        self._held = False
        self._aside = {one: aside for one, aside in self._aside.items() if one in self._in_use}
        try:
            if self.state is None and (self._in_use or self._tools.book.put.get(self.target)):
                self.state = await self._tools.machines.get(self.target)
                self._read_at = now
                self._tools.changed()
            while change := self._change(now):
                await self._send(next(drift.patches(change)), now)
        except (AzureError, KubernetesError) as error:
            return self._later(error)
        self._failures = 0
        waiting = [one.until - now for one in self._aside.values()]
        return max(0.1, min([self._tools.reconcile_seconds, *waiting]))

    def _change(self, now: float) -> Change:
        if self.state is None:
            return Change()
        refused = {identity for identity, aside in self._aside.items() if aside.until > now}
        put = self._tools.book.put.get(self.target, frozenset())
        wanted = drift.change(self._in_use, put, self.state, self._tools.policy)
        return Change(tuple(one for one in wanted.assign if one not in refused), wanted.unassign)

    async def _send(self, change: Change, now: float) -> None:
        """One PATCH; when an identity spoils it, that one is set aside, found by name or by halving."""
        state = self.state or TargetState()
        await self._tools.book.change(self.target, add=change.assign)
        try:
            await self._tools.machines.patch(self.target, change, state)
        except AzureError as error:
            if error.code not in _IDENTITY_ERRORS or not change.assign:
                raise
            await self._spoiled(change, error, now)
            return
        self.state = await self._tools.machines.get(self.target)
        await self._tools.book.change(self.target, drop=change.unassign)
        self._tell(change)

    async def _spoiled(self, change: Change, error: AzureError, now: float) -> None:
        message = str(error).lower()
        named = [one for one in change.assign if one.text.lower() in message]
        if not named and len(change.assign) > 1:
            half = len(change.assign) // 2
            await self._send(Change(change.assign[:half]), now)
            await self._send(Change(change.assign[half:]), now)
            return
        for identity in named or change.assign:
            self._set_aside(identity, error, now)
        await self._tools.book.change(self.target, drop=named or change.assign)

    def _set_aside(self, identity: IdentityId, error: AzureError, now: float) -> None:
        why = str(error)
        before = self._aside.get(identity)
        pause = min(before.pause_seconds * 2, LONGEST_RETRY_SECONDS) if before else SET_ASIDE_SECONDS
        self._aside[identity] = _Aside(now + pause, pause, error.code, why)
        _log.warning("%s: %s is set aside for %g s: %s", self.target, identity.name, pause, why)
        self._tools.story.failed(identity, self.target, why)
        self._tools.changed()

    def _tell(self, change: Change) -> None:
        for identity in change.assign:
            self._aside.pop(identity, None)
            self._tools.story.assigned(identity, self.target)
        for identity in change.unassign:
            self._tools.story.removed(identity, self.target)
        self._tools.changed()

    def _later(self, error: AzureError | KubernetesError) -> float:
        """How long to wait after a failure: what the server asked for, else longer each time."""
        pause = min(FIRST_RETRY_SECONDS * 2**self._failures, LONGEST_RETRY_SECONDS)
        self._failures = min(self._failures + 1, 10)
        _log.warning("%s: trying again in %g s: %s", self.target, error.retry_after_seconds or pause, error)
        self.state = None
        self._held = True
        return error.retry_after_seconds or pause


class Workers:
    """All targets' workers; one is started when its target is first named."""

    def __init__(self, tools: Tools, group: asyncio.TaskGroup) -> None:
        self._tools = tools
        self._group = group
        self._workers: dict[Target, Worker] = {}

    @property
    def states(self) -> dict[Target, TargetState]:
        """What ARM last said of each target."""
        return {target: worker.state for target, worker in self._workers.items() if worker.state is not None}

    @property
    def put(self) -> Put:
        """What MIC put where."""
        return self._tools.book.put

    @property
    def failing(self) -> tuple[Failing, ...]:
        """What ARM refuses to put where."""
        return tuple(one for worker in self._workers.values() for one in worker.failing)

    def want(self, target: Target, in_use: frozenset[IdentityId]) -> None:
        """Say what must be on a target. Never waits."""
        worker = self._workers.get(target)
        if worker is None:
            worker = self._workers[target] = Worker(target, self._tools)
            worker.want(in_use)
            self._group.create_task(worker.run())
        else:
            worker.want(in_use)
