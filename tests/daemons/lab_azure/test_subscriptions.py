"""The subscription in ARM: resource providers, locations, resource groups and lists, as tools ask for them."""

from collections.abc import Callable

import httpx2
import pytest

from daemons.lab_azure.management import ARM, SCOPE, VERSION, Management
from podidentity_lab.azure import Azure

Send = Callable[..., httpx2.Response]
SignIn = Callable[..., str]


@pytest.fixture
def cluster(azure: Azure, send: Send, sign_in: SignIn) -> Management:
    """ARM as the cluster's principal, which may do nothing outside the node resource group."""
    return Management(azure, send, sign_in(SCOPE, azure.settings.cluster))


def test_a_provider_is_registered_unregistered_and_remembered(manage: Management, cluster: Management) -> None:
    """An unregistered provider takes no changes; any role may read the state; saving keeps it."""
    base = f"{manage.subscription}/providers"
    assert manage("GET", f"{base}/microsoft.network").json()["registrationState"] == "NotRegistered"
    assert manage("POST", f"{base}/microsoft.network/register").json()["registrationState"] == "Registered"
    vaults = cluster("GET", f"{base}/Microsoft.KeyVault").json()
    assert (vaults["registrationState"], vaults["resourceTypes"][0]["resourceType"]) == ("Registered", "vaults")
    assert cluster.code(cluster("POST", f"{base}/Microsoft.KeyVault/unregister")) == "AuthorizationFailed"
    assert manage("POST", f"{base}/Microsoft.KeyVault/unregister").json()["registrationState"] == "Unregistered"
    path = f"{manage.group}/providers/Microsoft.KeyVault/vaults/kv1"
    body = {"location": "eastus", "properties": {}}
    assert manage.code(manage("PUT", path, body)) == "MissingSubscriptionRegistration"
    saved = Azure.restore(manage.azure.save())
    assert saved.state.registrations == {"Microsoft.Network": "Registered", "Microsoft.KeyVault": "Unregistered"}
    manage("POST", f"{base}/Microsoft.KeyVault/register")
    assert manage("PUT", path, body).status_code == 201
    free = manage("POST", f"{base}/Microsoft.Resources/unregister").json()
    assert (free["registrationState"], free["registrationPolicy"]) == ("Registered", "RegistrationFree")
    assert manage.code(manage("GET", f"{base}/Microsoft.Nothing")) == "InvalidResourceNamespace"


def test_lists_of_providers_come_in_pages(manage: Management, send: Send) -> None:
    """Without `$top` all providers are on one page; with it each page has the address of the next."""
    complete = manage("GET", f"{manage.subscription}/providers").json()
    names = [entry["namespace"] for entry in complete["value"]]
    assert {"Microsoft.Authorization", "Microsoft.Storage", "microsoft.insights"} <= set(names)
    assert "nextLink" not in complete
    url, pages = f"{ARM}{manage.subscription}/providers{VERSION}&$top=40", []
    while url:
        answer = send("GET", url, manage.token).json()
        pages.append([entry["namespace"] for entry in answer["value"]])
        url = answer.get("nextLink", "")
    assert [len(page) for page in pages[:-1]] == [40] * (len(pages) - 1)
    assert [name for page in pages for name in page] == names
    assert [entry["namespace"] for entry in manage("GET", "/providers").json()["value"]] == names
    assert manage("GET", "/providers/Microsoft.Compute").json()["resourceTypes"]


def test_who_has_no_role_does_not_see_the_subscription(manage: Management, cluster: Management) -> None:
    """A principal without a role sees neither the subscription nor its locations and providers."""
    assert "westeurope" in [one["name"] for one in cluster("GET", f"{manage.subscription}/locations").json()["value"]]
    assert cluster("GET", "/subscriptions").json()["count"]["value"] == 1
    own = manage.azure.settings.cluster.object_id
    roles = manage.azure.state.roles
    for key in [key for key, role in roles.items() if role.principal_id == own]:
        del roles[key]
    for tail in ("", "/locations", "/providers", "/providers/Microsoft.Compute"):
        assert cluster.code(cluster("GET", f"{manage.subscription}{tail}")) == "AuthorizationFailed", tail
    assert cluster("GET", "/subscriptions").json()["value"] == []
    assert [one["tenantId"] for one in cluster("GET", "/tenants").json()["value"]] == [manage.azure.settings.tenant_id]
    assert manage("DELETE", f"{manage.subscription}/locations").status_code == 404


def test_a_group_is_made_tagged_listed_and_deleted(manage: Management, cluster: Management, send: Send) -> None:
    """Its ID has Azure's spelling, its region cannot change, and lists show only groups that the caller may read."""
    path = f"{manage.subscription}/resourcegroups/Shop"
    assert manage.code(manage("PUT", path, {})) == "LocationRequired"
    created = manage("PUT", path, {"location": "West Europe", "tags": {"env": "test"}})
    assert (created.status_code, created.json()["location"]) == (201, "westeurope")
    assert created.json()["id"] == f"{manage.subscription}/resourceGroups/Shop"
    assert manage.code(manage("PUT", path, {"location": "eastus"})) == "InvalidResourceGroupLocation"
    assert manage("PATCH", path, {"tags": {"env": "prod"}}).json()["tags"] == {"env": "prod"}
    assert manage("PATCH", path, {}).json()["tags"] == {"env": "prod"}
    assert manage("HEAD", path).status_code == 204
    url = f"{ARM}{manage.subscription}/resourcegroups{VERSION}"
    listing = send("GET", f"{url}&$filter=tagName eq 'env' and tagValue eq 'prod'", manage.token).json()
    assert [group["name"] for group in listing["value"]] == ["Shop"]
    assert len(send("GET", f"{url}&$top=1", manage.token).json()["value"]) == 1
    own = manage.azure.settings.node_resource_group
    assert [group["name"] for group in send("GET", url, cluster.token).json()["value"]] == [own]
    assert manage("PUT", path, {"location": "westeurope"}).json()["tags"] == {}
    assert manage("DELETE", path).status_code == 200
    assert manage("HEAD", path).status_code == 404
    assert manage.code(manage("GET", path)) == "ResourceGroupNotFound"
    manage.azure.state.roles.clear()
    assert cluster.code(send("GET", url, cluster.token)) == "AuthorizationFailed"


def test_resources_are_listed_by_type_tag_and_group(manage: Management, send: Send) -> None:
    """Lists in a group or the subscription are filtered by type, tag, group and name."""
    identity = f"{manage.group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/one"
    assert manage("PUT", identity, {"location": "eastus", "tags": {"env": "test"}}).status_code == 201
    machine = f"{manage.group}/providers/Microsoft.Compute/virtualMachines/vm0"
    assert manage("PUT", machine, {"location": "eastus", "properties": {}, "tags": {"env": "vm"}}).status_code == 201

    def names(scope: str, query: str = "") -> list[str]:
        answer = send("GET", f"{ARM}{scope}/resources{VERSION}{query}", manage.token)
        return [resource["name"] for resource in answer.json()["value"]]

    assert names(manage.group) == ["vm0", "one"]
    assert names(manage.subscription) == ["ss", "vm0", "one"]
    assert names(manage.subscription, "&$filter=tagName eq 'env' and tagValue eq 'vm'") == ["vm0"]
    assert names(manage.subscription, "&$filter=resourceType eq 'Microsoft.Compute/virtualMachines'") == ["vm0"]
    assert names(manage.subscription, "&$filter=resourceGroup eq 'RG' and name eq 'one'") == ["one"]
    assert names(manage.subscription, "&$top=2") == ["ss", "vm0"]
    assert manage("POST", f"{manage.group}/resources").status_code == 405
    assert manage.code(manage("GET", f"{manage.subscription}/elsewhere")) == "NotFound"
