"""`podidentity mic --uninstall`: removes MIC's objects and finalizers, so that nothing hangs without MIC.

A namespace, or the definitions themselves, cannot be deleted while they contain an assigned identity whose finalizer no
MIC is there to remove. It may run before or after MIC is gone: it first takes the lock by force and holds it while it
works, so that a MIC that still runs steps down and restores nothing. At its end it releases the lock, unless a MIC is
still there: then the lock's minute remains to delete that MIC. Identities that MIC assigned are removed from machines
first (`unassignment`), as far as Azure can be reached.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from podidentity.azure.credentials import ArmCredential
from podidentity.azure.reloading import ReloadedConfig
from podidentity.core.model.identities import ObjectKey
from podidentity.errors import (
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    KubernetesError,
    NotFoundError,
    PodIdentityError,
)
from podidentity.kube.api import Api, Selection
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.locks import EndpointsLock, LeaseLock, Lock, LockRecord, StoredRecord, vacant_record
from podidentity.kube.resources import DEPLOYMENTS, PODS
from podidentity.mic.adapters import machine_states
from podidentity.mic.adapters.azure import machines_of, open_azure, policy_of
from podidentity.mic.adapters.objects import removable_objects, remove_object
from podidentity.mic.adapters.records import ConfigMapRecords
from podidentity.mic.commands import unassignment
from podidentity.mic.settings import Settings

HOLDER = "podidentity-uninstall"
LEASE_SECONDS = 60
"""For how long no MIC may lead after the last renewal: time to delete it."""
RENEW_SECONDS = LEASE_SECONDS / 4
LIMIT_SECONDS = 120.0
"""After this the command fails and says what remains; it never hangs itself."""
SCALE_DOWN_SECONDS = 45.0
"""How long MIC's pods are waited for; Kubernetes gives them 30 s to end."""
CONCURRENCY = 20
PAUSE_SECONDS = 1.0
MIC_PODS = ("component=mic", "app.kubernetes.io/component=mic")
"""The labels of MIC's pods in the manifests and in the chart, as in upstream's."""
_TRIES = 5

_log = logging.getLogger(__name__)


async def run(settings: Settings, deployment: str = "") -> int:
    """Remove recorded identities from machines, and all assigned identities. Return how many of the latter.

    `deployment` names MIC's own, in MIC's namespace: it is scaled down first, so that nobody works against this. Raises
    PodIdentityError.
    """
    agent = settings.user_agent
    async with open_client(find_cluster(settings.kubeconfig), agent) as http, open_azure(agent) as azure:
        api = Api(http)
        if deployment:
            await scale_down(api, ObjectKey(settings.namespace, deployment))
        lock = ObjectKey(settings.leader_namespace, settings.leader_name)
        count = await drain(api, lock, unassign=lambda: _unassign(settings, api, azure))
        await machine_states.remove_all(api, settings.namespace)
        return count


async def drain(
    api: Api,
    lock: ObjectKey,
    wall_clock: Callable[[], float] = time.time,
    unassign: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Await `unassign`, then remove all assigned identities. Return how many. Raises KubernetesError when some remain.

    Both locks named `lock` are held meanwhile.
    """
    locks = _Locks(api, lock, wall_clock)
    await locks.acquire()
    if unassign is not None:
        await _run_while_held(unassign, locks)
    removals, deadline = 0, api.clock.steady() + LIMIT_SECONDS
    while remaining := await removable_objects(api):
        results = await _remove_all(api, remaining, locks)
        removals += sum(error is None for error in results)
        errors = [error for error in results if error is not None]
        if errors and api.clock.steady() >= deadline:
            raise KubernetesError(f"{len(errors)} assigned identities are still there: {errors[0]}")
        if errors:
            await api.clock.sleep(PAUSE_SECONDS)
    if await is_mic_there(api):
        await locks.renew()
        _log.warning("a MIC is still there; delete it within %d s, or it puts back what was removed", LEASE_SECONDS)
    else:
        await locks.release()
    return removals


async def scale_down(api: Api, deployment: ObjectKey) -> None:
    """Scale MIC's Deployment to no replicas and wait for its pods to end; the leader releases its lock meanwhile."""
    try:
        await api.patch(DEPLOYMENTS, deployment, {"spec": {"replicas": 0}})
    except (ForbiddenError, NotFoundError) as error:
        _log.info("deployment %s keeps its replicas: %s", deployment, error)
        return
    deadline = api.clock.steady() + SCALE_DOWN_SECONDS
    while await is_mic_there(api) and api.clock.steady() < deadline:
        await api.clock.sleep(PAUSE_SECONDS)


async def is_mic_there(api: Api) -> bool:
    """Whether a pod of MIC has not ended yet, in any namespace."""
    for labels in MIC_PODS:
        pods = await api.list(PODS.as_json(), Selection(labels=labels))
        phases = [(current.value.get("status") or {}).get("phase") for current in pods.items.values()]
        if any(phase not in ("Succeeded", "Failed") for phase in phases):
            return True
    return False


async def _unassign(settings: Settings, api: Api, azure: httpx2.AsyncClient) -> None:
    """Remove recorded identities from machines. What prevents that is logged, and prevents nothing else."""
    try:
        config = ReloadedConfig(settings.cloud_config, os.environ).current
    except ConfigurationError as error:
        _log.warning("identities stay on their machines, without credentials for Azure: %s", error)
        return
    policy = policy_of(settings, config)
    machines = machines_of(config, ArmCredential(config, azure), azure)
    records = ConfigMapRecords(api, ObjectKey(settings.namespace, settings.config_map), policy)
    try:
        remaining = await unassignment.unassign_all(machines, records, policy)
    except PodIdentityError as error:
        _log.warning("identities stay on their machines: %s", error)
        return
    for line in remaining:
        _log.warning("still on its machine, take it off by hand: %s", line)


async def _run_while_held(work: Callable[[], Awaitable[None]], locks: "_Locks") -> None:
    async def renew_until_cancelled() -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await locks.renew()

    async with asyncio.TaskGroup() as group:
        renewal = group.create_task(renew_until_cancelled())
        await work()
        renewal.cancel()


class _Locks:
    """Both locks in this command's name, so that no MIC writes."""

    def __init__(self, api: Api, key: ObjectKey, wall_clock: Callable[[], float]) -> None:
        self._api = api
        self._endpoints = EndpointsLock(api, key)
        self._lease = LeaseLock(api, key)
        self._wall_clock = wall_clock
        self._renewed_at = 0.0

    async def acquire(self) -> None:
        """Take both, and wait until their former holder must have stepped down: half of its lease."""
        previous = await self.renew()
        if previous is not None and previous.record.holder not in ("", HOLDER):
            wait_seconds = previous.record.duration_seconds / 2 + 1.0
            _log.info("%s leads; waiting %g s until it has stepped down", previous.record.holder, wait_seconds)
            await self._api.clock.sleep(wait_seconds)

    async def renew_if_due(self) -> None:
        """Renew both once `RENEW_SECONDS` have passed."""
        if self._api.clock.steady() - self._renewed_at >= RENEW_SECONDS:
            await self.renew()

    async def renew(self) -> StoredRecord | None:
        """Write both anew. Return the previous state of the Endpoints lock."""
        self._renewed_at, now = self._api.clock.steady(), self._wall_clock()
        previous = await _seize(self._endpoints, now)
        try:
            await _seize(self._lease, now)
        except (ForbiddenError, NotFoundError) as error:
            _log.info("no Lease is held: %s", error)
        return previous

    async def release(self) -> None:
        """Release both: whoever is installed next leads at once."""
        for lock in (self._lease, self._endpoints):
            try:
                current = await lock.read()
                if current is not None and current.record.holder == HOLDER:
                    await lock.write(vacant_record(current.record, self._wall_clock()), current)
            except KubernetesError as error:
                _log.info("%s is not released and expires in %d s: %s", lock, LEASE_SECONDS, error)


async def _seize(lock: Lock, now: float) -> StoredRecord | None:
    """Write this command into a lock, whoever holds it. Return the lock's previous state. Raises KubernetesError."""
    previous: StoredRecord | None = None
    for tries_left in reversed(range(_TRIES)):
        current = await lock.read()
        previous = previous or current
        transitions = current.record.transitions + 1 if current else 0
        try:
            await lock.write(LockRecord(HOLDER, LEASE_SECONDS, now, now, transitions), current)
        except ConflictError:
            if not tries_left:
                raise
        else:
            break
    return previous


async def _remove_all(
    api: Api, objects: dict[ObjectKey, dict[str, Any]], locks: _Locks
) -> list[KubernetesError | None]:
    results: list[KubernetesError | None] = []
    queue = iter(objects.items())

    async def work() -> None:
        for key, obj in queue:
            try:
                await locks.renew_if_due()
                await remove_object(api, key, obj)
            except KubernetesError as error:
                results.append(error)
            else:
                results.append(None)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(CONCURRENCY, len(objects))):
            group.create_task(work())
    return results
