"""Writes AzureAssignedIdentities, each for the version that its plan saw: later changes by others stay.

With `--assigned-identities=off` they are in memory alone: MIC plans with them as ever, nobody else sees them, and those
that were written before are removed.
"""

import itertools
import logging
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from podidentity.core.model import crd
from podidentity.core.model.identities import AzureAssignedIdentity, ObjectKey
from podidentity.errors import KubernetesError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import ASSIGNED_IDENTITIES, StoredObject
from podidentity.mic.adapters.cluster import WatchedCluster

REMOVAL_SECONDS = 30.0
"""The pause after a failed removal."""

_log = logging.getLogger(__name__)


class AssignedObjects:
    """AzureAssignedIdentities in Kubernetes; the cluster's snapshots contain each write at once."""

    def __init__(self, api: Api, cluster: WatchedCluster) -> None:
        self._api = api
        self._cluster = cluster

    async def create(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Create the object."""
        with self._cluster.writing(assigned_identity.key):
            response = await self._api.create(ASSIGNED_IDENTITIES, crd.render_assigned(assigned_identity))
            self._cluster.note_write(assigned_identity.key, response)

    async def replace(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Replace the object. Raises ConflictError when somebody has written it since it was read."""
        await self._write(
            assigned_identity, self._api.replace(ASSIGNED_IDENTITIES, crd.render_assigned(assigned_identity))
        )

    async def mark(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Write only the object's state. Raises ConflictError when somebody has written it since it was read."""
        status = {"status": str(assigned_identity.state), "availableReplicas": 1}
        patch = {**_version_of(assigned_identity), "status": status}
        await self._write(assigned_identity, self._api.patch(ASSIGNED_IDENTITIES, assigned_identity.key, patch))

    async def delete(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Remove MIC's finalizer and delete the object; a missing object is no error.

        Finalizers of other parties stay.
        """
        finalizers = [name for name in assigned_identity.finalizers if name != crd.FINALIZER]
        version = assigned_identity.resource_version
        try:
            if crd.FINALIZER in assigned_identity.finalizers:
                patch = {"metadata": {**_version_of(assigned_identity).get("metadata", {}), "finalizers": finalizers}}
                version = (await self._api.patch(ASSIGNED_IDENTITIES, assigned_identity.key, patch)).resource_version
            if not assigned_identity.deleting:
                await self._api.delete(ASSIGNED_IDENTITIES, assigned_identity.key, version=version)
        except NotFoundError:
            finalizers = []
        if not finalizers:  # otherwise it stays until the others remove theirs, and the watch shows its end
            self._cluster.note_write(assigned_identity.key, None)

    async def _write(self, assigned_identity: AzureAssignedIdentity, request: Awaitable[AzureAssignedIdentity]) -> None:
        with self._cluster.writing(assigned_identity.key):
            try:
                response = await request
            except NotFoundError:
                self._cluster.note_write(assigned_identity.key, None)
                raise
            self._cluster.note_write(assigned_identity.key, response)


class UnwrittenObjects:
    """Assigned identities in MIC's memory. A restart forgets them, and the next plan makes them anew."""

    def __init__(self, cluster: WatchedCluster) -> None:
        self._cluster = cluster
        self._versions = itertools.count(1)

    async def create(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Remember it."""
        self._remember(assigned_identity)

    async def replace(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Remember it in place of the former one."""
        self._remember(assigned_identity)

    async def mark(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Remember its state."""
        self._remember(assigned_identity)

    async def delete(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Forget it."""
        self._cluster.assigned_identities.remove(assigned_identity.key)

    def _remember(self, assigned_identity: AzureAssignedIdentity) -> None:
        key, version = assigned_identity.key, str(next(self._versions))
        item = replace(assigned_identity, resource_version=version)
        with self._cluster.writing(key):
            self._cluster.assigned_identities.upsert(StoredObject(key, "", version, item))


async def remove_stored(api: Api) -> None:
    """Remove all stored objects, as long as it takes: nobody keeps them true any more."""
    while True:
        try:
            objects = await removable_objects(api)
            for key, obj in objects.items():
                await remove_object(api, key, obj)
        except KubernetesError as error:
            _log.warning("assigned identities that were written before are not removed yet: %s", error)
            await api.clock.sleep(REMOVAL_SECONDS)
        else:
            if objects:
                _log.info("%d assigned identities that were written before are removed", len(objects))
            return


async def removable_objects(api: Api) -> dict[ObjectKey, dict[str, Any]]:
    """Return all assigned identities with something left to remove, also those that cannot be parsed."""
    try:
        response = await api.list(ASSIGNED_IDENTITIES.as_json())
    except NotFoundError:
        return {}  # the definition is gone, and all objects with it
    return {key: current.value for key, current in response.items.items() if _is_removable(current.value)}


async def remove_object(api: Api, key: ObjectKey, obj: dict[str, Any]) -> None:
    """Remove MIC's finalizer and delete an object; a missing one is no error. Raises KubernetesError."""
    finalizers = obj["metadata"].get("finalizers") or []
    remaining = [name for name in finalizers if name != crd.FINALIZER]
    try:
        if remaining != finalizers:
            await api.patch(ASSIGNED_IDENTITIES.as_json(), key, {"metadata": {"finalizers": remaining}})
        if not obj["metadata"].get("deletionTimestamp"):
            await api.delete(ASSIGNED_IDENTITIES, key)
    except NotFoundError:
        pass


def _is_removable(obj: dict[str, Any]) -> bool:
    """Whether something can be done: an object being deleted may wait for finalizers of others alone."""
    metadata = obj["metadata"]
    return not metadata.get("deletionTimestamp") or crd.FINALIZER in (metadata.get("finalizers") or ())


def _version_of(assigned_identity: AzureAssignedIdentity) -> dict[str, dict[str, str]]:
    """Return the part of a merge patch that makes the API refuse it for any other version of the object."""
    version = assigned_identity.resource_version
    return {"metadata": {"resourceVersion": version}} if version else {}
