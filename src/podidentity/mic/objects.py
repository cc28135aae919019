"""Writes of assigned identities. Each holds for the version it was decided on: what somebody changed since stays."""

from collections.abc import Awaitable

from podidentity.core import crd
from podidentity.core.identities import AzureAssignedIdentity
from podidentity.errors import NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import ASSIGNED_IDENTITIES
from podidentity.mic.cluster import WatchedCluster


class AssignedObjects:
    """Assigned identities in Kubernetes; tells the cluster's snapshot of each write."""

    def __init__(self, api: Api, cluster: WatchedCluster) -> None:
        self._api = api
        self._cluster = cluster

    async def create(self, assigned: AzureAssignedIdentity) -> None:
        """Create one."""
        with self._cluster.writing(assigned.key):
            made = await self._api.create(ASSIGNED_IDENTITIES, crd.render_assigned(assigned))
            self._cluster.wrote(assigned.key, made)

    async def replace(self, assigned: AzureAssignedIdentity) -> None:
        """Replace one; a conflict when somebody wrote since it was read."""
        await self._write(assigned, self._api.replace(ASSIGNED_IDENTITIES, crd.render_assigned(assigned)))

    async def mark(self, assigned: AzureAssignedIdentity) -> None:
        """Write its state and nothing else; a conflict when somebody wrote since it was read."""
        status = {"status": str(assigned.state), "availableReplicas": 1}
        change = {**_at(assigned), "status": status}
        await self._write(assigned, self._api.patch(ASSIGNED_IDENTITIES, assigned.key, change))

    async def delete(self, assigned: AzureAssignedIdentity) -> None:
        """Release our finalizer and delete it; gone already is fine. Other parties' finalizers stay theirs."""
        left = [name for name in assigned.finalizers if name != crd.FINALIZER]
        version = assigned.resource_version
        try:
            if crd.FINALIZER in assigned.finalizers:
                change = {"metadata": {**_at(assigned).get("metadata", {}), "finalizers": left}}
                version = (await self._api.patch(ASSIGNED_IDENTITIES, assigned.key, change)).resource_version
            if not assigned.deleting:
                await self._api.delete(ASSIGNED_IDENTITIES, assigned.key, version=version)
        except NotFoundError:
            left = []
        if not left:  # else it stays until they let it go, and the watch tells
            self._cluster.wrote(assigned.key, None)

    async def _write(self, assigned: AzureAssignedIdentity, writing: Awaitable[AzureAssignedIdentity]) -> None:
        with self._cluster.writing(assigned.key):
            try:
                made = await writing
            except NotFoundError:
                self._cluster.wrote(assigned.key, None)
                raise
            self._cluster.wrote(assigned.key, made)


def _at(assigned: AzureAssignedIdentity) -> dict[str, dict[str, str]]:
    """The part of a merge patch that makes it hold for the version we know alone."""
    version = assigned.resource_version
    return {"metadata": {"resourceVersion": version}} if version else {}
