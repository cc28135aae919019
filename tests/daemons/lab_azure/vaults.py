"""A vault of the lab's Azure with its owner's tokens, for the tests of secrets, keys and certificates."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx2

from podidentity_lab.azure import Azure
from podidentity_lab.azure.roles import ROLES

ARM = "https://management.azure.com"
VERSION = "?api-version=7.4"
Send = Callable[..., httpx2.Response]
SignIn = Callable[..., str]


class Vault:
    """A vault with its owner's tokens for ARM and for the vault."""

    def __init__(self, azure: Azure, send: Send, sign_in: SignIn) -> None:
        self.azure = azure
        self.send = send
        self.manager = sign_in("https://management.azure.com/.default")
        self.reader = sign_in("https://vault.azure.net/.default")
        self.stranger = sign_in("https://vault.azure.net/.default", azure.settings.cluster)
        self.group = f"{ARM}/subscriptions/{azure.settings.subscription_id}/resourceGroups/rg"
        self.path = f"{self.group}/providers/Microsoft.KeyVault/vaults/kv1"
        self.api = "?api-version=2026-02-01"
        self.host = "https://kv1.vault.azure.net"

    def create(
        self, *, roles: bool, permissions: tuple[str, ...] = ("all", "purge"), **other_kinds: tuple[str, ...]
    ) -> httpx2.Response:
        """Create the group and the vault; `permissions` are on secrets, `other_kinds` on keys and certificates."""
        self.send("PUT", f"{self.group}{self.api}", self.manager, json={"location": "eastus"})
        owner = self.azure.settings.owner.object_id
        policy = {"tenantId": "t", "objectId": owner, "permissions": {"secrets": list(permissions), **other_kinds}}
        given = {"accessPolicies": [] if roles else [policy], "enableRbacAuthorization": roles}
        return self.send(
            "PUT", f"{self.path}{self.api}", self.manager, json={"location": "eastus", "properties": given}
        )

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> httpx2.Response:
        """Send one request to the vault."""
        given = {} if body is None else {"json": body}
        return self.send(method, f"{self.host}{path}{VERSION}", self.reader if token is None else token, **given)

    def give(self, object_id: str, role: str, scope: str) -> None:
        """Assign a role."""
        key = next(key for key, one in ROLES.items() if one.name == role)
        properties = {"principalId": object_id, "roleDefinitionId": f"/x/roleDefinitions/{key}"}
        where = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}{self.api}"
        assert self.send("PUT", where, self.manager, json={"properties": properties}).status_code == 201

    def purge(self) -> None:
        """Delete the vault for good."""
        subscription = self.group.partition("/resourceGroups")[0]
        deleted_vault = f"{subscription}/providers/Microsoft.KeyVault/locations/eastus/deletedVaults/kv1"
        assert self.send("DELETE", f"{self.path}{self.api}", self.manager).status_code == 200
        assert self.send("POST", f"{deleted_vault}/purge{self.api}", self.manager).status_code == 200
