"""Which principal may do which action at which scope, by Azure's built-in roles: those that the docs' examples use.

IDs and actions: learn.microsoft.com/azure/role-based-access-control/built-in-roles.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from podidentity_lab.azure import answers, memberships
from podidentity_lab.azure.state import Principal, State


@dataclass(frozen=True, slots=True)
class Role:
    """Management actions allowed and denied, and data actions allowed; patterns, lower case."""

    name: str
    actions: tuple[str, ...] = ()
    not_actions: tuple[str, ...] = ()
    data_actions: tuple[str, ...] = ()


_SECRETS = "microsoft.keyvault/vaults/secrets"
_KEYS = "microsoft.keyvault/vaults/keys"
_CONTAINERS = "microsoft.storage/storageaccounts/blobservices/containers"
_BLOBS = f"{_CONTAINERS}/blobs"
_IDENTITIES = "microsoft.managedidentity/userassignedidentities"
_AUTHORIZATION = ("microsoft.authorization/*/delete", "microsoft.authorization/*/write")

ROLES = {
    "8e3af657-a8ff-443c-a75c-2fe8c4bcb635": Role("Owner", ("*",)),
    "b24988ac-6180-42a0-ab88-20f7382dd24c": Role("Contributor", ("*",), _AUTHORIZATION),
    "acdd72a7-3385-48ef-bd42-f606fba81ae7": Role("Reader", ("*/read",)),
    "f1a07417-d97a-45cb-824c-7a7467783830": Role(
        "Managed Identity Operator", (f"{_IDENTITIES}/*/read", f"{_IDENTITIES}/read", f"{_IDENTITIES}/*/assign/action")
    ),
    "e40ec5ca-96e0-45a2-b4ff-59039f2c2b59": Role(
        "Managed Identity Contributor",
        (
            f"{_IDENTITIES}/read",
            f"{_IDENTITIES}/write",
            f"{_IDENTITIES}/delete",
            f"{_IDENTITIES}/federatedidentitycredentials/*",
            "microsoft.resources/subscriptions/resourcegroups/read",
        ),
    ),
    "9980e02c-c2be-4d73-94e8-173b1dc7cf3c": Role(
        "Virtual Machine Contributor",
        (
            "microsoft.compute/locations/*",
            "microsoft.compute/virtualmachines/*",
            "microsoft.compute/virtualmachinescalesets/*",
            "microsoft.resources/subscriptions/resourcegroups/read",
            "microsoft.authorization/*/read",
        ),
    ),
    "4633458b-17de-408a-b874-0445c86b69e6": Role(
        "Key Vault Secrets User",
        data_actions=(f"{_SECRETS}/getsecret/action", f"{_SECRETS}/readmetadata/action"),
    ),
    # An RBAC vault is of no use to anybody, its owner included, before somebody may set a secret.
    "b86a8fe4-44ce-4948-aee5-eccb2c155cd7": Role(
        "Key Vault Secrets Officer",
        ("microsoft.keyvault/checknameavailability/read", "microsoft.keyvault/vaults/read"),
        data_actions=("microsoft.keyvault/vaults/secrets/*",),
    ),
    "14b46e9e-c2b7-41b4-b07b-48a6ebf60603": Role(
        "Key Vault Crypto Officer",
        ("microsoft.keyvault/checknameavailability/read", "microsoft.keyvault/vaults/read"),
        data_actions=(f"{_KEYS}/*",),
    ),
    "12338af0-0e69-4776-bea7-57ae8d297424": Role(
        "Key Vault Crypto User",
        data_actions=tuple(
            f"{_KEYS}/{name}"
            for name in (
                "read",
                *(f"{verb}/action" for verb in ("update", "backup", "encrypt", "decrypt", "wrap", "unwrap")),
                "sign/action",
                "verify/action",
            )
        ),
    ),
    "a4417e6f-fecd-4de8-b567-7b0420556985": Role(
        "Key Vault Certificates Officer",
        ("microsoft.keyvault/checknameavailability/read", "microsoft.keyvault/vaults/read"),
        data_actions=("microsoft.keyvault/vaults/certificates/*",),
    ),
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": Role(
        "Storage Blob Data Owner", (f"{_CONTAINERS}/*",), data_actions=(f"{_BLOBS}/*",)
    ),
    "ba92f5b4-2d11-453d-a403-e96b0029c9fe": Role(
        "Storage Blob Data Contributor",
        tuple(f"{_CONTAINERS}/{verb}" for verb in ("delete", "read", "write")),
        data_actions=tuple(f"{_BLOBS}/{verb}" for verb in ("delete", "read", "write", "move/action", "add/action")),
    ),
    "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1": Role(
        "Storage Blob Data Reader", (f"{_CONTAINERS}/read",), data_actions=(f"{_BLOBS}/read",)
    ),
    "00482a5a-887f-4fb3-b363-3b7fe8e74483": Role(
        "Key Vault Administrator", ("microsoft.keyvault/vaults/read",), data_actions=("microsoft.keyvault/vaults/*",)
    ),
}


def is_allowed(state: State, principal: Principal, action: str, scope: str, *, on_data: bool = False) -> bool:
    """Whether a role of the principal, or of a group that it is in, at `scope` or above it, allows `action`."""
    holders = memberships.holders(state, principal.object_id)
    return any(
        _grants(ROLES[assignment.role_id], action.lower(), on_data=on_data)
        for assignment in state.roles.values()
        if assignment.principal_id in holders
        and assignment.role_id in ROLES
        and f"{scope.lower()}/".startswith(f"{assignment.scope.lower().rstrip('/')}/")
    )


def sees_subscription(state: State, principal: Principal) -> bool:
    """Whether the principal has any role in the subscription: only then does `GET /subscriptions` list it."""
    holders = memberships.holders(state, principal.object_id)
    return any(assignment.principal_id in holders for assignment in state.roles.values())


def require(state: State, principal: Principal, action: str, scope: str) -> None:
    """Refuse with 403, in ARM's words, unless `principal` may do `action` at `scope`."""
    if not is_allowed(state, principal, action, scope):
        message = (
            f"The client '{principal.label}' with object id '{principal.object_id}' does not have authorization to "
            f"perform action '{action}' over scope '{scope}' or the scope is invalid."
        )
        raise answers.arm(403, "AuthorizationFailed", message)


def _grants(role: Role, action: str, *, on_data: bool) -> bool:
    if on_data:
        return any(fnmatchcase(action, pattern) for pattern in role.data_actions)
    if any(fnmatchcase(action, pattern) for pattern in role.not_actions):
        return False
    return any(fnmatchcase(action, pattern) for pattern in role.actions)
