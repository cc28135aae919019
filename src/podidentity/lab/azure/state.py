"""Everything the lab's Azure remembers, in one plain place. Services read and write it and keep nothing themselves."""

import secrets
import uuid
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


def new_id() -> str:
    """A random GUID."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class ServicePrincipal:
    """An application's principal in Entra ID. The secret never shows in a repr."""

    client_id: str = field(default_factory=new_id)
    object_id: str = field(default_factory=new_id)
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    name: str = "app"


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """What a fresh Azure begins with; every default is random or harmless."""

    tenant_id: str = field(default_factory=new_id)
    subscription_id: str = field(default_factory=new_id)
    location: str = "westeurope"
    node_resource_group: str = "MC_lab_cluster_westeurope"
    owner: ServicePrincipal = field(default_factory=lambda: ServicePrincipal(name="lab-owner"))
    cluster: ServicePrincipal = field(default_factory=lambda: ServicePrincipal(name="lab-cluster"))


@dataclass(slots=True)
class Principal:
    """Somebody who can hold roles: a service principal or a managed identity (`resource_id` set)."""

    object_id: str
    client_id: str
    name: str
    secret: str = field(default="", repr=False)
    resource_id: str = ""


@dataclass(slots=True)
class RoleAssignment:
    """A role held by a principal at a scope, and below it."""

    id: str
    scope: str
    principal_id: str
    role_id: str


@dataclass(slots=True)
class Machine:
    """A VM or scale set: `identities` maps lower-case resource IDs to how they were written."""

    id: str
    kind: str
    location: str
    identities: dict[str, str] = field(default_factory=dict)
    system_principal: str = ""
    busy: bool = False


@dataclass(slots=True)
class SecretVersion:
    """One version of a secret."""

    version: str
    value: str = field(repr=False)
    created: int
    tags: Json = field(default_factory=dict)


@dataclass(slots=True)
class Operation:
    """A long-running change: it takes effect, or fails, at `ends_at`."""

    ends_at: float
    error: Json | None = None


@dataclass(slots=True)
class State:
    """Resources by lower-case ARM ID, principals by object ID, secrets by vault name and secret name (lower case)."""

    groups: dict[str, Json] = field(default_factory=dict)
    identities: dict[str, Json] = field(default_factory=dict)
    vaults: dict[str, Json] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    principals: dict[str, Principal] = field(default_factory=dict)
    roles: dict[str, RoleAssignment] = field(default_factory=dict)
    secrets: dict[tuple[str, str], list[SecretVersion]] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)

    def principal_of(self, client_id: str) -> Principal | None:
        """The principal with this client ID, case ignored."""
        wanted = client_id.lower()
        return next((one for one in self.principals.values() if one.client_id.lower() == wanted), None)

    def identity_principal(self, resource_id: str) -> Principal | None:
        """The principal behind a user-assigned identity."""
        found = self.identities.get(resource_id.lower())
        return self.principals.get(found["properties"]["principalId"]) if found else None
