"""The webhook's flags and environment, which are azure-workload-identity's."""

import base64
from collections.abc import Mapping

import pytest
import trustme

from podidentity.cli.flags import parse
from podidentity.cli.webhook import TABLE, settings_of
from podidentity.core.injection.rules import TokenFileDoor
from podidentity.errors import PodIdentityError
from podidentity.webhook.settings import Settings

ENVIRONMENT = {"AZURE_TENANT_ID": "tenant", "POD_NAMESPACE": "azure-workload-identity-system"}
PROXY = {
    "AZURE_KUBERNETES_TOKEN_PROXY": "https://broker.example",
    "AZURE_KUBERNETES_SNI_NAME": "broker.svc",
    "AZURE_KUBERNETES_CA_CONFIGMAP_NAME": "broker-ca",
}
SUFFIX = ("--custom-token-endpoint-annotation-suffix=own", "--custom-token-endpoint-audience=api://own")
PEM = trustme.CA().cert_pem.bytes().decode()


def settings(*arguments: str, environ: Mapping[str, str] = ENVIRONMENT) -> Settings:
    """Return the settings of a command line."""
    return settings_of(parse("podidentity webhook", TABLE, arguments), environ)


def test_what_azure_workload_identitys_manifests_set() -> None:
    """Arguments and variables of azure-workload-identity's manifests are read."""
    result = settings("--log-level=info", "--webhook-cert-dir=/certs", "--metrics-addr=:9")
    assert result.rules.tenant_id == "tenant"
    assert result.rules.authority_host == "https://login.microsoftonline.com/"
    assert (result.probe_port, result.prometheus_port, result.port) == (9440, 9, 9443)
    assert result.rules.proxy is None
    assert result.rules.token_file is None


def test_the_token_proxy() -> None:
    """The proxy has AKS's audience and annotation, unless flags name others."""
    proxy = settings(environ=ENVIRONMENT | PROXY).rules.proxy
    assert proxy is not None
    assert (proxy.url, proxy.server_name, proxy.trust.config_map) == (
        "https://broker.example",
        "broker.svc",
        "broker-ca",
    )
    assert (proxy.audience, proxy.suffix) == ("api://AKSIdentityBinding", "identity-binding")
    own = settings(*SUFFIX, "--token-file-port=2580", environ=ENVIRONMENT | PROXY)
    assert own.rules.proxy is not None
    assert (own.rules.proxy.audience, own.rules.proxy.suffix) == ("api://own", "own")
    assert own.rules.token_file == TokenFileDoor(2580, "api://own")


@pytest.mark.parametrize(
    ("family", "service", "is_ipv6"),
    [
        ("auto", "10.0.0.1", False),
        ("auto", "fd00:10::1", True),
        ("auto", "cluster.hcp.westeurope.azmk8s.io", False),
        ("ipv6", "10.0.0.1", True),
        ("ipv4", "fd00:10::1", False),
    ],
)
def test_the_family_of_the_nodes_addresses(family: str, service: str, *, is_ipv6: bool) -> None:
    """It is that of the API server's Service, unless a flag says otherwise."""
    environ = ENVIRONMENT | {"KUBERNETES_SERVICE_HOST": service}
    door = settings("--token-file-port=2580", f"--token-file-ip-family={family}", environ=environ).rules.token_file
    assert door == TokenFileDoor(2580, is_ipv6=is_ipv6)


@pytest.mark.parametrize("text", [PEM, base64.b64encode(PEM.encode()).decode()])
def test_a_ca_as_text(text: str) -> None:
    """The CA may be PEM, or base64 of PEM."""
    environ = {name: value for name, value in PROXY.items() if "CONFIGMAP" not in name}
    proxy = settings(environ=ENVIRONMENT | environ | {"AZURE_KUBERNETES_CA_DATA": text}).rules.proxy
    assert proxy is not None
    assert proxy.trust.text.strip() == PEM.strip()


def test_a_ca_of_trust_bundles() -> None:
    """ClusterTrustBundles are selected by their signer and by labels."""
    environ = {name: value for name, value in PROXY.items() if "CONFIGMAP" not in name}
    environ |= {
        "AZURE_KUBERNETES_CA_CTB_SIGNER_NAME": "s/x",
        "AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR": '{"matchLabels":{"a":"b"}}',
    }
    proxy = settings(environ=ENVIRONMENT | environ).rules.proxy
    assert proxy is not None
    assert (proxy.trust.signer, proxy.trust.labels) == ("s/x", {"matchLabels": {"a": "b"}})


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        ((), {"POD_NAMESPACE": "x"}),
        ((), {"AZURE_TENANT_ID": "x"}),
        (SUFFIX[:1], ENVIRONMENT | PROXY),
        (SUFFIX, ENVIRONMENT),
        ((SUFFIX[0], "--custom-token-endpoint-audience=api://AzureADTokenExchange"), ENVIRONMENT | PROXY),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_TOKEN_PROXY": "http://broker"}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_TOKEN_PROXY": "https://u@broker"}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_TOKEN_PROXY": "https://[broker"}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_TOKEN_PROXY": "https://broker:99999"}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_TOKEN_PROXY": "https://broker:0"}),
        ((), ENVIRONMENT | {"AZURE_TENANT_ID": "00000000-0000-0000-0000-000000000000"}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_CA_DATA": PEM}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_CA_CONFIGMAP_NAME": ""}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_CA_CONFIGMAP_NAME": "", "AZURE_KUBERNETES_CA_DATA": "?"}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_CA_CONFIGMAP_NAME": "", "AZURE_KUBERNETES_CA_DATA": "AAAA"}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_CA_CONFIGMAP_NAME": "", "AZURE_KUBERNETES_CA_DATA": PEM[:40]}),
        ((), ENVIRONMENT | PROXY | {"AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR": "["}),
        (("--health-addr=here",), ENVIRONMENT),
        (("--tls-min-version=1.1",), ENVIRONMENT),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], environ: dict[str, str]) -> None:
    """Wrong settings are refused at the start: with them SDKs would fail in each pod."""
    with pytest.raises(PodIdentityError, match=r"; |AZURE_KUBERNETES_CA_DATA, "):
        settings(*arguments, environ=environ)
