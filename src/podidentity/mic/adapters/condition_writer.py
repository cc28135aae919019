"""Writes conditions on AzureIdentities and AzureIdentityBindings: only what differs, seldom, where MIC may.

`conditions` decides what they say. They are for people and must cost others nothing: changes gather, objects are
written one after the other, and one that keeps changing is written seldom. Upstream's role forbids the patch, and
upstream's CRDs drop the field: each is logged once, and then left alone. A write contains nothing but
`status.conditions`, so whoever manages `spec` or `metadata` (a GitOps tool, upstream) sees no change of its own.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from podidentity.core.assignment import conditions
from podidentity.core.assignment.conditions import Conditions
from podidentity.core.model import crd
from podidentity.core.model.identities import AzureIdentity, AzureIdentityBinding, Condition, ObjectKey
from podidentity.core.model.policy import ConditionLevel
from podidentity.core.model.token_bucket import TokenBucket, full_bucket
from podidentity.errors import ForbiddenError, KubernetesError
from podidentity.kube.api import Api
from podidentity.kube.resources import BINDINGS, IDENTITIES, Kind
from podidentity.kube.store import Store
from podidentity.mic.adapters.cluster import WatchedCluster
from podidentity.timing import render_rfc3339

GATHER_SECONDS = 1.0
"""How long changes gather before the first of them is written."""
PER_OBJECT_SECONDS = 10.0
BURST = 3
"""Writes of one object that may follow each other at will: not in use, being assigned, assigned. Then one each
`PER_OBJECT_SECONDS`."""
BETWEEN_WRITES_SECONDS = 0.1
HOLD_OFF_SECONDS = 600.0
"""How long a refusal by the API stops the writes of a kind; roles are corrected while MIC runs."""

_FULL_BUCKET = full_bucket(BURST, PER_OBJECT_SECONDS)
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _WriteQueue:
    """The desired conditions of all objects of one kind, and when they may be written."""

    kind: Kind[Any]
    store: Store[Any]
    desired: Conditions = field(default_factory=dict)
    buckets: dict[ObjectKey, TokenBucket] = field(default_factory=dict)
    """How many more writes of an object there may be; missing means full."""
    hold_off_end: float = float("-inf")
    level: ConditionLevel = ConditionLevel.PROBLEMS
    has_warned: bool = False
    without_generation: set[ObjectKey] = field(default_factory=set)
    """Objects whose definition drops `observedGeneration`: each write would ask for another."""

    def writable(self, now: float) -> list[ObjectKey]:
        """Return the objects whose conditions differ and may be written now."""
        if now < self.hold_off_end:
            return []
        return [
            key
            for key in self.desired
            if self.bucket(key).ready_at(now) <= now and self.conditions_of(key, "") is not None
        ]

    def bucket(self, key: ObjectKey) -> TokenBucket:
        """Return how many more writes of this object there may be."""
        return self.buckets.get(key, _FULL_BUCKET)

    def has_pending(self, now: float) -> bool:
        """Whether something is still to be written. While held off nothing is, until the next full plan."""
        return now >= self.hold_off_end and any(self.conditions_of(key, "") is not None for key in self.desired)

    def conditions_of(self, key: ObjectKey, time_stamp: str) -> tuple[Condition, ...] | None:
        """Return the conditions to write; None when the object is gone or has them already."""
        stored_object: AzureIdentity | AzureIdentityBinding | None = self.store.get(key)
        if stored_object is None:
            return None
        selected = conditions.selected(stored_object.conditions, self.desired[key], self.level)
        generation = 0 if key in self.without_generation else stored_object.generation
        return conditions.merge(stored_object.conditions, selected, time_stamp, generation)

    def check_generation(self, key: ObjectKey, response: AzureIdentity | AzureIdentityBinding) -> None:
        """Note from the response to a write whether the API keeps the generation in our conditions."""
        types = {condition.type for condition in self.desired.get(key, ())}
        if any(
            condition.generation != response.generation for condition in response.conditions if condition.type in types
        ):
            self.without_generation.add(key)


class ApiConditionWriter:
    """The conditions of one leader's term."""

    def __init__(
        self,
        api: Api,
        cluster: WatchedCluster,
        level: ConditionLevel = ConditionLevel.PROBLEMS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._wall_clock = wall_clock
        self._identities = _WriteQueue(IDENTITIES, cluster.identities, level=level)
        self._bindings = _WriteQueue(BINDINGS, cluster.bindings, level=level)
        self._updated = asyncio.Event()

    def update(self, identities: Conditions, bindings: Conditions) -> None:
        """Replace the conditions that are to be written; `run` writes them in a while. Never waits."""
        self._identities.desired, self._bindings.desired = identities, bindings
        self._updated.set()

    async def run(self) -> None:
        """Write conditions until cancelled."""
        while True:
            await self._updated.wait()
            self._updated.clear()
            await self._api.clock.sleep(GATHER_SECONDS)
            for queue in (self._identities, self._bindings):
                await self._write_all(queue)
                if queue.has_pending(self._api.clock.steady()):
                    self._updated.set()

    async def _write_all(self, queue: _WriteQueue) -> None:
        queue.buckets = {key: bucket for key, bucket in queue.buckets.items() if key in queue.desired}
        queue.without_generation &= queue.desired.keys()
        for key in queue.writable(self._api.clock.steady()):
            if self._api.clock.steady() < queue.hold_off_end:
                return
            if key in queue.desired:  # a newer plan may have dropped it meanwhile
                await self._write(queue, key)
                await self._api.clock.sleep(BETWEEN_WRITES_SECONDS)

    async def _write(self, queue: _WriteQueue, key: ObjectKey) -> None:
        time_stamp = render_rfc3339(self._wall_clock())
        fresh = queue.conditions_of(key, time_stamp)
        if fresh is None:
            return
        queue.buckets[key] = queue.bucket(key).take(self._api.clock.steady())
        patch = {
            "metadata": {"resourceVersion": queue.store.version(key)},
            "status": {"conditions": crd.render_conditions(fresh)},
        }
        try:
            response: AzureIdentity | AzureIdentityBinding = await self._api.patch(queue.kind, key, patch)
        except ForbiddenError as error:
            self._hold_off(queue, str(error))
        except KubernetesError as error:
            _log.debug("the conditions of %s %s are not written: %s", queue.kind.name, key, error)
        else:
            if fresh and not response.conditions:
                message = f"the definition of {queue.kind} has no status.conditions; install ours (deploy/infra)"
                self._hold_off(queue, message)
            queue.check_generation(key, response)

    def _hold_off(self, queue: _WriteQueue, message: str) -> None:
        queue.hold_off_end = self._api.clock.steady() + HOLD_OFF_SECONDS
        level = logging.DEBUG if queue.has_warned else logging.WARNING
        _log.log(level, "conditions are not written on %s: %s", queue.kind.plural, message)
        queue.has_warned = True
