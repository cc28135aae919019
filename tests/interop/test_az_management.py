"""The real azure-cli manages the lab's subscription: resource providers, groups, lists of resources."""

from collections.abc import Callable
from pathlib import Path

import pytest

from interop.stage import Record, Stage
from interop.test_az import VERSION, WAYS, Az, signed_in

pytestmark = pytest.mark.timeout(900)

SUBSCRIPTION = """
az provider register -n Microsoft.Network
network = az provider show -n Microsoft.Network
az provider unregister -n Microsoft.Network
providers = az provider list --query "[?registrationState=='Registered'].namespace"
locations = az account list-locations --query "[].name"
az group create -n managed -l westeurope --tags env=test
group = az group update -n managed --set tags.env=prod
exists = az group exists -n managed
groups = az group list --tag env=prod --query "[].name"
az identity create -g managed -n tagged --tags env=test
tagged = az resource list --tag env=test --query "[].name"
typed = az resource list -g managed --resource-type Microsoft.ManagedIdentity/userAssignedIdentities --query "[].name"
resource = az resource show -g managed -n tagged --resource-type Microsoft.ManagedIdentity/userAssignedIdentities
az group delete -n managed --yes
absent = az group exists -n managed
"""


@pytest.fixture(scope="module")
def az(stage: Stage, client: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Az:
    """azure-cli in the user's shell, signed in as the owner of the subscription."""
    return signed_in(stage, client("az"), WAYS[1], tmp_path_factory.mktemp("az"))


def test_a_subscription_is_managed(az: Az, record: Record) -> None:
    """Providers are registered, regions listed, groups tagged and found, resources listed by tag and by type."""
    record("azure-cli, on the host", VERSION, "provider, account list-locations, group, resource list and show")
    az.type(SUBSCRIPTION)
    seen = az.seen
    assert seen["network"]["registrationState"] == "Registered"
    assert {"Microsoft.KeyVault", "Microsoft.Resources"} <= set(seen["providers"])
    assert "Microsoft.Network" not in seen["providers"]
    assert "westeurope" in seen["locations"]
    assert seen["group"]["id"].endswith("/resourceGroups/managed")
    assert (seen["groups"], seen["exists"], seen["absent"]) == (["managed"], True, False)
    assert (seen["tagged"], seen["typed"]) == (["tagged"], ["tagged"])
    assert seen["resource"]["properties"]["clientId"]
