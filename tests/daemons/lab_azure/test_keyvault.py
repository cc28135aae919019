"""Vaults: both permission models, versions, deletion and recovery, and tokens that are not for a vault."""

from typing import Any

import httpx2
import pytest

from daemons.lab_azure.vaults import ARM, Send, SignIn, Vault
from podidentity_lab.azure import Azure


@pytest.fixture
def vault(azure: Azure, send: Send, sign_in: SignIn) -> Vault:
    """A vault that does not exist yet, with its owner's tokens."""
    return Vault(azure, send, sign_in)


def test_a_vault_for_roles_asks_for_roles(vault: Vault) -> None:
    """The subscription's Owner may not set secrets; Secrets Officer may, and Secrets User reads a single secret."""
    assert vault.create(roles=True).json()["properties"]["enableRbacAuthorization"] is True
    refused = vault.ask("PUT", "/secrets/s1", {"value": "v"})
    assert (refused.status_code, refused.json()["error"]["innererror"]["code"]) == (403, "ForbiddenByRbac")
    assert "Microsoft.KeyVault/vaults/secrets/setSecret/action" in refused.json()["error"]["message"]
    vault.give(vault.azure.settings.owner.object_id, "Key Vault Secrets Officer", vault.group)
    assert vault.ask("PUT", "/secrets/s1", {"value": "v"}).status_code == 200
    assert vault.ask("PUT", "/secrets/s2", {"value": "w"}).status_code == 200
    assert vault.ask("GET", "/secrets/s1", token=vault.stranger).status_code == 403
    vault.give(vault.azure.settings.cluster.object_id, "Key Vault Secrets User", f"{vault.path}/secrets/s1")
    assert vault.ask("GET", "/secrets/s1", token=vault.stranger).json()["value"] == "v"
    assert vault.ask("GET", "/secrets/s2", token=vault.stranger).status_code == 403
    assert vault.ask("PUT", "/secrets/s1", {"value": "x"}, token=vault.stranger).status_code == 403


def test_an_access_policy_gives_what_it_names(vault: Vault) -> None:
    """A policy for get does not allow list; the refusal names the permission; roles do not count in such a vault."""
    vault.create(roles=False, permissions=("Get", "set"))
    vault.give(vault.azure.settings.cluster.object_id, "Key Vault Administrator", vault.group)
    assert vault.ask("PUT", "/secrets/s1", {"value": "v"}).status_code == 200
    assert vault.ask("GET", "/secrets/s1").status_code == 200
    refused = vault.ask("GET", "/secrets")
    assert refused.json()["error"]["innererror"]["code"] == "AccessDenied"
    assert "secrets list permission on key vault 'kv1;location=eastus'" in refused.json()["error"]["message"]
    assert vault.ask("GET", "/secrets/s1", token=vault.stranger).status_code == 403


def test_a_secret_has_versions_and_can_be_disabled(vault: Vault) -> None:
    """Each version is read by its ID, the newest without; lists have no values, and a disabled secret none."""
    vault.create(roles=False)
    ids = [vault.ask("PUT", "/secrets/S1", {"value": value}).json()["id"] for value in ("old", "new")]
    assert vault.ask("GET", f"/secrets/s1/{ids[0].rsplit('/', 1)[1]}").json()["value"] == "old"
    assert vault.ask("GET", "/secrets/s1/").json()["value"] == "new"
    listed = vault.ask("GET", "/secrets").json()["value"]
    assert [one["id"] for one in listed] == [f"{vault.host}/secrets/s1"]
    assert not any("value" in one for one in listed)
    assert len(vault.ask("GET", "/secrets/s1/versions").json()["value"]) == 2
    assert vault.ask("PATCH", "/secrets/s1/", {"attributes": {"enabled": False}}).status_code == 200
    assert vault.ask("GET", "/secrets/s1").json()["error"]["innererror"]["code"] == "SecretDisabled"


def test_a_deleted_secret_comes_back_or_goes_for_good(vault: Vault) -> None:
    """A deleted secret is not found but keeps its name; it can be recovered, and purging frees the name."""
    vault.create(roles=False)
    vault.ask("PUT", "/secrets/s1", {"value": "v"})
    assert vault.ask("DELETE", "/secrets/s1").json()["recoveryId"] == f"{vault.host}/deletedsecrets/s1"
    assert vault.ask("GET", "/secrets/s1").json()["error"]["code"] == "SecretNotFound"
    assert vault.ask("PUT", "/secrets/s1", {"value": "w"}).status_code == 409
    assert len(vault.ask("GET", "/deletedsecrets").json()["value"]) == 1
    assert vault.ask("POST", "/deletedsecrets/s1/recover").status_code == 200
    assert vault.ask("GET", "/secrets/s1").json()["value"] == "v"
    vault.ask("DELETE", "/secrets/s1")
    assert vault.ask("DELETE", "/deletedsecrets/s1").status_code == 204
    assert vault.ask("GET", "/deletedsecrets/s1").status_code == 404
    assert vault.ask("PUT", "/secrets/s1", {"value": "w"}).status_code == 200


def test_all_permissions_are_all_but_purge(vault: Vault) -> None:
    """The permission `all` deletes and recovers secrets, but purging them needs `purge` by name."""
    vault.create(roles=False, permissions=("all",))
    vault.ask("PUT", "/secrets/s1", {"value": "v"})
    assert vault.ask("DELETE", "/secrets/s1").status_code == 200
    assert vault.ask("DELETE", "/deletedsecrets/s1").status_code == 403
    assert vault.ask("POST", "/deletedsecrets/s1/recover").status_code == 200


def test_a_deleted_vault_comes_back_or_goes_for_good(vault: Vault) -> None:
    """A deleted vault keeps its name and secrets, and can be recovered, until it is purged."""
    vault.create(roles=False)
    vault.ask("PUT", "/secrets/s1", {"value": "v"})
    subscription = vault.group.partition("/resourceGroups")[0]
    deleted = f"{subscription}/providers/Microsoft.KeyVault/locations/eastus/deletedVaults/kv1"

    def manage(method: str, url: str, **given: Any) -> httpx2.Response:
        return vault.send(method, f"{url}{vault.api}", vault.manager, **given)

    assert manage("DELETE", vault.path).status_code == 200
    assert vault.ask("GET", "/secrets/s1").status_code == 404
    assert vault.create(roles=False).json()["error"]["code"] == "ConflictError"
    assert manage("GET", deleted).json()["properties"]["vaultId"] == vault.path.removeprefix(ARM)
    recover = {"location": "eastus", "properties": {"createMode": "recover"}}
    assert manage("PUT", vault.path, json=recover).status_code == 201
    assert vault.ask("GET", "/secrets/s1").json()["value"] == "v"
    manage("DELETE", vault.path)
    assert manage("POST", f"{deleted}/purge").status_code == 200
    assert manage("GET", deleted).status_code == 404
    assert vault.create(roles=False).status_code == 201
    assert vault.ask("GET", "/secrets/s1").status_code == 404


def test_a_token_must_be_for_a_vault_signed_here_and_of_now(vault: Vault, azure: Azure) -> None:
    """The refusal of a wrong token says what is wrong with it, and has the challenge that SDKs read."""
    vault.create(roles=False)
    expired = azure._entra.issue(azure.state.principals[azure.settings.owner.object_id], "https://vault.azure.net", -1)
    elsewhere = Azure(azure.settings)
    forged = elsewhere._entra.issue(
        elsewhere.state.principals[azure.settings.owner.object_id], "https://vault.azure.net"
    )
    for token, code in ((vault.manager, "AKV10022"), (forged, "AKV10046"), (expired, "IDX10223"), ("", "AKV10000")):
        refused = vault.ask("GET", "/secrets/s1", token=token)
        assert refused.status_code == 401
        assert code in refused.json()["error"]["message"]
        assert 'resource="https://vault.azure.net"' in refused.headers["WWW-Authenticate"]
