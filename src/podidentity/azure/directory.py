"""Finds whose client ID it is: a user-assigned identity (ARM), or an application (Graph)."""

from dataclasses import dataclass
from typing import Any

from podidentity.azure.federated import ARM_VERSION, Requests
from podidentity.core.model.arm import IdentityId, parse_identity_id

SUBSCRIPTIONS_VERSION = "2022-12-01"
GRAPHS = {
    "AzureUSGovernmentCloud": "https://graph.microsoft.us",
    "AzureChinaCloud": "https://microsoftgraph.chinacloudapi.cn",
}
"""Microsoft Graph of the clouds whose Graph is not the public one."""
GRAPH = "https://graph.microsoft.com"


@dataclass(frozen=True, slots=True)
class Application:
    """An application of the tenant."""

    object_id: str
    client_id: str
    name: str


async def find_identities(arm: Requests) -> dict[str, IdentityId]:
    """Return the identities of all subscriptions that the caller sees, by client ID. Raises AzureError."""
    identities: dict[str, IdentityId] = {}
    for subscription in await arm.read_all(f"/subscriptions?api-version={SUBSCRIPTIONS_VERSION}"):
        path = f"/subscriptions/{subscription.get('subscriptionId')}/providers/Microsoft.ManagedIdentity"
        for item in await arm.read_all(f"{path}/userAssignedIdentities?api-version={ARM_VERSION}"):
            identity = parse_identity_id(str(item.get("id", "")))
            client_id = (item.get("properties") or {}).get("clientId")
            if identity is not None and client_id:
                identities[str(client_id).lower()] = identity
    return identities


async def find_application(graph: Requests, field: str, value: str) -> Application | None:
    """Return the application whose `appId` or `displayName` this is. Raises AzureError."""
    text = value.replace("'", "''")
    items = await graph.read_all(f"/v1.0/applications?$filter={field} eq '{text}'")
    return next((application_of(item) for item in items if str(item.get(field)).lower() == value.lower()), None)


def application_of(item: dict[str, Any]) -> Application:
    """Return an application as Graph describes it."""
    return Application(str(item.get("id", "")), str(item.get("appId", "")).lower(), str(item.get("displayName", "")))
