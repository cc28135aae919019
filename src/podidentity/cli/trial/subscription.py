"""The Azure side of a trial: it creates one identity, looks at one VM or scale set, and deletes the identity."""

from typing import Any

import httpx2

from podidentity.azure.compute import IDENTITY_API_VERSION, Machines
from podidentity.azure.management import Management, document
from podidentity.core.model.arm import IdentityId, Target, parse_identity_id
from podidentity.errors import AzureError

GROUP_API_VERSION = "2021-04-01"


class Subscription:
    """One resource group of a subscription, in which the trial's identity is."""

    def __init__(self, arm: Management, subscription: str, group: str) -> None:
        self._arm = arm
        self._machines = Machines(arm)
        self._group = f"/subscriptions/{subscription}/resourceGroups/{group}"

    async def location(self) -> str:
        """Return where the resource group is. Raises AzureError."""
        answer = await self._arm.send("GET", f"{self._arm.base}{self._group}?api-version={GROUP_API_VERSION}")
        return str(document(answer).get("location") or "")

    def resource_id(self, name: str) -> str:
        """Return the resource ID of an identity of the group."""
        return f"{self._group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"

    async def create_identity(self, name: str, location: str) -> str:
        """Create a user-assigned identity and return its client ID. Raises AzureError."""
        answer = await self._arm.send(
            "PUT", self._url(name), {"location": location, "tags": {"purpose": "podidentity"}}
        )
        properties: Any = document(answer).get("properties")
        client_id = properties.get("clientId") if isinstance(properties, dict) else None
        if not client_id:
            raise AzureError(f"ARM created {self.resource_id(name)} without a client ID; delete it and try again")
        return str(client_id).lower()

    async def delete_identity(self, name: str) -> None:
        """Delete an identity; one that is gone is no error. Raises AzureError."""
        try:
            await self._arm.send("DELETE", self._url(name))
        except AzureError as error:
            if error.status != httpx2.codes.NOT_FOUND:
                raise

    async def is_on(self, name: str, target: Target) -> bool:
        """Whether ARM says that an identity is on a VM or scale set. Raises AzureError."""
        identity: IdentityId | None = parse_identity_id(self.resource_id(name))
        return identity in (await self._machines.get(target)).identities

    def _url(self, name: str) -> str:
        return f"{self._arm.base}{self.resource_id(name)}?api-version={IDENTITY_API_VERSION}"
