"""Writes conditions on identities and bindings: only what differs, seldom, and only where it may.

What they should say is decided by `core.conditions`. They are for people, so they must cost others nothing: changes
gather; the first few of an object are written soon, whatever goes on changing seldom; and one after the other. Under
upstream's role the patch is forbidden, and its CRDs drop the field: each is said once, and then left alone. Only
`status.conditions` is ever named in a write, so nobody who manages `spec` or `metadata` (a GitOps tool, upstream) sees
anything of its own change.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from podidentity.core import conditions, crd
from podidentity.core.conditions import Conditions
from podidentity.core.identities import AzureIdentity, AzureIdentityBinding, Condition, ObjectKey
from podidentity.core.throttling import Bucket
from podidentity.errors import ForbiddenError, KubernetesError
from podidentity.kube.api import Api
from podidentity.kube.resources import BINDINGS, IDENTITIES, Kind
from podidentity.kube.store import Store
from podidentity.mic.cluster import WatchedCluster

GATHER_SECONDS = 1.0
PER_OBJECT_SECONDS = 10.0
AT_ONCE = 3
"""Changes of one object that follow each other at will: not in use, being assigned, assigned. Later ones wait."""
BETWEEN_WRITES_SECONDS = 0.1
HOLD_OFF_SECONDS = 600.0
"""After a refusal, before the next try: roles are corrected while MIC runs."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Place:
    """One kind of object."""

    kind: Kind[Any]
    store: Store[Any]
    wanted: Conditions = field(default_factory=dict)
    writes: dict[ObjectKey, Bucket] = field(default_factory=dict)
    held_until: float = float("-inf")
    warned: bool = False
    dated: bool = True
    """Whether generations are told: not where a definition drops them, or each write would be followed by another."""

    def due(self, now: float) -> list[ObjectKey]:
        """What differs and may be written now."""
        if now < self.held_until:
            return []
        return [key for key in self.wanted if self.bucket(key).ready_at(now) <= now and self.fresh(key, "") is not None]

    def bucket(self, key: ObjectKey) -> Bucket:
        """How many more writes of this object there may be."""
        return self.writes.get(key, _WRITES)

    def is_behind(self, now: float) -> bool:
        """Whether something differs that may be written later; while held off, only a new plan asks again."""
        return now >= self.held_until and any(self.fresh(key, "") is not None for key in self.wanted)

    def fresh(self, key: ObjectKey, now: str) -> tuple[Condition, ...] | None:
        """The conditions to write; None when the object is gone or says it already."""
        stored: AzureIdentity | AzureIdentityBinding | None = self.store.get(key)
        if stored is None:
            return None
        return conditions.changed(stored.conditions, self.wanted[key], now, stored.generation if self.dated else 0)

    def check(self, key: ObjectKey, made: AzureIdentity | AzureIdentityBinding) -> None:
        """See from the answer to a write whether what it said of the generation is kept, and true."""
        ours = {one.type for one in self.wanted.get(key, ())}
        if any(one.generation != made.generation for one in made.conditions if one.type in ours):
            self.dated = False


_WRITES = Bucket(capacity=AT_ONCE, refill_seconds=PER_OBJECT_SECONDS, left=AT_ONCE)


class Statuses:
    """The conditions of one leader's term."""

    def __init__(self, api: Api, cluster: WatchedCluster, wall_clock: Callable[[], float] = time.time) -> None:
        self._api = api
        self._wall_clock = wall_clock
        self._identities = _Place(IDENTITIES, cluster.identities)
        self._bindings = _Place(BINDINGS, cluster.bindings)
        self._filled = asyncio.Event()

    def want(self, identities: Conditions, bindings: Conditions) -> None:
        """Say what the conditions should be; takes effect in a while."""
        self._identities.wanted, self._bindings.wanted = identities, bindings
        self._filled.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            await self._api.clock.sleep(GATHER_SECONDS)
            for place in (self._identities, self._bindings):
                await self._write_all(place)
                if place.is_behind(self._api.clock.now()):
                    self._filled.set()

    async def _write_all(self, place: _Place) -> None:
        place.writes = {key: bucket for key, bucket in place.writes.items() if key in place.wanted}
        for key in place.due(self._api.clock.now()):
            if self._api.clock.now() < place.held_until:
                return
            if key in place.wanted:  # else a newer plan knows it no longer
                await self._write(place, key)
                await self._api.clock.sleep(BETWEEN_WRITES_SECONDS)

    async def _write(self, place: _Place, key: ObjectKey) -> None:
        now = datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fresh = place.fresh(key, now)
        if fresh is None:
            return
        place.writes[key] = place.bucket(key).take(self._api.clock.now())
        change = {
            "metadata": {"resourceVersion": place.store.version(key)},
            "status": {"conditions": crd.render_conditions(fresh)},
        }
        try:
            made: AzureIdentity | AzureIdentityBinding = await self._api.patch(place.kind, key, change)
        except ForbiddenError as error:
            self._hold(place, str(error))
        except KubernetesError as error:
            _log.debug("the conditions of %s %s are not written: %s", place.kind.name, key, error)
        else:
            if conditions.changed(made.conditions, place.wanted.get(key, ()), now) is not None and not made.conditions:
                self._hold(
                    place, f"the definition of {place.kind} has no status.conditions; install ours (deploy/infra)"
                )
            place.check(key, made)

    def _hold(self, place: _Place, why: str) -> None:
        place.held_until = self._api.clock.now() + HOLD_OFF_SECONDS
        level = logging.DEBUG if place.warned else logging.WARNING
        _log.log(level, "conditions are not written on %s: %s", place.kind.plural, why)
        place.warned = True
