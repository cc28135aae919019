"""The application as a managed identity: with a role, without one, and while Azure has a bad day."""

import pytest
from greeter import application


@pytest.fixture
def ask(lab_identity, lab_vault, monkeypatch):
    """Ask the application, which is `lab_identity`: the status and the text of its answer."""
    lab_vault.set("greeting", "world")
    monkeypatch.setenv("VAULT_URL", lab_vault.url)

    def ask():
        statuses = []
        body = application({}, lambda status, headers: statuses.append(status))
        return statuses[0], b"".join(body).decode().strip()

    return ask


def test_with_the_role_it_greets(ask, azure_lab, lab_identity, lab_vault):
    lab_vault.grant(lab_identity, "Key Vault Secrets User")
    assert ask() == ("200 OK", "Hello, world!")
    last = azure_lab.log("keyvault")[-1]
    assert (last["identity"], last["status"]) == (lab_identity.name, 200)


def test_without_the_role_it_is_not_available(ask, azure_lab):
    assert ask() == ("503 Service Unavailable", "HttpResponseError")
    assert azure_lab.log("keyvault")[-1]["status"] == 403


def test_it_comes_through_a_throttled_vault(ask, faults, lab_identity, lab_vault):
    lab_vault.grant(lab_identity)
    with faults(keyvault_statuses=[429, 429], retry_after_seconds=0):
        assert ask() == ("200 OK", "Hello, world!")


def test_without_a_token_it_is_not_available(ask, faults):
    with faults(imds_statuses=[400]):
        assert ask() == ("503 Service Unavailable", "ClientAuthenticationError")
