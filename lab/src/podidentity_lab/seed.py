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

_LONGEST = 16 * 2**20  # characters of a file
SUBSCRIPTION, CLUSTER = "subscription", "cluster"
"""A scope and a principal that every lab has."""

_Guid = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_VaultName = Annotated[str, msgspec.Meta(pattern="^[a-zA-Z][a-zA-Z0-9-]{1,22}[a-zA-Z0-9]$")]
_AccountName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9]{3,24}$")]
_UserName = Annotated[str, msgspec.Meta(pattern=r"^[^@\s]+@[^@\s]+$")]
_BlobName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+/[\s\S]+$")]
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
    """A vault that lets in by role: values of secrets, kinds of keys, subjects of self-signed certificates, by name."""

    name: _VaultName
    group: str
    secrets: dict[str, str] = {}
    keys: dict[str, Literal["RSA-2048", "RSA-3072", "RSA-4096", "P-256", "P-384", "P-521"]] = {}
    certificates: dict[str, Annotated[str, msgspec.Meta(pattern="^CN=.")]] = {}


class Account(msgspec.Struct, forbid_unknown_fields=True):
    """A storage account with the names of its containers, and the texts of blobs by `CONTAINER/BLOB`."""

    name: _AccountName
    group: str
    containers: list[_ContainerName] = []
    blobs: dict[_BlobName, str] = {}


class Person(msgspec.Struct, forbid_unknown_fields=True):
    """A user of the directory, `name` being NAME@DOMAIN; without a password it cannot sign in."""

    name: _UserName
    password: str = ""
    display_name: str = ""


class Team(msgspec.Struct, forbid_unknown_fields=True):
    """A security group of the directory; `members` are users, identities, applications and such groups of the seed."""

    name: str
    members: list[str] = []


class Application(msgspec.Struct, forbid_unknown_fields=True):
    """An application of the tenant with its service principal; without `client_id` it gets a random one."""

    name: str
    client_id: _Guid = ""
    secret: str = ""
    federated: list[Credential] = []


class Grant(msgspec.Struct, forbid_unknown_fields=True):
    """A role: `to` a principal of the seed or `cluster`, `scope` something of the seed, or an ARM ID."""

    role: str
    to: str
    scope: str


class Seed(msgspec.Struct, forbid_unknown_fields=True):
    """A whole file. `groups` are resource groups, `directory_groups` are the directory's."""

    location: str = "westeurope"
    groups: list[str] = []
    identities: list[Identity] = []
    vaults: list[Vault] = []
    accounts: list[Account] = []
    applications: list[Application] = []
    users: list[Person] = []
    directory_groups: list[Team] = []
    roles: list[Grant] = []


def read(path: Path) -> Seed:
    """Read a seed and check that all its names mean something. Raises `ConfigurationError`."""
    try:
        seed = msgspec.convert(yaml.load(_text(path), _Loader) or {}, Seed)  # noqa: S506  # it is a safe one
    except OSError as error:
        raise ConfigurationError(f"--seed {path}: {error.strerror}; name a YAML file") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"--seed {path}: {error}; see docs/lab/seeds.md for what a seed has") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--seed {path}: it is no text; name a YAML file") from None
    except (yaml.YAMLError, RecursionError, AttributeError, ValueError) as error:  # a date that no calendar has
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigurationError(f"--seed {path}: not YAML: {reason}; correct the file") from None
    _check(path, seed)
    return seed


class _Loader(yaml.SafeLoader):
    """YAML without merges (`<<`): a few lines of them, each twice in the next, fill any memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse them."""
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a seed has no merges (<<)", key.start_mark)


def _text(path: Path) -> str:
    """Return the text of a file. Raises `ConfigurationError`, `OSError`, `UnicodeDecodeError` and `ValueError`."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe is waited for, and a device may have no end
        raise ConfigurationError(f"--seed {path}: it is no plain file; name a YAML file")
    with path.open(encoding="utf-8") as file:
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST} characters")
    return text


def _check(path: Path, seed: Seed) -> None:
    principals = {CLUSTER, *_principal_names(seed)}
    scopes = {SUBSCRIPTION, *_groups(seed)}
    resources: list[Identity | Vault | Account] = [*seed.identities, *seed.vaults, *seed.accounts]
    scopes |= {resource.name for resource in resources}
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
    _check_contents(path, seed, principals)
    _check_names(path, seed)


def _check_contents(path: Path, seed: Seed, principals: set[str]) -> None:
    """Refuse members that are nobody, and blobs in no container."""
    for number, team in enumerate(seed.directory_groups):
        for member in team.members:
            if member not in principals:
                start = f"--seed {path}: directory_groups[{number}]:"
                alternatives = ", ".join(sorted(principals))
                raise ConfigurationError(f"{start} member {member!r} is nobody; use one of {alternatives}")
    for number, account in enumerate(seed.accounts):
        for name in account.blobs:
            if name.partition("/")[0] not in account.containers:
                start = f"--seed {path}: accounts[{number}]:"
                raise ConfigurationError(f"{start} blob {name!r} has no container; add it to `containers`")


def _check_names(path: Path, seed: Seed) -> None:
    """Refuse names that stand for two things."""
    for field in ("identities", "vaults", "accounts", "applications", "users", "directory_groups"):
        names = [entry.name for entry in getattr(seed, field)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"--seed {path}: {field} has {name!r} more than once; give each its own name")
    names = [CLUSTER, *_principal_names(seed)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"--seed {path}: {name!r} names two principals; give each its own name")


def _principal_names(seed: Seed) -> list[str]:
    """Return the names of all who can have a role or be a member."""
    principals: list[Identity | Application | Person | Team] = [*seed.identities, *seed.applications]
    principals += [*seed.users, *seed.directory_groups]
    return [principal.name for principal in principals]


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
    _create_people(seed, admin, principals)
    for vault in seed.vaults:
        scopes[vault.name] = _vault(vault, seed.location, admin)
    for account in seed.accounts:
        scopes[account.name] = _account(account, seed.location, admin)
    kinds = dict.fromkeys((user.name for user in seed.users), "User")
    kinds |= dict.fromkeys((team.name for team in seed.directory_groups), "Group")
    for grant in seed.roles:
        kind = kinds.get(grant.to, "ServicePrincipal")
        admin.assign_role_to(kind, grant.role, principals[grant.to], scopes.get(grant.scope, grant.scope))


def _create_people(seed: Seed, admin: Admin, principals: dict[str, str]) -> None:
    """Make users and the directory's groups, and add their object IDs to `principals`; then make members of them."""
    for user in seed.users:
        document = admin.create_user(user.name, user.display_name or user.name.partition("@")[0], user.password)
        principals[user.name] = str(document["id"])
    for team in seed.directory_groups:
        principals[team.name] = str(admin.create_directory_group(team.name)["id"])
    for team in seed.directory_groups:
        for member in team.members:
            admin.add_member(principals[team.name], principals[member])


def _vault(vault: Vault, location: str, admin: Admin) -> str:
    """Make a vault with all that is in it; return its ARM ID."""
    vault_id = str(admin.create_role_vault(vault.group, vault.name, location)["id"])
    admin.assign_role("Key Vault Administrator", admin.owner_principal(), vault_id)
    for name, value in vault.secrets.items():
        admin.set_secret(vault.name, name, value)
    for name, kind in vault.keys.items():
        admin.create_key(vault.name, name, kind)
    for name, subject in vault.certificates.items():
        admin.create_certificate(vault.name, name, subject)
    return vault_id


def _account(account: Account, location: str, admin: Admin) -> str:
    """Make a storage account with all that is in it; return its ARM ID."""
    account_id = str(admin.create_account(account.group, account.name, location)["id"])
    for name in account.containers:
        admin.create_container(account.group, account.name, name)
    if account.blobs:
        admin.assign_role("Storage Blob Data Owner", admin.owner_principal(), account_id)
    for name, text in account.blobs.items():
        admin.upload_blob(account.name, name, text)
    return account_id


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
