"""Resource providers: which namespaces a subscription can use, what each has in the lab, and their registration.

Namespaces whose types the lab has are registered from the start, and all others are not: clients may register those,
and find no types in them. Azure's form: learn.microsoft.com/rest/api/resources/providers.
"""

from dataclasses import dataclass

from podidentity_lab.azure import answers, regions
from podidentity_lab.azure.state import Json, State

REGISTERED, NOT_REGISTERED, UNREGISTERED = "Registered", "NotRegistered", "Unregistered"


@dataclass(frozen=True, slots=True)
class ResourceType:
    """A type of resources, without its namespace, and the api-versions that clients are told of, newest first."""

    name: str
    versions: tuple[str, ...]
    is_global: bool = False
    """Whether its resources are in no region."""


TYPES = {
    "Microsoft.Authorization": (
        ResourceType("roleAssignments", ("2022-04-01", "2020-04-01-preview", "2015-07-01"), is_global=True),
        ResourceType("roleDefinitions", ("2022-04-01", "2018-01-01-preview", "2015-07-01"), is_global=True),
    ),
    "Microsoft.Compute": (
        ResourceType("virtualMachines", ("2024-11-01", "2023-09-01", "2022-08-01")),
        ResourceType("virtualMachineScaleSets", ("2024-11-01", "2023-09-01", "2022-08-01")),
    ),
    "Microsoft.KeyVault": (
        ResourceType("vaults", ("2026-02-01", "2023-07-01", "2022-07-01")),
        ResourceType("vaults/secrets", ("2026-02-01", "2023-07-01", "2022-07-01")),
        ResourceType("deletedVaults", ("2026-02-01", "2023-07-01", "2022-07-01")),
    ),
    "Microsoft.ManagedIdentity": (
        ResourceType("userAssignedIdentities", ("2024-11-30", "2023-01-31", "2018-11-30")),
        ResourceType("userAssignedIdentities/federatedIdentityCredentials", ("2024-11-30", "2023-01-31")),
    ),
    "Microsoft.Resources": (
        ResourceType("deployments", ("2024-11-01", "2022-09-01", "2021-04-01"), is_global=True),
        ResourceType("resourceGroups", ("2024-11-01", "2022-09-01", "2021-04-01"), is_global=True),
        ResourceType("subscriptions", ("2022-12-01", "2021-01-01", "2019-06-01"), is_global=True),
    ),
    "Microsoft.Storage": (
        ResourceType("storageAccounts", ("2025-01-01", "2024-01-01", "2023-05-01")),
        ResourceType("storageAccounts/blobServices", ("2025-01-01", "2024-01-01", "2023-05-01")),
    ),
}
"""The types that the lab has, by namespace."""

FREE = frozenset({"Microsoft.Authorization", "Microsoft.Resources"})
"""Namespaces that every subscription has: nobody can unregister them."""

# What Terraform's azurerm registers with any of its sets, and az's commands by themselves.
EMPTY = tuple(
    f"Microsoft.{name}"
    for name in """
    AAD AlertsManagement ApiManagement App AppConfiguration AppPlatform Attestation Automation AVS AzureActiveDirectory
    Batch Blueprint BotService Cache Cdn CognitiveServices ContainerInstance ContainerRegistry ContainerService
    CostManagement CustomProviders Dashboard Databricks DataFactory DataLakeAnalytics DataLakeStore DataMigration
    DataProtection DBforMariaDB DBforMySQL DBforPostgreSQL DesktopVirtualization Devices DevTestLab DocumentDB
    EventGrid EventHub GuestConfiguration HDInsight HealthcareApis IoTCentral Kubernetes KubernetesConfiguration Kusto
    Logic MachineLearningServices Maintenance ManagedServices Management Maps MarketplaceOrdering Media MixedReality
    Monitor Network NotificationHubs OperationalInsights OperationsManagement PolicyInsights PowerBIDedicated
    RecoveryServices Relay Search Security SecurityInsights ServiceBus ServiceFabric SignalRService Sql
    StreamAnalytics TimeSeriesInsights Web
    """.split()  # noqa: SIM905  # words are read as words
)
"""Namespaces that can be registered, and are empty in the lab."""
_NAMES = {name.lower(): name for name in (*TYPES, *EMPTY, "GitHub.Network", "microsoft.insights")}


def namespace(text: str) -> str:
    """Return a namespace as Azure writes it. Refuses with 404 one that is not there."""
    if text.lower() not in _NAMES:
        raise answers.arm(404, "InvalidResourceNamespace", f"The resource namespace '{text}' is invalid.")
    return _NAMES[text.lower()]


def namespaces() -> list[str]:
    """Return all namespaces, sorted."""
    return sorted(_NAMES.values(), key=str.lower)


def registration(state: State, name: str) -> str:
    """Return the registration state of a namespace as Azure writes it."""
    return state.registrations.get(name, REGISTERED if name in TYPES else NOT_REGISTERED)


def register(state: State, name: str) -> None:
    """Register a namespace; it takes effect at once."""
    state.registrations[name] = REGISTERED


def unregister(state: State, name: str) -> None:
    """Unregister a namespace, unless every subscription has it."""
    if name not in FREE:
        state.registrations[name] = UNREGISTERED


def require_registration(state: State, text: str) -> None:
    """Refuse with 409 a change of resources in a namespace that is not registered."""
    name = _NAMES.get(text.lower(), text)
    if name in TYPES and registration(state, name) != REGISTERED:
        message = (
            f"The subscription is not registered to use namespace '{name}'. See https://aka.ms/rps-not-found for how "
            "to register subscriptions."
        )
        raise answers.arm(409, "MissingSubscriptionRegistration", message)


def document(state: State, name: str) -> Json:
    """Return a namespace as ARM shows it."""
    return {
        "id": f"/subscriptions/{state.settings.subscription_id}/providers/{name}",
        "namespace": name,
        "registrationState": registration(state, name),
        "registrationPolicy": "RegistrationFree" if name in FREE else "RegistrationRequired",
        "resourceTypes": [_type_document(kind) for kind in TYPES.get(name, ())],
    }


def _type_document(kind: ResourceType) -> Json:
    return {
        "resourceType": kind.name,
        "locations": [] if kind.is_global else [region.display_name for region in regions.REGIONS],
        "apiVersions": list(kind.versions),
        "defaultApiVersion": kind.versions[0],
        "capabilities": "None" if kind.is_global else "SupportsTags, SupportsLocation",
    }
