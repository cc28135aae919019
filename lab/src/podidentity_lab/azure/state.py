"""Everything the lab's Azure remembers, in one plain place. Services read and write it and keep nothing themselves.

`saving` turns it into JSON and back; a field with another name there than here says so (`rename`).
"""

import secrets
import string
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec

Json = dict[str, Any]

_LETTERS = string.ascii_letters + string.digits


def new_id() -> str:
    """Return a random GUID."""
    return str(uuid.uuid4())


def new_secret() -> str:
    """Return a client secret in Entra ID's form, `abc8Q~...`; az takes one that begins with `-` for an option."""
    first, tail = ("".join(secrets.choice(_LETTERS) for _ in range(count)) for count in (3, 34))
    return f"{first}8Q~{tail}"


@dataclass(frozen=True, slots=True)
class ServicePrincipal:
    """An application's principal in Entra ID, with the one secret that it begins with. No repr shows the secret."""

    client_id: str = field(default_factory=new_id)
    object_id: str = field(default_factory=new_id)
    secret: str = field(default_factory=new_secret, repr=False)
    name: str = "app"


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """What a fresh Azure begins with. Every default is random or harmless."""

    tenant_id: str = field(default_factory=new_id)
    subscription_id: str = field(default_factory=new_id)
    location: str = "westeurope"
    node_resource_group: str = "MC_lab_cluster_westeurope"
    owner: ServicePrincipal = field(default_factory=lambda: ServicePrincipal(name="lab-owner"))
    cluster: ServicePrincipal = field(default_factory=lambda: ServicePrincipal(name="lab-cluster"))


@dataclass(slots=True)
class FederatedCredential:
    """Which foreign tokens stand for a principal: those of this issuer and subject, for one of these audiences.

    Entra ID accepts them from `effective_at` on, in Unix seconds.
    """

    name: str
    issuer: str
    subject: str
    audiences: list[str]
    effective_at: float = 0.0


@dataclass(slots=True)
class Principal:
    """Whoever can hold roles: a service principal (`application_id` set) or a managed identity (`resource_id` set).

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

    @property
    def label(self) -> str:
        """How ARM's refusals name it: applications and identities by client ID, a user who signed in by name."""
        return self.client_id if self.application_id or self.resource_id else self.name


@dataclass(slots=True)
class User:
    """A user of the directory. Users hold roles; `principal_name` (`NAME@DOMAIN`) is unique without case."""

    object_id: str
    principal_name: str
    display_name: str
    password: str = field(default="", repr=False)
    mail_nickname: str = ""
    enabled: bool = True


@dataclass(slots=True)
class DirectoryGroup:
    """A security group: its members, object IDs of users, principals and groups, have the roles that it has."""

    object_id: str
    name: str
    mail_nickname: str = ""
    description: str = ""
    members: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RoleAssignment:
    """A role held by a principal at a scope, and below it."""

    id: str
    scope: str
    principal_id: str
    role_id: str


class Machine(msgspec.Struct, rename={"creation_body": "given"}):
    """A VM or scale set, by its ARM ID. `kind` is `Microsoft.Compute/virtualMachines` or `.../virtualMachineScaleSets`.

    `identities` maps the lower-case ID of each user-assigned identity to the ID as it was written.
    `system_principal` is the object ID of the system-assigned identity, "" without one. `operation` names the change
    under way. `creation_body` is what the PUT that made it contained (sku, tags, zones, properties).
    """

    id: str
    kind: str
    location: str
    identities: dict[str, str] = msgspec.field(default_factory=dict)
    system_principal: str = ""
    operation: str = ""
    creation_body: Json = msgspec.field(default_factory=dict)


class SecretVersion(msgspec.Struct, rename={"created_at": "created"}):
    """One version of a secret. Times are Unix seconds; 0: no such time. `managed`: it is a certificate's."""

    version: str
    value: str
    created_at: int
    tags: Json = msgspec.field(default_factory=dict)
    content_type: str = ""
    enabled: bool = True
    not_before: int = 0
    expires: int = 0
    managed: bool = False

    def __repr__(self) -> str:
        return f"SecretVersion({self.version!r}, ...)"


class KeyVersion(msgspec.Struct):
    """One version of a vault's key. `pem` is the private key, `operations` what it may be used for (`key_ops`).

    Times are Unix seconds; 0: no such time. `managed`: it is a certificate's.
    """

    version: str
    pem: str
    created_at: int
    operations: list[str]
    tags: Json = msgspec.field(default_factory=dict)
    enabled: bool = True
    not_before: int = 0
    expires: int = 0
    managed: bool = False

    def __repr__(self) -> str:
        return f"KeyVersion({self.version!r}, ...)"


class CertificateVersion(msgspec.Struct):
    """One version of a certificate, in PEM, with the policy that it was created by. Times are Unix seconds.

    Its key and its secret have the same name and version. `managed` is always set.
    """

    version: str
    pem: str
    created_at: int
    policy: Json
    tags: Json = msgspec.field(default_factory=dict)
    enabled: bool = True
    not_before: int = 0
    expires: int = 0
    managed: bool = True


class Blob(msgspec.Struct):
    """A block blob. `headers` are those of HTTP that a read shows; `blocks` has its blocks' sizes by ID, in order.

    A blob that was put in one piece has no blocks. Times are Unix seconds.
    """

    content: bytes
    etag: str
    modified_at: int
    created_at: int
    headers: dict[str, str]
    metadata: dict[str, str]
    blocks: dict[str, int]

    def __repr__(self) -> str:
        return f"Blob({self.etag!r}, ...)"


class Container(msgspec.Struct):
    """A container of blobs by name. `uncommitted` has the blocks that no list named yet, by blob and ID."""

    etag: str
    modified_at: int
    metadata: dict[str, str]
    blobs: dict[str, Blob] = msgspec.field(default_factory=dict)
    uncommitted: dict[str, dict[str, bytes]] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Container({self.etag!r}, ...)"


class Operation(msgspec.Struct, rename={"is_over": "settled"}):
    """A long-running change of a machine: it takes effect, or fails with `error`, at `ends_at` (Unix seconds).

    `add` and `remove` are IDs of user-assigned identities; `system` says whether the machine has a system-assigned one
    afterwards, None when that stays as it is. `is_over` once it took effect or failed.
    """

    ends_at: float
    machine_id: str
    add: list[str] = msgspec.field(default_factory=list)
    remove: list[str] = msgspec.field(default_factory=list)
    system: bool | None = None
    error: Json | None = None
    is_over: bool = False


@dataclass(slots=True)
class DeletedVault:
    """A deleted vault, which can still be recovered with its secrets, or purged. `deleted_at` is in Unix seconds."""

    resource: Json
    deleted_at: int


@dataclass(slots=True)
class Deployment:
    """A deployment of an ARM template: its document, the operations that it consisted of, and the template."""

    document: Json
    operations: list[Json]
    template: Json


@dataclass(slots=True)
class State:
    """Resources by lower-case ARM ID, principals by object ID, what vaults hold by `vault/name` (lower case).

    `deleted_vaults` are by name, `deleted_secrets` maps `vault/secret` to when it was deleted: its versions stay in
    `secrets`; likewise `deleted_vault_keys` and `deleted_certificates`. `containers` are by `account/container`. `keys`
    are PEM texts of Entra ID's signing key and of the certificate authority. `registrations` are the
    registration states of resource providers, by namespace, where they are not those that a lab begins with. `users`
    and `directory_groups` are by object ID; `groups` are resource groups.
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
    deleted_vaults: dict[str, DeletedVault] = field(default_factory=dict)
    deleted_secrets: dict[str, int] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    vault_keys: dict[str, list[KeyVersion]] = field(default_factory=dict, repr=False)
    deleted_vault_keys: dict[str, int] = field(default_factory=dict)
    registrations: dict[str, str] = field(default_factory=dict)
    certificates: dict[str, list[CertificateVersion]] = field(default_factory=dict)
    deleted_certificates: dict[str, int] = field(default_factory=dict)
    accounts: dict[str, Json] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict, repr=False)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)
    directory_groups: dict[str, DirectoryGroup] = field(default_factory=dict)

    def principal_of(self, client_id: str) -> Principal | None:
        """Return the principal with this client ID, in any case, or None."""
        lower_case_id = client_id.lower()
        return next(
            (principal for principal in self.principals.values() if principal.client_id.lower() == lower_case_id), None
        )

    def identity_principal(self, resource_id: str) -> Principal | None:
        """Return the principal of the user-assigned identity with this ARM ID, or None without such an identity."""
        identity = self.identities.get(resource_id.lower())
        return self.principals.get(identity["properties"]["principalId"]) if identity else None
