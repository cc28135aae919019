"""Elects one leader among several MICs, ours and upstream's alike, and ends its term in time.

Upstream's Endpoints lock is always taken, and a Lease too where the role allows it. A record is valid for the duration
in it, counted by our own clock from when we saw it change: the clocks of nodes are never compared. A lock cannot fence,
so a leader that could not renew for half that time stops before another may start: `leading` turns False by the clock
alone, even if this process was stopped and has not noticed yet. MIC checks it before each write. An election needs an
Api with a client of its own: a renewal must never wait behind the writes of a busy sync.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from podidentity.core.model.identities import ObjectKey
from podidentity.errors import ConflictError, ForbiddenError, KubernetesError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.locks import EndpointsLock, LeaseLock, Lock, LockRecord, StoredRecord, vacant_record

RELEASE_SECONDS = 5.0
"""How long a candidate that stops tries to release each lock; after that its record expires. Both locks have to fit
into the 30 s that Kubernetes gives a pod to end."""
RELEASE_TRY_SECONDS = 2.0
RELEASE_PAUSE_SECONDS = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who stands for which election.

    `identity` must be unique among the candidates (upstream: the pod's hostname). A leader renews every quarter of
    `duration_seconds` and steps down after half of it without success, as upstream's does.
    """

    identity: str
    name: str = "aad-pod-identity-mic"
    namespace: str = "default"
    duration_seconds: float = 15.0
    jitter: Callable[[], float] = random.random
    wall_clock: Callable[[], float] = time.time

    @property
    def renew_deadline_seconds(self) -> float:
        """How long a leader leads after its last renewal."""
        return self.duration_seconds / 2

    @property
    def retry_seconds(self) -> float:
        """The time between renewals; up to a fifth more, so that candidates do not run in step."""
        return self.duration_seconds / 4 * (1 + self.jitter() / 5)


class Election:
    """One candidate's part in the election."""

    def __init__(self, api: Api, candidate: Candidate) -> None:
        key = ObjectKey(candidate.namespace, candidate.name)
        self.terms = 0
        """The number of times that this candidate was elected."""
        self.leader = ""
        """The leader, as far as is known; empty when there is none."""
        self.refusal = ""
        """Why the API server forbids this candidate the lock; empty while it does not."""
        self._clock = api.clock
        self._candidate = candidate
        self._endpoints_claim = _Claim(EndpointsLock(api, key), candidate, api)
        self._lease_claim: _Claim | None = _Claim(LeaseLock(api, key), candidate, api)
        self._renewed_at = float("-inf")

    @property
    def leading(self) -> bool:
        """Whether writes may start now."""
        return self._left_seconds > 0

    @property
    def _left_seconds(self) -> float:
        return self._renewed_at + self._candidate.renew_deadline_seconds - self._clock.steady()

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stand for election until cancelled; run `lead` during each term and cancel it at the term's end.

        An error in `lead` ends the election with it. When cancelled, the locks are released so that another may start.
        """
        try:
            while True:
                while not await self._attempt(self._candidate.renew_deadline_seconds):
                    await self._clock.sleep(self._candidate.retry_seconds)
                self.terms += 1
                _log.info("%s leads", self._candidate.identity)
                await self._reign(lead)
                _log.warning("%s no longer leads; standing again", self._candidate.identity)
        finally:
            # In a task of its own: before Python 3.11.3 a time limit in a cancelled task ends the whole task.
            await asyncio.create_task(self._give_up())

    async def _reign(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with asyncio.TaskGroup() as group:
            leading = group.create_task(lead())
            try:
                await self._renew_until_lost()
            finally:
                leading.cancel()

    async def _renew_until_lost(self) -> None:
        pause_seconds = self._candidate.retry_seconds
        while True:
            await self._clock.sleep(max(min(pause_seconds, self._left_seconds), 0.0))
            if not self.leading:
                return
            success = await self._attempt(self._left_seconds / 2)
            # One lost answer must not cost the term: there is time for several tries before the deadline.
            pause_seconds = self._candidate.retry_seconds / (1 if success else 4)

    async def _attempt(self, limit_seconds: float) -> bool:
        """Take or renew the locks; return whether all are ours now. No answer within the limit is a failure."""
        # The term counts from before the request, not from its answer.
        start = self._clock.steady()
        try:
            async with asyncio.timeout(limit_seconds):
                success = await self._hold()
        except ForbiddenError as error:
            self._note_refusal(str(error))
            return False
        except (KubernetesError, TimeoutError) as error:
            _log.info("election %s: %s", self._candidate.name, str(error) or f"no answer within {limit_seconds:.1f} s")
            return False
        self.refusal = ""
        self._renewed_at = start if success else float("-inf")
        return success

    def _note_refusal(self, message: str) -> None:
        """Log a warning once for each reason: a missing right does not come back by itself."""
        if message != self.refusal:
            _log.warning(
                "election %s in namespace %s: %s; without it this MIC never leads",
                self._candidate.name,
                self._candidate.namespace,
                message,
            )
        self.refusal = message

    def _note_leader(self, holder: str) -> None:
        """Log each new leader once, unless it is this candidate."""
        if holder not in ("", self._candidate.identity, self.leader):
            _log.info("%s leads; %s stands by", holder, self._candidate.identity)
        self.leader = holder

    async def _hold(self) -> bool:
        is_held = await self._endpoints_claim.hold()
        self._note_leader(self._endpoints_claim.holder)
        if self._lease_claim is None:
            return is_held
        try:
            if is_held:
                return await self._lease_claim.hold()
            if self._lease_claim.may_be_held:  # not leading any more: the new leader must not wait for it
                await self._release(self._lease_claim)
            # Its age counts from when we first see it: to look only once the main lock is ours would cost another term.
            return await self._lease_claim.look()
        except (ForbiddenError, NotFoundError) as error:
            _log.warning("election without a Lease, with the Endpoints lock alone: %s", error)
            self._lease_claim = None
            return is_held

    async def _give_up(self) -> None:
        """Release both locks; try again after errors, since the next leader has to wait a term for a held lock."""
        self._renewed_at = float("-inf")
        for claim in (self._lease_claim, self._endpoints_claim):
            reason: str | None = None
            try:
                async with asyncio.timeout(RELEASE_SECONDS):
                    while claim is not None and (reason := await self._release(claim)):
                        await self._clock.sleep(RELEASE_PAUSE_SECONDS)
            except (ForbiddenError, TimeoutError) as error:
                _log.info("election %s: not released (%s); it expires", self._candidate.name, reason or error)

    async def _release(self, claim: "_Claim") -> str | None:
        """Try once; return why the lock may still be held, or None."""
        try:
            async with asyncio.timeout(RELEASE_TRY_SECONDS):
                await claim.release()
        except ForbiddenError:
            raise  # the role may be gone already
        except (KubernetesError, TimeoutError) as error:
            return str(error) or "no answer in time"
        return None


class _Claim:
    """One lock and what this candidate knows of it."""

    def __init__(self, lock: Lock, candidate: Candidate, api: Api) -> None:
        self._lock = lock
        self._candidate = candidate
        self._clock = api.clock
        self._stamp: str | None = None
        self._changed_at = 0.0
        self._own_record: StoredRecord | None = None
        self._uncertain_base: list[StoredRecord | None] = []
        """What our last write was to replace, while it is unknown whether it was stored; at most one."""
        self.holder = ""

    @property
    def may_be_held(self) -> bool:
        """Whether the lock is ours, or may become ours by a write without an answer."""
        return self._own_record is not None or bool(self._uncertain_base)

    async def hold(self) -> bool:
        """Take or renew the lock; return False while another candidate holds it."""
        if self._own_record is not None:
            try:
                await self._write(self._own_record)
            except (ConflictError, NotFoundError):
                self._own_record = None  # the object was changed, perhaps not its record
            else:
                return True
        return await self._take()

    async def look(self) -> bool:
        """Note since when the lock has been as it is. Return False: it is not ours."""
        current = await self._lock.read()
        if current is not None:
            self._observe(current)
        return False

    async def release(self) -> None:
        """Let another candidate take the lock at once, if it is ours or may become ours.

        A write without an answer may still arrive, even after this: therefore the same version is replaced first, so
        that one of the two conflicts. Raises KubernetesError when the lock may still be ours.
        """
        self.holder = ""
        if self.may_be_held:
            previous = self._uncertain_base[0] if self._uncertain_base else self._own_record
            try:
                await self._write_vacant_record(previous)
            except (ConflictError, NotFoundError):
                pass  # the earlier write arrived, or another candidate wrote
            else:
                return
        current = await self._lock.read()
        if current is not None and current.record.holder == self._candidate.identity:
            await self._write_vacant_record(current)

    async def _write_vacant_record(self, previous: StoredRecord | None) -> None:
        record = vacant_record(previous.record if previous else LockRecord(), self._candidate.wall_clock())
        try:
            await self._lock.write(record, previous)
        except (ConflictError, NotFoundError):
            self._own_record, self._uncertain_base = None, []
            raise
        self._own_record, self._uncertain_base = None, []

    async def _take(self) -> bool:
        current = await self._lock.read()
        self.holder = current.record.holder if current else ""
        if current is not None and not self._observe(current):
            return False
        try:
            await self._write(current)
        except ConflictError:
            return False
        return True

    async def _write(self, previous: StoredRecord | None) -> None:
        now, identity = self._candidate.wall_clock(), self._candidate.identity
        previous_record = previous.record if previous else LockRecord()
        record = replace(
            previous_record, duration_seconds=max(int(self._candidate.duration_seconds), 1), renewed_at=now
        )
        if previous_record.holder != identity:
            transitions = previous_record.transitions + (1 if previous else 0)
            record = replace(record, holder=identity, acquired_at=now, transitions=transitions)
        self._uncertain_base = [previous]
        try:
            self._own_record = await self._lock.write(record, previous)
        except (ConflictError, ForbiddenError, NotFoundError):
            self._uncertain_base = []  # it was refused, so it cannot arrive any more
            raise
        self._uncertain_base = []
        self.holder = identity

    def _observe(self, current: StoredRecord) -> bool:
        """Note since when the record has been as it is; return whether the lock may be taken.

        It may when it is ours, has no holder, or was not renewed for its duration; on first sight it counts as new.
        """
        now = self._clock.steady()
        if current.stamp != self._stamp:
            self._stamp, self._changed_at = current.stamp, now
        if current.record.holder in ("", self._candidate.identity):
            return True
        lease_seconds = current.record.duration_seconds or self._candidate.duration_seconds
        return now - self._changed_at > lease_seconds
