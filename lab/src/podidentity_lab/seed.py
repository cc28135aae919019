"""Seeds: what a lab's Azure has from the start, as a YAML file that can be kept with an application.

`read` checks the whole file before a lab starts; `apply` sends what `az` would send for each line.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from podidentity.errors import ConfigurationError
from podidentity_lab.azure.state import State, new_id
from podidentity_lab.demo.admin import ROLES, Admin

SUBSCRIPTION, CLUSTER = "subscription", "cluster"
"""A scope and a principal that every lab has."""

_Guid = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_VaultName = Annotated[str, msgspec.Meta(pattern="^[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]$")]
_AccountName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9]{3,24}$")]
_ContainerName = Annotated[str, msgspec.Meta(pattern="^(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")]


class Credential(msgspec.Struct, forbid_unknown_fields=True):
    """A federated credential: whose tokens stand for the identity or application."""

    issuer: str
    subject: str


class Identity(msgspec.Struct, forbid_unknown_fields=True):
    """A user-assigned identity; without `client_id` it gets a random one."""

    name: str
    group: str
    client_id: _Guid = ""
    federated: list[Credential] = []


class Vault(msgspec.Struct, forbid_unknown_fields=True):
    """A vault that lets in by role, with the values of its secrets, and the kinds of its keys, by name."""

    name: _VaultName
    group: str
    secrets: dict[str, str] = {}
    keys: dict[str, Literal["RSA-2048", "RSA-3072", "RSA-4096", "P-256", "P-384", "P-521"]] = {}


class Account(msgspec.Struct, forbid_unknown_fields=True):
    """A storage account with the names of its containers of blobs."""

    name: _AccountName
    group: str
    containers: list[_ContainerName] = []


class Application(msgspec.Struct, forbid_unknown_fields=True):
    """An application of the tenant with its service principal; without `client_id` it gets a random one."""

    name: str
    client_id: _Guid = ""
    secret: str = ""
    federated: list[Credential] = []


class Grant(msgspec.Struct, forbid_unknown_fields=True):
    """A role: `to` an identity or application of the seed, `scope` something of it, or an ARM ID."""

    role: str
    to: str
    scope: str


class Seed(msgspec.Struct, forbid_unknown_fields=True):
    """A whole file."""

    location: str = "westeurope"
    groups: list[str] = []
    identities: list[Identity] = []
    vaults: list[Vault] = []
    accounts: list[Account] = []
    applications: list[Application] = []
    roles: list[Grant] = []


def read(path: Path) -> Seed:
    """Read a seed and check that all its names mean something. Raises `ConfigurationError`."""
    try:
        content = yaml.safe_load(path.read_text())
        seed = msgspec.convert(content or {}, Seed)
    except OSError as error:
        raise ConfigurationError(f"--seed {path}: {error.strerror}; name a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--seed {path}: it is no text; name a YAML file") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"--seed {path}: not YAML: {reason}; correct the file") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"--seed {path}: {error}; see docs/lab.md for what a seed has") from None
    _check(path, seed)
    return seed


def _check(path: Path, seed: Seed) -> None:
    identities, vaults, accounts, applications = (
        [identity.name for identity in seed.identities],
        [vault.name for vault in seed.vaults],
        [account.name for account in seed.accounts],
        [application.name for application in seed.applications],
    )
    principals = {CLUSTER, *identities, *applications}
    scopes = {SUBSCRIPTION, *_groups(seed), *identities, *vaults, *accounts}
    for number, grant in enumerate(seed.roles):
        start = f"--seed {path}: roles[{number}]:"
        if grant.role not in ROLES:
            raise ConfigurationError(f"{start} the lab has no role {grant.role!r}; use one of {', '.join(ROLES)}")
        if grant.to not in principals:
            raise ConfigurationError(f"{start} to {grant.to!r} is nobody; use one of {', '.join(sorted(principals))}")
        if grant.scope not in scopes and not grant.scope.startswith("/"):
            alternatives = ", ".join(sorted(scopes))
            raise ConfigurationError(
                f"{start} scope {grant.scope!r} means nothing; use an ARM ID, or one of {alternatives}"
            )
    names_by_field = {"identities": identities, "vaults": vaults, "accounts": accounts, "applications": applications}
    for field, names in names_by_field.items():
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"--seed {path}: {field} has {name!r} more than once; give each its own name")


def _groups(seed: Seed) -> list[str]:
    """All groups that the seed names, each once."""
    resources: list[Identity | Vault | Account] = [*seed.identities, *seed.vaults, *seed.accounts]
    return list(dict.fromkeys([*seed.groups, *(resource.group for resource in resources)]))


def apply(seed: Seed, admin: Admin, state: State) -> None:
    """Make all of it in a fresh Azure. Raises `LabError`.

    Through `admin`, by requests; only client IDs and client secrets, which Azure makes up, are written to `state`.
    """
    for group in _groups(seed):
        admin.create_group(group, seed.location)
    scopes = {SUBSCRIPTION: f"/subscriptions/{admin.subscription}"}
    scopes |= {group: admin.group(group) for group in _groups(seed)}
    principals = {CLUSTER: admin.cluster_principal()}
    for identity in seed.identities:
        principals[identity.name] = _identity(identity, seed.location, admin, state)
        scopes[identity.name] = admin.identity(identity.group, identity.name)
    for application in seed.applications:
        principals[application.name] = _application(application, admin, state)
    for vault in seed.vaults:
        scopes[vault.name] = str(admin.create_role_vault(vault.group, vault.name, seed.location)["id"])
        admin.assign_role("Key Vault Administrator", admin.owner_principal(), scopes[vault.name])
        for name, value in vault.secrets.items():
            admin.set_secret(vault.name, name, value)
        for name, kind in vault.keys.items():
            admin.create_key(vault.name, name, kind)
    for account in seed.accounts:
        scopes[account.name] = str(admin.create_account(account.group, account.name, seed.location)["id"])
        for name in account.containers:
            admin.create_container(account.group, account.name, name)
    for grant in seed.roles:
        admin.assign_role(grant.role, principals[grant.to], scopes.get(grant.scope, grant.scope))


def _identity(identity: Identity, location: str, admin: Admin, state: State) -> str:
    document = admin.create_identity(identity.group, identity.name, location)
    principal_id = str(document["properties"]["principalId"])
    if identity.client_id:
        state.principals[principal_id].client_id = identity.client_id
        state.identities[str(document["id"]).lower()]["properties"]["clientId"] = identity.client_id
    for number, credential in enumerate(identity.federated):
        names = (identity.group, identity.name, f"seed-{number}")
        admin.create_federated_credential(*names, credential.issuer, credential.subject)
    return principal_id


def _application(application: Application, admin: Admin, state: State) -> str:
    document = admin.create_application(application.name)
    for number, credential in enumerate(application.federated):
        admin.federate_application(document["id"], f"seed-{number}", credential.issuer, credential.subject)
    principal = next(item for item in state.principals.values() if item.application_id == document["id"])
    principal.client_id = application.client_id or principal.client_id
    if application.secret:
        principal.secrets[new_id()] = application.secret
    return principal.object_id
