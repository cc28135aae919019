"""A lab's Azure can be saved and restored without a difference for its clients."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from podidentity.errors import LabError
from podidentity_lab.azure import Azure, AzureSettings

ARM = "https://management.azure.com"
Send = Callable[..., httpx2.Response]


def test_everything_is_there_again(azure: Azure, send: Send, sign_in: Callable[..., str]) -> None:
    """Tenant, keys, resources and secrets are the same; earlier tokens are accepted; a PATCH under way still ends."""
    scale_set = azure.add_scale_set("ss", 1)[0].rpartition("/virtualMachines/")[0]
    owner = sign_in(f"{ARM}/.default")
    group = f"/subscriptions/{azure.settings.subscription_id}/resourceGroups/rg"
    identity = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/one"
    vault = f"{group}/providers/Microsoft.KeyVault/vaults/kv1"
    policy = {"objectId": azure.settings.owner.object_id, "permissions": {"secrets": ["all"]}}
    properties = {"accessPolicies": [policy], "enableRbacAuthorization": False}

    def put(path: str, body: Any) -> None:
        assert send("PUT", f"{ARM}{path}?api-version=1", owner, json=body).status_code == 201

    put(group, {"location": "eastus"})
    put(identity, {"location": "eastus"})
    put(vault, {"location": "eastus", "properties": properties})
    data = sign_in("https://vault.azure.net/.default")
    send("PUT", "https://kv1.vault.azure.net/secrets/s1", data, json={"value": "kept"})
    azure.faults.patch_seconds = 10_000
    body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}}
    assert send("PATCH", f"{ARM}{scale_set}?api-version=1", owner, json=body).status_code == 200

    text = azure.save()
    again = Azure.restore(text)
    assert again.save() == text
    assert again.ca_pem == azure.ca_pem
    assert again.settings == azure.settings
    again.add_scale_set("ss", 1)
    vaults = TestClient(again.app, base_url="https://kv1.vault.azure.net")
    header = {"Authorization": f"Bearer {data}"}
    assert vaults.get("/secrets/s1", headers=header).json()["value"] == "kept"
    arm = TestClient(again.app, base_url=ARM)
    header = {"Authorization": f"Bearer {owner}"}
    assert arm.get(scale_set, headers=header).json()["properties"]["provisioningState"] == "Updating"
    later = Azure.restore(text, lambda: next(iter(again.state.operations.values())).ends_at)
    assert set(_identities(later)) == {identity}


def _identities(azure: Azure) -> list[str]:
    """Return a machine's identities after a request to IMDS, which completes operations that are due."""
    machine = next(iter(azure.state.machines.values()))
    TestClient(azure.imds(f"{machine.id}/virtualMachines/0")).get("/metadata/versions", headers={"Metadata": "true"})
    return list(machine.identities.values())


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99, "state": {}}', '{"format": 1, "state": {"groups": 1}}'])
def test_what_cannot_be_read_is_one_sentence(text: str) -> None:
    """An unreadable text gets one sentence, which also says to start a fresh lab."""
    with pytest.raises(LabError, match=r"saved Azure.*; start a fresh lab"):
        Azure.restore(text)


def test_no_secret_shows_in_a_repr() -> None:
    """The repr of the state has neither the owner's secret nor a private key."""
    azure = Azure(AzureSettings())
    secret = azure.settings.owner.secret
    assert secret not in repr(azure.state)
    assert "PRIVATE KEY" not in repr(azure.state)
    assert str(uuid.UUID(azure.settings.tenant_id)) in repr(azure.state)
