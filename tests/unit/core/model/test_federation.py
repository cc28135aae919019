"""What Azure takes as a federated credential, and the commands that create one."""

import shlex
from dataclasses import replace

import pytest

import make
from podidentity.core.model import federation
from podidentity.core.model.federation import FederatedCredential

ONE = FederatedCredential(
    "fic-one", "https://issuer.example/", "system:serviceaccount:a:b", "api://AzureADTokenExchange"
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "ab"}, 'the name "ab" is none'),
        ({"name": "-abc"}, "the first a letter or digit"),
        ({"name": "a" * 121}, "3 to 120"),
        ({"name": "YWJj=="}, "is none for a federated credential"),
        ({"issuer": "http://issuer.example"}, "is no https address"),
        ({"subject": ""}, "the subject must have 1 to 600 characters"),
        ({"audience": "a" * 601}, "the audience must have"),
    ],
)
def test_what_azure_refuses_is_refused_before_it_is_asked(changes: dict[str, str], words: str) -> None:
    """A credential that Azure would refuse is refused with a sentence for the rule."""
    refusal = federation.refuse(replace(ONE, **changes), ())
    assert refusal is not None
    assert words in refusal


def test_twenty_fit_and_the_next_does_not() -> None:
    """An identity has at most twenty credentials; one that exists may be written again."""
    present = [replace(ONE, name=f"fic-{number}", subject=f"subject-{number}") for number in range(20)]
    assert federation.refuse(ONE, present[:19]) is None
    assert federation.refuse(present[3], present) is None
    refusal = federation.refuse(ONE, present)
    assert refusal is not None
    assert "all 20 credentials are used" in refusal


def test_issuer_and_subject_are_unique() -> None:
    """The same issuer and subject under another name are refused; a subject in another case is another subject."""
    assert '"other" is already there' in (federation.refuse(ONE, [replace(ONE, name="other")]) or "")
    assert federation.refuse(ONE, [replace(ONE, name="other", subject=ONE.subject.upper())]) is None


def test_names_differ_by_cluster_and_always_fit() -> None:
    """Names of credentials differ by cluster, and fit although a service account may have dots and 253 characters."""
    names = {federation.name_of(issuer, "team-a", "x." * 100) for issuer in ("https://one", "https://two")}
    assert len(names) == 2
    for name in names:
        assert federation.refuse(replace(ONE, name=name), ()) is None


def test_commands_name_everything() -> None:
    """Commands name every value, and can be pasted into a shell as they are."""
    command = federation.creation_command(ONE, "c", make.identity_id("reader"))
    assert shlex.split(command)[:4] == ["az", "identity", "federated-credential", "create"]
    assert f"--subscription {make.SUBSCRIPTION} --resource-group apps --identity-name reader --name fic-one" in command
    application = shlex.split(federation.creation_command(ONE, "c", None))
    assert application[:6] == ["az", "ad", "app", "federated-credential", "create", "--id"]
    assert '"audiences": ["api://AzureADTokenExchange"]' in application[-1]
    assert "--identity-name IDENTITY --name fic-one" in federation.unplaced_command(ONE)


def test_the_form_of_an_exchange() -> None:
    """The form has the fields that Entra ID documents for a federated credential, and no others."""
    assert federation.exchange_form("c", "https://vault.azure.net/.default", "jwt") == {
        "client_id": "c",
        "scope": "https://vault.azure.net/.default",
        "grant_type": "client_credentials",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": "jwt",
    }
