"""Everything the lab's Azure remembers, in one plain place. Services read and write it and keep nothing themselves.

`saving` turns it into text and back.
"""

import secrets
import string
import uuid
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

_LETTERS = string.ascii_letters + string.digits


def new_id() -> str:
    """A random GUID."""
    return str(uuid.uuid4())


def new_secret() -> str:
    """A client secret as Entra ID makes them today: `abc8Q~` and more. One that begins with `-` is an option to az."""
    first, rest = ("".join(secrets.choice(_LETTERS) for _ in range(count)) for count in (3, 34))
    return f"{first}8Q~{rest}"


@dataclass(frozen=True, slots=True)
class ServicePrincipal:
    """An application's principal in Entra ID. The secret never shows in a repr."""

    client_id: str = field(default_factory=new_id)
    object_id: str = field(default_factory=new_id)
    secret: str = field(default_factory=new_secret, repr=False)
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
class FederatedCredential:
    """Whose tokens stand for a principal: exactly this issuer and subject, for one of these audiences."""

    name: str
    issuer: str
    subject: str
    audiences: list[str]


@dataclass(slots=True)
class Principal:
    """Somebody who can hold roles: a service principal or a managed identity (`resource_id` set).

    An application proves itself by one of `secrets` (by key ID), `certificates` (PEM) or federated credentials; a
    managed identity by its machine or a federated credential. Without `consented` the tenant's administrator has not
    agreed to the application yet.
    """

    object_id: str
    client_id: str
    name: str
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    resource_id: str = ""
    application_id: str = ""
    certificates: list[str] = field(default_factory=list)
    federated: dict[str, FederatedCredential] = field(default_factory=dict)
    consented: bool = True


@dataclass(slots=True)
class RoleAssignment:
    """A role held by a principal at a scope, and below it."""

    id: str
    scope: str
    principal_id: str
    role_id: str


@dataclass(slots=True)
class Machine:
    """A VM or scale set: `identities` maps lower-case resource IDs to how they were written.

    `operation` names the change under way. `given` is what its creator wrote, for those made through ARM.
    """

    id: str
    kind: str
    location: str
    identities: dict[str, str] = field(default_factory=dict)
    system_principal: str = ""
    operation: str = ""
    given: Json = field(default_factory=dict)


@dataclass(slots=True)
class SecretVersion:
    """One version of a secret. Times are Unix seconds; 0: no such time."""

    version: str
    value: str = field(repr=False)
    created: int
    tags: Json = field(default_factory=dict)
    content_type: str = ""
    enabled: bool = True
    not_before: int = 0
    expires: int = 0


@dataclass(slots=True)
class Operation:
    """A long-running change of a machine: it takes effect, or fails, at `ends_at`."""

    ends_at: float
    machine_id: str
    add: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    system: bool | None = None
    error: Json | None = None
    settled: bool = False


@dataclass(slots=True)
class Deleted:
    """A vault that can still be recovered, or purged, and its secrets."""

    resource: Json
    deleted_at: int


@dataclass(slots=True)
class State:
    """Resources by lower-case ARM ID, principals by object ID, secrets by `vault/secret` (lower case).

    `deleted_vaults` are by name, `deleted_secrets` maps `vault/secret` to when it was deleted: its versions stay in
    `secrets`. `keys` are PEM texts of Entra ID's signing key and of the certificate authority.
    """

    settings: AzureSettings = field(default_factory=AzureSettings)
    groups: dict[str, Json] = field(default_factory=dict)
    identities: dict[str, Json] = field(default_factory=dict)
    vaults: dict[str, Json] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    principals: dict[str, Principal] = field(default_factory=dict)
    roles: dict[str, RoleAssignment] = field(default_factory=dict)
    secrets: dict[str, list[SecretVersion]] = field(default_factory=dict, repr=False)
    operations: dict[str, Operation] = field(default_factory=dict)
    deleted_vaults: dict[str, Deleted] = field(default_factory=dict)
    deleted_secrets: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict, repr=False)

    def principal_of(self, client_id: str) -> Principal | None:
        """The principal with this client ID, case ignored."""
        wanted = client_id.lower()
        return next((one for one in self.principals.values() if one.client_id.lower() == wanted), None)

    def identity_principal(self, resource_id: str) -> Principal | None:
        """The principal behind a user-assigned identity."""
        found = self.identities.get(resource_id.lower())
        return self.principals.get(found["properties"]["principalId"]) if found else None
