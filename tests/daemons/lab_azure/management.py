"""Requests to ARM by one caller, for tests."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx2

from podidentity_lab.azure import Azure
from podidentity_lab.azure.roles import ROLES
from podidentity_lab.azure.state import ServicePrincipal

ARM = "https://management.azure.com"
SCOPE = "https://management.azure.com/.default"
VERSION = "?api-version=2024-11-01"
Send = Callable[..., httpx2.Response]


class Management:
    """ARM as one caller sees it."""

    def __init__(self, azure: Azure, send: Send, token: str) -> None:
        self.azure = azure
        self.send = send
        self.token = token
        self.subscription = f"/subscriptions/{azure.settings.subscription_id}"
        self.group = f"{self.subscription}/resourceGroups/rg"
        self.scale_set = (
            f"{self.subscription}/resourceGroups/{azure.settings.node_resource_group}"
            "/providers/Microsoft.Compute/virtualMachineScaleSets/ss"
        )

    def __call__(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """Send one request."""
        given = {} if body is None else {"json": body}
        return self.send(method, f"{ARM}{path}{VERSION}", self.token, **given)

    def identity(self, name: str) -> str:
        """Create an identity; return its ID."""
        path = f"{self.group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
        assert self("PUT", path, {"location": "eastus"}).status_code in {200, 201}
        return path

    def patch(self, *identities: str, value: Any = None) -> httpx2.Response:
        """Ask the scale set to carry identities."""
        given = {one: {} if value is None else value for one in identities}
        body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": given}}
        return self("PATCH", self.scale_set, body)

    def carried(self) -> set[str]:
        """Return the identities that the scale set shows."""
        identity = self("GET", self.scale_set).json().get("identity", {})
        return set(identity.get("userAssignedIdentities", {}))

    def give(self, principal: ServicePrincipal, role: str, scope: str) -> None:
        """Assign a role."""
        key = next(key for key, one in ROLES.items() if one.name == role)
        definition = f"{self.subscription}/providers/Microsoft.Authorization/roleDefinitions/{key}"
        properties = {"principalId": principal.object_id, "roleDefinitionId": definition}
        where = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
        assert self("PUT", where, {"properties": properties}).status_code == 201

    def code(self, answer: httpx2.Response) -> str:
        """Return the error code of an answer, where SDKs read it."""
        return str(answer.json()["error"]["code"])
