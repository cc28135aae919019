"""`podidentity mic --uninstall`: takes MIC's finalizers off and its objects away, so that nothing hangs without MIC.

A namespace, or the definitions themselves, cannot be deleted while an assigned identity with a finalizer is in them and
no MIC is there to let it go. Runs before or after MIC is gone: it first takes the lock by force and holds it as long as
it works, so that a MIC that still runs steps down and does not put back what is taken away. Leaves Azure and the record
as they are: identities stay on their machines, and a MIC that is installed again knows them as its own.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from podidentity.core.crd import FINALIZER
from podidentity.core.identities import ObjectKey
from podidentity.errors import ConflictError, ForbiddenError, KubernetesError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.locks import EndpointsLock, Held, LeaseLock, Lock, Record
from podidentity.kube.resources import ASSIGNED_IDENTITIES

HOLDER = "podidentity-uninstall"
PROMISE_SECONDS = 60
"""For how long no MIC may lead afterwards: time to delete it."""
RENEW_SECONDS = PROMISE_SECONDS / 4
LIMIT_SECONDS = 120.0
"""After this the command gives up and says what is left; it never hangs itself."""
AT_A_TIME = 20
PAUSE_SECONDS = 1.0
_TRIES = 5

_log = logging.getLogger(__name__)


async def drain(api: Api, lock: ObjectKey, wall_clock: Callable[[], float] = time.time) -> int:
    """Remove all assigned identities; how many there were. Raises KubernetesError when some stay."""
    silence = _Silence(api, lock, wall_clock)
    await silence.begin()
    removed, ends_at = 0, api.clock.now() + LIMIT_SECONDS
    while left := await _left(api):
        results = await _remove_all(api, left, silence)
        removed += sum(error is None for error in results)
        errors = [error for error in results if error is not None]
        if errors and api.clock.now() >= ends_at:
            raise KubernetesError(f"{len(errors)} assigned identities are still there: {errors[0]}")
        if errors:
            await api.clock.sleep(PAUSE_SECONDS)
    await silence.renew()
    return removed


class _Silence:
    """Both locks in our name, so that no MIC writes."""

    def __init__(self, api: Api, key: ObjectKey, wall_clock: Callable[[], float]) -> None:
        self._api = api
        self._main = EndpointsLock(api, key)
        self._besides = LeaseLock(api, key)
        self._wall_clock = wall_clock
        self._renewed_at = 0.0

    async def begin(self) -> None:
        """Take both, and wait until whoever held them has to have stopped: half of what it promised."""
        before = await self.renew()
        if before is not None and before.record.holder not in ("", HOLDER):
            wait = before.record.duration_seconds / 2 + 1.0
            _log.info("%s leads; waiting %g s until it has stepped down", before.record.holder, wait)
            await self._api.clock.sleep(wait)

    async def keep(self) -> None:
        """Renew them when it is time."""
        if self._api.clock.now() - self._renewed_at >= RENEW_SECONDS:
            await self.renew()

    async def renew(self) -> Held | None:
        """Promise anew, from now on; who held the main lock before."""
        self._renewed_at, now = self._api.clock.now(), self._wall_clock()
        before = await _seize(self._main, now)
        try:
            await _seize(self._besides, now)
        except (ForbiddenError, NotFoundError) as error:
            _log.info("no Lease is held: %s", error)
        return before


async def _seize(lock: Lock, now: float) -> Held | None:
    """Write ourselves into a lock, whoever holds it; what was there before."""
    first: Held | None = None
    for left in reversed(range(_TRIES)):
        found = await lock.read()
        first = first or found
        transitions = found.record.transitions + 1 if found else 0
        try:
            await lock.write(Record(HOLDER, PROMISE_SECONDS, now, now, transitions), found)
        except ConflictError:
            if not left:
                raise
        else:
            break
    return first


async def _left(api: Api) -> dict[ObjectKey, dict[str, Any]]:
    """All assigned identities, also those that nobody could read."""
    try:
        listed = await api.list(ASSIGNED_IDENTITIES.whole())
    except NotFoundError:
        return {}  # the definition is gone, and everything with it
    return {key: stored.value for key, stored in listed.items.items() if _is_ours(stored.value)}


def _is_ours(obj: dict[str, Any]) -> bool:
    """Whether something is left to do: others' finalizers are theirs."""
    metadata = obj["metadata"]
    return not metadata.get("deletionTimestamp") or FINALIZER in (metadata.get("finalizers") or ())


async def _remove_all(
    api: Api, left: dict[ObjectKey, dict[str, Any]], silence: _Silence
) -> list[KubernetesError | None]:
    results: list[KubernetesError | None] = []
    queue = iter(left.items())

    async def work() -> None:
        for key, obj in queue:
            try:
                await silence.keep()
                await _remove(api, key, obj)
            except KubernetesError as error:
                results.append(error)
            else:
                results.append(None)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_A_TIME, len(left))):
            group.create_task(work())
    return results


async def _remove(api: Api, key: ObjectKey, obj: dict[str, Any]) -> None:
    finalizers = obj["metadata"].get("finalizers") or []
    kept = [name for name in finalizers if name != FINALIZER]
    try:
        if kept != finalizers:
            await api.patch(ASSIGNED_IDENTITIES.whole(), key, {"metadata": {"finalizers": kept}})
        if not obj["metadata"].get("deletionTimestamp"):
            await api.delete(ASSIGNED_IDENTITIES, key)
    except NotFoundError:
        pass
