"""`podidentity credential` against the lab's ARM, Graph and Entra ID over real TLS, as a principal and with az."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemons.cli.tenant import Tenant, signed_in
from podidentity.azure import federated

if TYPE_CHECKING:
    from daemons.cli.conftest import Run

ISSUER = ("--issuer", "https://issuer.example.com/")


@pytest.fixture
def tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenant]:
    """A tenant whose owner this process is. No write waits for the pace of ARM, which test_pacing.py tests."""
    monkeypatch.setattr(federated, "WRITE_SECONDS", 0.0)
    made = Tenant()
    with signed_in(made, tmp_path, monkeypatch):
        yield made


def test_an_identity_by_its_client_id(tenant: Tenant, podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """Credentials are created for two service accounts, listed and deleted; a command's repetition changes nothing."""
    owner = ("--identity", tenant.client_id.upper())
    create = ("credential", "create", *owner, *ISSUER, "--service-account", "a/b", "--service-account", "c/d.e")
    assert podidentity(*create) == 0
    assert "trusts system:serviceaccount:a:b of https://issuer.example.com/" in capsys.readouterr().out
    items = {item["properties"]["subject"]: item for item in tenant.credentials()}
    assert items.keys() == {"system:serviceaccount:a:b", "system:serviceaccount:c:d.e"}
    assert all(item["properties"]["issuer"] == ISSUER[1] for item in items.values())
    assert podidentity(*create) == 0
    assert capsys.readouterr().out.count("is there already") == 2
    assert podidentity("credential", "list", *owner) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split() == ["NAME", "ISSUER", "SUBJECT", "AUDIENCE"]
    assert captured.err == "2 of 20 are used\n"
    for words in ("deleted", "was not there"):
        name = items["system:serviceaccount:a:b"]["name"]
        assert podidentity("credential", "delete", "--identity", tenant.identity, "--name", name) == 0
        assert capsys.readouterr().out == f"{name}: {words}\n"
    assert len(tenant.credentials()) == 1


@pytest.mark.parametrize("by_name", [True, False])
def test_an_application(
    tenant: Tenant, podidentity: "Run", capsys: pytest.CaptureFixture[str], *, by_name: bool
) -> None:
    """An application's credentials are read and written through Graph, with the same commands."""
    owner = ("--application", "writer" if by_name else tenant.application_client_id)
    subject = ("--subject", "system:serviceaccount:a:b", "--name", "fic-one")
    assert podidentity("credential", "create", *owner, *ISSUER, *subject) == 0
    capsys.readouterr()
    assert podidentity("credential", "list", *owner, "-o", "json") == 0
    (item,) = json.loads(capsys.readouterr().out)["items"]
    assert item == {
        "name": "fic-one",
        "issuer": ISSUER[1],
        "subject": "system:serviceaccount:a:b",
        "audience": "api://AzureADTokenExchange",
    }
    assert podidentity("credential", "delete", *owner, "--name", "fic-one") == 0
    assert podidentity("credential", "delete", *owner, "--name", "fic-one") == 0
    assert capsys.readouterr().out == "fic-one: deleted\nfic-one: was not there\n"


def test_no_room_is_said_before_the_first_write(
    tenant: Tenant, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """With 19 credentials of 20 in use, a command for two more creates neither."""
    tenant.fill(19)
    accounts = ("--service-account", "a/b", "--service-account", "a/c")
    assert podidentity("credential", "create", "--identity", tenant.identity, *ISSUER, *accounts) == 2
    assert "all 20 credentials are used" in capsys.readouterr().err
    assert len(tenant.credentials()) == 19


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--service-account", "a/b"), "give either --identity or --application"),
        (("--identity", "{id}"), "give either --service-account NAMESPACE/NAME or --subject"),
        (("--identity", "{id}", "--service-account", "ab"), "write NAMESPACE/NAME"),
        (("--identity", "{id}", "--subject", "s"), "--name is missing"),
        (("--identity", "{id}", "--name", "n", "--service-account", "a/b", "--service-account", "a/c"), "leave it out"),
        (("--identity", "nobody", "--service-account", "a/b"), '"nobody" is no resource ID'),
        (("--application", "nobody", "--service-account", "a/b"), '"nobody" is no client ID or name'),
        (("--identity", "{id}", "--service-account", "a/b", "--name", "YWJj="), "is none for a federated credential"),
    ],
)
def test_a_command_line_that_cannot_be_meant(
    tenant: Tenant, podidentity: "Run", capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    """Such a command ends with one sentence and exit status 2, and writes nothing."""
    options = [word.replace("{id}", tenant.identity) for word in words]
    assert podidentity("credential", "create", *ISSUER, *options) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert tenant.credentials() == []


def test_azure_s_refusal_is_one_sentence(
    tenant: Tenant, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """For an identity that does not exist the command prints ARM's refusal; exit status 5."""
    status = podidentity("credential", "list", "--identity", f"{tenant.identity}-gone")
    assert status == 5
    assert "ARM refused GET" in capsys.readouterr().err


AZ = Path.home() / ".cache/podidentity/interop"


@pytest.mark.skipif(not shutil.which("az") and not [*AZ.glob("az-*/bin/az")], reason="needs azure-cli")
def test_the_real_az_signs_in(
    tenant: Tenant,
    podidentity: "Run",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After `az login` the command works with az's tokens for ARM and for Graph."""
    import subprocess  # noqa: PLC0415  # only here

    program: Any = shutil.which("az") or next(AZ.glob("az-*/bin/az"))
    monkeypatch.setenv("PATH", str(Path(program).parent), prepend=":")
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path / "az"))
    owner, tenant_id = tenant.azure.settings.owner, tenant.azure.settings.tenant_id
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name)
    log_in = ["az", "login", "--service-principal", "-u", owner.client_id, "-p", owner.secret, "--tenant", tenant_id]
    done = subprocess.run(log_in, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for option in (("--identity", tenant.client_id), ("--application", "writer")):
        assert podidentity("credential", "create", *option, *ISSUER, "--service-account", "a/b") == 0
    assert capsys.readouterr().out.count("trusts system:serviceaccount:a:b") == 2
