"""Elects one leader among several MICs, ours and upstream's alike, and ends its reign in time.

The Endpoints lock of upstream is always taken, a Lease besides where the role allows it. A record is believed for as
long as its holder promised, counted by our own clock from when we saw it change: clocks of nodes are never compared.
A lock cannot fence, so a leader that could not renew for half that time stops before anybody else may begin: `leading`
turns False by the clock alone, even if this process was stopped and has not noticed yet. MIC asks it before each write.
Give it an Api with a client of its own: a renewal must never wait behind the writes of a busy sync.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from podidentity.core.identities import ObjectKey
from podidentity.errors import ConflictError, ForbiddenError, KubernetesError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.locks import EndpointsLock, Held, LeaseLock, Lock, Record, released

RELEASE_SECONDS = 5.0
"""How long a candidate that is told to stop tries to give up each lock; after that its record simply expires. Both have
to fit into the 30 s that a pod is given to end."""
RELEASE_TRY_SECONDS = 2.0
RELEASE_PAUSE_SECONDS = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who runs for what.

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
        """How long after its last renewal a leader still leads."""
        return self.duration_seconds / 2

    @property
    def retry_seconds(self) -> float:
        """Time between renewals; up to a fifth more, so that candidates do not march in step."""
        return self.duration_seconds / 4 * (1 + self.jitter() / 5)


class Election:
    """One candidate's view of the election."""

    def __init__(self, api: Api, candidate: Candidate) -> None:
        key = ObjectKey(candidate.namespace, candidate.name)
        self.terms = 0
        """How often this candidate was elected."""
        self.leader = ""
        """Who leads, as far as we know; empty when nobody does."""
        self._clock = api.clock
        self._candidate = candidate
        self._main = _Claim(EndpointsLock(api, key), candidate, api)
        self._besides: _Claim | None = _Claim(LeaseLock(api, key), candidate, api)
        self._renewed_at = float("-inf")

    @property
    def leading(self) -> bool:
        """Whether writes may start now."""
        return self._left_seconds > 0

    @property
    def _left_seconds(self) -> float:
        return self._renewed_at + self._candidate.renew_deadline_seconds - self._clock.now()

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Stand for election until cancelled; run `lead` during each term and cancel it at the term's end.

        An error in `lead` ends the election with it. When cancelled, the lock is given up so that another may begin.
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
            # In a task of its own: in one that was cancelled, a time limit ends all of it before Python 3.11.3.
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
            renewed = await self._attempt(self._left_seconds / 2)
            # One lost answer must not cost the term: there is time for several tries before the deadline.
            pause_seconds = self._candidate.retry_seconds / (1 if renewed else 4)

    async def _attempt(self, limit_seconds: float) -> bool:
        """Take or renew the locks; no answer within the limit is a failure. Returns whether we hold them all now."""
        # The promise runs from before the request, not from its answer.
        began = self._clock.now()
        try:
            async with asyncio.timeout(limit_seconds):
                held = await self._hold()
        except (KubernetesError, TimeoutError) as error:
            _log.info("election %s: %s", self._candidate.name, str(error) or f"no answer within {limit_seconds:.1f} s")
            return False
        self._renewed_at = began if held else float("-inf")
        return held

    async def _hold(self) -> bool:
        held = await self._main.hold()
        self.leader = self._main.holder
        if self._besides is None:
            return held
        try:
            if held:
                return await self._besides.hold()
            if self._besides.written:  # ours no longer: leave nothing behind that the new leader would have to wait for
                await self._release(self._besides)
            # Its age counts from when we first see it: seen only once the main lock is ours, it would cost a term more.
            return await self._besides.look()
        except (ForbiddenError, NotFoundError) as error:
            _log.warning("election without a Lease, with the Endpoints lock alone: %s", error)
            self._besides = None
            return held

    async def _give_up(self) -> None:
        """Release both locks; tries again after errors, since one that stays held costs whoever comes next a term."""
        self._renewed_at = float("-inf")
        for claim in (self._besides, self._main):
            why: str | None = None
            try:
                async with asyncio.timeout(RELEASE_SECONDS):
                    while claim is not None and (why := await self._release(claim)):
                        await self._clock.sleep(RELEASE_PAUSE_SECONDS)
            except (ForbiddenError, TimeoutError) as error:
                _log.info("election %s: not released (%s); it expires", self._candidate.name, why or error)

    async def _release(self, claim: "_Claim") -> str | None:
        """Try once; why it may still be held, or None."""
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
        self._mine: Held | None = None
        self._replaced: list[Held | None] = []
        """What our last write was to replace, until it is known what became of that write; at most one."""
        self.holder = ""

    @property
    def written(self) -> bool:
        """Whether the lock is ours, or may become ours by a write that nobody answered."""
        return self._mine is not None or bool(self._replaced)

    async def hold(self) -> bool:
        """Take or renew the lock; False while somebody else holds it."""
        if self._mine is not None:
            try:
                await self._write(self._mine)
            except (ConflictError, NotFoundError):
                self._mine = None  # somebody wrote to the object; perhaps not even to the record
            else:
                return True
        return await self._take()

    async def look(self) -> bool:
        """Note since when the lock has been as it is; False, because it is not ours."""
        found = await self._lock.read()
        if found is not None:
            self._is_free(found)
        return False

    async def release(self) -> None:
        """Let anybody else take the lock at once, if it is ours or may become ours.

        A write that was cut off may still arrive, even after this: therefore first what it was to replace is replaced,
        so that one of the two conflicts. Raises KubernetesError when the lock may still be ours.
        """
        self.holder = ""
        if self.written:
            before = self._replaced[0] if self._replaced else self._mine
            try:
                await self._write_released(before)
            except (ConflictError, NotFoundError):
                pass  # it did arrive, or somebody else wrote
            else:
                return
        found = await self._lock.read()
        if found is not None and found.record.holder == self._candidate.identity:
            await self._write_released(found)

    async def _write_released(self, before: Held | None) -> None:
        record = released(before.record if before else Record(), self._candidate.wall_clock())
        try:
            await self._lock.write(record, before)
        except (ConflictError, NotFoundError):
            self._mine, self._replaced = None, []
            raise
        self._mine, self._replaced = None, []

    async def _take(self) -> bool:
        found = await self._lock.read()
        self.holder = found.record.holder if found else ""
        if found is not None and not self._is_free(found):
            return False
        try:
            await self._write(found)
        except ConflictError:
            return False
        return True

    async def _write(self, before: Held | None) -> None:
        now, me = self._candidate.wall_clock(), self._candidate.identity
        was = before.record if before else Record()
        renewed = replace(was, duration_seconds=max(int(self._candidate.duration_seconds), 1), renewed_at=now)
        if was.holder != me:
            transitions = was.transitions + (1 if before else 0)
            renewed = replace(renewed, holder=me, acquired_at=now, transitions=transitions)
        self._replaced = [before]
        try:
            self._mine = await self._lock.write(renewed, before)
        except (ConflictError, ForbiddenError, NotFoundError):
            self._replaced = []  # it was refused: nothing of it is still under way
            raise
        self._replaced = []
        self.holder = me

    def _is_free(self, found: Held) -> bool:
        """Ours, nobody's, or not renewed for as long as its holder promised. Seen for the first time, it is fresh."""
        now = self._clock.now()
        if found.stamp != self._stamp:
            self._stamp, self._changed_at = found.stamp, now
        if found.record.holder in ("", self._candidate.identity):
            return True
        promised = found.record.duration_seconds or self._candidate.duration_seconds
        return now - self._changed_at > promised
