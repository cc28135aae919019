"""What Terraform's providers azurerm (4) and azuread ask of Azure when they start, and for a resource group.

The providers themselves are not run here. The requests are those of their source: hashicorp/go-azure-sdk
(sdk/internal/metadata, resource-manager/resources/2022-09-01/providers) and hashicorp/terraform-provider-azurerm
(internal/clients, internal/resourceproviders), with the fields that they read of each answer.
"""

from collections.abc import Callable

import httpx2
import jwt
import pytest

from daemons.lab_azure.management import ARM
from podidentity_lab.azure import Azure

Send = Callable[..., httpx2.Response]
SignIn = Callable[..., str]
CORE = """
Microsoft.Authorization Microsoft.Compute Microsoft.CostManagement Microsoft.ManagedIdentity
Microsoft.MarketplaceOrdering Microsoft.Network Microsoft.Resources Microsoft.Storage
""".split()  # noqa: SIM905  # words are read as words
"""What the set `core` of `resource_provider_registrations` has; names compare with case there."""
FURTHER = """
Microsoft.AVS Microsoft.ApiManagement Microsoft.AppConfiguration Microsoft.AppPlatform Microsoft.Automation
Microsoft.Blueprint Microsoft.BotService Microsoft.Cache Microsoft.Cdn Microsoft.CognitiveServices
Microsoft.ContainerInstance Microsoft.ContainerRegistry Microsoft.ContainerService Microsoft.CustomProviders
Microsoft.DBforMariaDB Microsoft.DBforMySQL Microsoft.DBforPostgreSQL Microsoft.DataFactory
Microsoft.DataLakeAnalytics Microsoft.DataLakeStore Microsoft.DataMigration Microsoft.DataProtection
Microsoft.Databricks Microsoft.DesktopVirtualization Microsoft.DevTestLab Microsoft.Devices Microsoft.DocumentDB
Microsoft.EventGrid Microsoft.EventHub Microsoft.GuestConfiguration Microsoft.HDInsight Microsoft.HealthcareApis
Microsoft.KeyVault Microsoft.Kusto Microsoft.Logic Microsoft.MachineLearningServices Microsoft.Maintenance
Microsoft.ManagedServices Microsoft.Management Microsoft.Maps Microsoft.Media Microsoft.MixedReality
Microsoft.NotificationHubs Microsoft.OperationalInsights Microsoft.OperationsManagement Microsoft.PolicyInsights
Microsoft.PowerBIDedicated Microsoft.RecoveryServices Microsoft.Relay Microsoft.Search Microsoft.Security
Microsoft.SecurityInsights Microsoft.ServiceBus Microsoft.ServiceFabric Microsoft.SignalRService Microsoft.Sql
Microsoft.StreamAnalytics Microsoft.TimeSeriesInsights Microsoft.Web microsoft.insights
""".split()  # noqa: SIM905  # words are read as words
"""What the default set, `legacy`, has beyond the set `core`."""


@pytest.fixture
def subscription(azure: Azure) -> str:
    """The subscription's URL."""
    return f"{ARM}/subscriptions/{azure.settings.subscription_id}"


def test_the_cloud_is_described_without_a_token(send: Send) -> None:
    """`metadata_host` needs the sign-in endpoint, audiences, and the suffixes of services' names."""
    cloud = send("GET", f"{ARM}/metadata/endpoints?api-version=2022-09-01").json()
    authentication = cloud["authentication"]
    assert (cloud["name"], cloud["resourceManager"]) == ("AzureCloud", f"{ARM}/")
    assert authentication["loginEndpoint"] == "https://login.microsoftonline.com"
    assert (authentication["tenant"], authentication["identityProvider"]) == ("common", "AAD")
    assert "https://management.azure.com/" in authentication["audiences"]
    assert cloud["microsoftGraphResourceId"] == "https://graph.microsoft.com/"
    assert {"keyVaultDns", "storage", "mhsmDns", "sqlServerHostname", "azureFrontDoorEndpointSuffix"} <= set(
        cloud["suffixes"]
    )


def test_azurerm_starts(azure: Azure, send: Send, sign_in: SignIn, subscription: str) -> None:
    """A Graph token says who signed in, and each provider of the default set is there and can be registered."""
    claims = jwt.decode(sign_in("https://graph.microsoft.com/.default"), options={"verify_signature": False})
    owner = azure.settings.owner
    assert (claims["appid"], claims["oid"], claims["tid"]) == (
        owner.client_id,
        owner.object_id,
        azure.settings.tenant_id,
    )
    token = sign_in("https://management.azure.com/.default")
    shown = send("GET", f"{subscription}?api-version=2022-12-01", token).json()
    assert (shown["subscriptionId"], shown["state"]) == (azure.settings.subscription_id, "Enabled")
    version = "?api-version=2022-09-01"
    listing = send("GET", f"{subscription}/providers{version}", token).json()["value"]
    states = {provider["namespace"]: provider["registrationState"] for provider in listing}
    assert set(CORE) | set(FURTHER) <= set(states)
    for name in (*CORE, *FURTHER):
        if states[name] != "Registered":
            assert send("POST", f"{subscription}/providers/{name}/register{version}", token, json={}).status_code == 200
            answer = send("GET", f"{subscription}/providers/{name}{version}", token).json()
            assert (answer["namespace"], answer["registrationState"]) == (name, "Registered")


def test_azurerm_makes_and_destroys_a_group(send: Send, sign_in: SignIn, subscription: str) -> None:
    """The group is missing, created, read back with the same ID, listed as empty, and deleted."""
    token = sign_in("https://management.azure.com/.default")
    url, version = f"{subscription}/resourceGroups/Terraform", "?api-version=2023-07-01"
    assert send("GET", url + version, token).status_code == 404
    body = {"location": "westeurope", "tags": {"a": "b"}}
    assert send("PUT", url + version, token, json=body).status_code == 201
    shown = send("GET", url + version, token).json()
    assert (f"{ARM}{shown['id']}", shown["location"], shown["tags"]) == (url, "westeurope", {"a": "b"})
    listing = send("GET", f"{url}/resources{version}&$expand=provisioningState&$top=10", token).json()
    assert listing == {"value": []}
    assert send("DELETE", url + version, token).status_code == 200
    assert send("GET", url + version, token).status_code == 404


def test_azuread_finds_who_it_is(azure: Azure, send: Send, sign_in: SignIn) -> None:
    """`azuread_client_config` asks for the principal of the token's application."""
    token = sign_in("https://graph.microsoft.com/.default")
    owner = azure.settings.owner
    url = f"https://graph.microsoft.com/v1.0/servicePrincipals?$filter=appId eq '{owner.client_id}'"
    assert [one["id"] for one in send("GET", url, token).json()["value"]] == [owner.object_id]
