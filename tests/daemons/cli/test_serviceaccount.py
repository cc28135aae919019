"""`podidentity serviceaccount` with azwi's phases, against the lab's Kubernetes, Graph and ARM over real TLS."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from contract.servers import embedded
from daemons.cli.published import ISSUER
from daemons.cli.tenant import Tenant, signed_in
from podidentity.azure import federated
from podidentity_lab.azure.state import Principal
from podidentity_lab.kubernetes import Kubernetes

if TYPE_CHECKING:
    from daemons.cli.conftest import Run

NAME = ("--service-account-name", "app")
ISSUER_URL = ("--service-account-issuer-url", ISSUER)
SIGN_IN = ("--auth-method", "client_secret")


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Kubernetes]:
    """A served cluster without controllers."""
    with embedded(tmp_path, controllers=False) as (_, cluster):
        yield cluster


@pytest.fixture
def tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenant]:
    """A tenant whose owner this process is."""
    monkeypatch.setattr(federated, "WRITE_SECONDS", 0.0)
    made = Tenant()
    with signed_in(made, tmp_path, monkeypatch):
        yield made


def scope(tenant: Tenant) -> tuple[str, ...]:
    """Return the role that the application gets."""
    return ("--azure-role", "Reader", "--azure-scope", tenant.identity.partition("/providers")[0])


def application(tenant: Tenant) -> Principal | None:
    """Return the application of the service account, as the tenant has it."""
    principals = tenant.azure.state.principals.values()
    return next((item for item in principals if item.name.startswith("default-app-")), None)


def test_all_phases_and_back(
    tenant: Tenant, kubernetes: Kubernetes, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """All that azwi creates is created; repeating it changes nothing; deletion leaves nothing behind."""
    words = (*NAME, *ISSUER_URL, *scope(tenant), *SIGN_IN, "--service-account-token-expiration", "2h")
    assert podidentity("serviceaccount", "create", *words) == 0
    principal = application(tenant)
    assert principal is not None
    (credential,) = principal.federated.values()
    assert (credential.issuer, credential.subject) == (ISSUER, "system:serviceaccount:default:app")
    account = kubernetes.storage.get("serviceaccounts", "default", "app")
    annotations = {key.rpartition("/")[2]: text for key, text in account["metadata"]["annotations"].items()}
    assert annotations == {
        "client-id": principal.client_id,
        "tenant-id": tenant.azure.settings.tenant_id,
        "service-account-token-expiration": "7200",
    }
    assignments = [item for item in tenant.azure.state.roles.values() if item.principal_id == principal.object_id]
    assert len(assignments) == 1
    capsys.readouterr()
    assert podidentity("serviceaccount", "create", *words, "-o", "json") == 0
    items = {item["phase"]: item["what"] for item in json.loads(capsys.readouterr().out)["items"]}
    assert list(items) == ["aad-application", "service-account", "federated-identity", "role-assignment"]
    assert [text for phase, text in items.items() if phase != "service-account" and "already" not in text] == []
    assert podidentity("serviceaccount", "delete", *words) == 0
    assert application(tenant) is None
    assert [item for item in tenant.azure.state.roles.values() if item.principal_id == principal.object_id] == []
    assert [
        item for item in kubernetes.storage.list("serviceaccounts", "default") if item["metadata"]["name"] == "app"
    ] == []


def test_one_phase_alone_and_phases_left_out(
    tenant: Tenant, kubernetes: Kubernetes, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Phases are chosen with the options that azwi's users know."""
    assert kubernetes.admin_token
    assert podidentity("serviceaccount", "create", "phase", "aad-application", *NAME, *ISSUER_URL, *SIGN_IN) == 0
    assert application(tenant) is not None
    words = (*NAME, *ISSUER_URL, *SIGN_IN, "--skip-phases", "role-assignment,aad-application")
    assert podidentity("serviceaccount", "create", *words) == 0
    phases = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert phases == ["aad-application", "service-account", "federated-identity"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("create",), "--service-account-name is missing"),
        (("create", *NAME), "--azure-scope and --azure-role are missing"),
        (("create", "phase", "nonsense", *NAME), 'there is no phase "nonsense"'),
        (("create", "phase", *NAME), '"phase" is not known here'),
        (("delete", *NAME, "--skip-phases", "x"), 'there is no phase "x"'),
        (("create", "phase", "service-account", *NAME, "--private-key-path", "k"), "give PKCS#12"),
        (
            ("create", "phase", "service-account", *NAME, *SIGN_IN, "--service-account-token-expiration", "5m"),
            "from 1h",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(
    tenant: Tenant,
    kubernetes: Kubernetes,
    podidentity: "Run",
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    sentence: str,
) -> None:
    """The command refuses before it has created anything."""
    assert kubernetes.admin_token
    assert podidentity("serviceaccount", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert application(tenant) is None
