"""The broker's flags and environment."""

from collections.abc import Mapping

import pytest

from podidentity.broker.settings import Settings
from podidentity.cli.broker import TABLE, settings_of
from podidentity.cli.flags import parse
from podidentity.errors import ConfigurationError, UsageError

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
ENVIRONMENT = {"AZURE_TENANT_ID": TENANT, "POD_NAMESPACE": "broker"}


def settings(*arguments: str, environ: Mapping[str, str] = ENVIRONMENT) -> Settings:
    """Return the settings of a command line."""
    return settings_of(parse("podidentity broker", TABLE, arguments), environ)


def test_a_pod_needs_nothing_but_its_environment() -> None:
    """The broker runs with the variables of the manifest alone."""
    result = settings()
    assert (result.tenant_id, result.namespace, result.name) == (TENANT, "broker", "podidentity-broker")
    assert result.authority == "https://login.microsoftonline.com"
    assert result.identities == frozenset()
    assert not result.unbound_tokens


def test_flags_win_over_the_environment() -> None:
    """Flags win over variables; IDs are lower-case in the settings, however they were written."""
    result = settings(
        f"--tenant-id={CLIENT.upper()}", "--namespace=other", f"--allowed-identities={CLIENT.upper()}, {TENANT}"
    )
    assert (result.tenant_id, result.namespace) == (CLIENT, "other")
    assert result.identities == {CLIENT, TENANT}


def test_a_list_grows_when_it_is_given_again() -> None:
    """The guides patch the manifest by adding arguments: what was there before stays."""
    words = ("--bundle-namespaces=team-a,team-b", "--name=x", "--name=y", "--bundle-namespaces", "podidentity-system")
    result = settings(*words)
    assert result.bundle_namespaces == ("team-a", "team-b", "podidentity-system")
    assert result.name == "y"
    assert settings().bundle_namespaces == ()


@pytest.mark.parametrize(
    ("arguments", "environ", "authority"),
    [
        (["--cloud=AzureChinaCloud"], {}, "https://login.chinacloudapi.cn"),
        ([], {"AZURE_ENVIRONMENT": "AzureUSGovernmentCloud"}, "https://login.microsoftonline.us"),
        ([], {"AZURE_AUTHORITY_HOST": "https://login.example/"}, "https://login.example"),
    ],
)
def test_the_cloud(arguments: list[str], environ: dict[str, str], authority: str) -> None:
    """The cloud is chosen by its name, or by the address of its Entra ID."""
    assert settings(*arguments, environ=ENVIRONMENT | environ).authority == authority


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        ([], {"POD_NAMESPACE": "broker"}),
        (["--tenant-id=contoso.com"], ENVIRONMENT),
        ([], {"AZURE_TENANT_ID": TENANT}),
        (["--allowed-identities=reader"], ENVIRONMENT),
        (["--port=0"], ENVIRONMENT),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], environ: dict[str, str]) -> None:
    """Missing and malformed settings are refused before anything has started."""
    with pytest.raises(UsageError):
        settings(*arguments, environ=environ)


@pytest.mark.parametrize(
    "environ", [{"AZURE_ENVIRONMENT": "Mars"}, {"AZURE_AUTHORITY_HOST": "http://login.microsoftonline.com"}]
)
def test_an_entra_that_cannot_be_trusted_is_refused(environ: dict[str, str]) -> None:
    """An unknown cloud, and an address without TLS, are refused."""
    with pytest.raises(ConfigurationError):
        settings(environ=ENVIRONMENT | environ)
