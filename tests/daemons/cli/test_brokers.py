"""`podidentity doctor` and `explain` on a cluster with a broker: real API, real TLS, the issuer on the Internet."""

import json
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from contract.servers import embedded
from daemons.cli.published import ISSUER, NAME, NAMESPACE, Site, grant, install_broker, site
from daemons.cli.tenant import ARM, Tenant, signed_in
from podidentity.broker.lifecycle import MISSING_REASON
from podidentity.timing import render_rfc3339
from podidentity_lab.kubernetes import Kubernetes

if TYPE_CHECKING:
    from daemons.cli.conftest import Cluster, Run

WEBHOOK = Path(__file__).parents[3] / "deploy/webhook/webhook.yaml"
NMI_ALONE = WEBHOOK.parents[1] / "podidentity/broker.yaml"
READER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
Findings = dict[str, list[dict[str, Any]]]


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Kubernetes]:
    """A served cluster whose objects stay as tests write them."""
    with embedded(tmp_path, controllers=False) as (_, cluster):
        yield cluster


@pytest.fixture
def published(kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The cluster's issuer, published as it should be."""
    with site(kubernetes, tmp_path, monkeypatch) as content:
        yield content


@pytest.fixture
def bare(kubernetes: Kubernetes, tmp_path: Path) -> "Cluster":
    """A cluster that is not on Azure: without MIC, NMI and their definitions."""
    from daemons.cli.conftest import Cluster  # noqa: PLC0415  # pytest loads it as a conftest

    return Cluster(kubernetes, tmp_path / "kubeconfig")


def diagnose(podidentity: "Run", capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Findings]:
    """Return doctor's exit status, and its findings by check."""
    status = podidentity("doctor", "--output", "json", *words)
    findings: Findings = {}
    for one in json.loads(capsys.readouterr().out)["findings"]:
        findings.setdefault(one["check"], []).append(one)
    return status, findings


def test_nmi_alone_with_a_broker(
    bare: "Cluster", published: Site, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """What the guide to NMI through the broker installs is whole: nobody misses the definition that is MIC's."""
    assert published.documents
    bare.install(NMI_ALONE)
    install_broker(bare)
    bare.node("n1")
    words = ("--operation-mode=managed", "--forceNamespaced", "--broker=https://b", "--token-file-port=2580")
    bare.daemon("nmi", "n1", *words)
    _, findings = diagnose(podidentity, capsys)
    assert [(one["verdict"], one["what"]) for one in findings["definitions"]] == [("ok", "installed, with conditions")]
    assert [one["verdict"] for one in findings["assigned"]] == ["ok"]
    podidentity("doctor")
    assert "✓ token-file door " in capsys.readouterr().out
    bare.pod("web", "n1", labels={"aadpodidbinding": "reader"})
    assert podidentity("explain", "pod", "web") == 1
    assert "no AzureIdentityBinding" in capsys.readouterr().out


def test_a_healthy_broker_on_a_cluster_without_machines(
    bare: "Cluster", published: Site, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Doctor does not miss MIC, fetches the issuer's documents as Entra ID does, and exits with status 0."""
    assert published.documents
    install_broker(bare)
    grant(bare, READER)
    status, findings = diagnose(podidentity, capsys)
    assert {one["verdict"] for many in findings.values() for one in many} == {"ok"}
    assert set(findings) == {"api server", "broker", "ca", "issuer", "document", "keys", "grants"}
    assert findings["broker"][0]["what"] == f"{NAMESPACE}/{NAME}: 2 of 2 replicas are ready"
    assert status == 0


def test_an_issuer_that_is_not_public(bare: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """On a cluster as kubeadm and kind make it, doctor says that the issuer is not public, and what to run."""
    install_broker(bare)
    status, findings = diagnose(podidentity, capsys)
    (issuer,) = findings["issuer"]
    assert issuer["what"].startswith("the issuer https://kubernetes.default.svc is not public")
    assert "podidentity issuer publish --issuer https://" in issuer["todo"]
    assert status == 1


def test_a_rotated_key_that_was_not_published(
    bare: "Cluster", kubernetes: Kubernetes, published: Site, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Doctor names keys that are not published, and a discovery document that is gone."""
    install_broker(bare)
    kubernetes.rotate_token_key("publish")
    status, findings = diagnose(podidentity, capsys)
    assert "the API server has keys that are not published" in findings["keys"][0]["what"]
    assert status == 1
    published.documents.clear()
    _, findings = diagnose(podidentity, capsys)
    assert f"{ISSUER}/.well-known/openid-configuration: it answers 404" in findings["document"][0]["what"]


def test_a_broker_with_troubles(
    bare: "Cluster", published: Site, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Doctor names missing replicas, a missing ConfigMap, a grant that no broker allows and a missing credential."""
    assert published.documents
    install_broker(bare, "--bundle-namespaces=team-a", f"--allowed-identities={READER}", ready=0)
    grant(bare, READER.replace("a", "b"))
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": NAMESPACE},
        "reason": MISSING_REASON,
        "message": f"Entra ID knows no federated credential for the broker on identity {READER}; create it",
        "involvedObject": {"kind": "ServiceAccount", "namespace": NAMESPACE, "name": NAME},
        "lastTimestamp": render_rfc3339(time.time()),
    }
    bare.storage.create("events", event)
    status, findings = diagnose(podidentity, capsys)
    assert status == 1
    assert "none of 2 replicas is ready" in findings["broker"][0]["what"]
    assert "ConfigMap team-a/podidentity-broker-ca is missing" in findings["ca"][0]["what"]
    assert "no broker's allowedIdentities has it" in findings["grants"][0]["what"]
    (credential,) = findings["credential"]
    assert f"--subject system:serviceaccount:{NAMESPACE}:{NAME}" in credential["todo"]
    assert f"--issuer {ISSUER} " in credential["todo"]


BY_PROXY = {
    "AZURE_CLIENT_ID": READER,
    "AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/token",
    "AZURE_KUBERNETES_TOKEN_PROXY": "https://broker.example",
    "AZURE_KUBERNETES_CA_DATA": "pem",
}
BY_FILE = {
    "IDENTITY_ENDPOINT": f"http://$(PODIDENTITY_HOST_IP):2580/token-file/{READER}",
    "IMDS_ENDPOINT": "http://$(PODIDENTITY_HOST_IP):2580",
}


def add_pod(
    cluster: "Cluster",
    name: str = "web",
    audience: str = "api://AKSIdentityBinding",
    variables: Mapping[str, str] = BY_PROXY,
    path: str = "/var/run/secrets/azure",
) -> None:
    """Add a pod with the variables of a door, those of the token proxy unless others are given."""
    source = {"serviceAccountToken": {"audience": audience, "path": "token"}}
    container = {
        "name": "app",
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "volumeMounts": [{"name": "token", "mountPath": path}],
    }
    cluster.pod(
        name,
        "n1",
        labels={"azure.workload.identity/use": "true"},
        containers=[container],
        volumes=[{"name": "token", "projected": {"sources": [source]}}],
    )
    if "default" not in {account["metadata"]["name"] for account in cluster.storage.list("serviceaccounts", "default")}:
        account = {"metadata": {"name": "default", "namespace": "default"}}
        cluster.storage.create("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", **account})


def test_a_pod_of_the_token_proxy(bare: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """Without the grant `explain` names it and prints a command; with that command's grant no problem is left."""
    bare.node("n1")
    add_pod(bare)
    assert podidentity("explain", "pod", "default/web") == 1
    output = " ".join(capsys.readouterr().out.split())
    assert f"service account default/default may not use identity {READER}" in output
    manifest = json.loads(output.partition("echo '")[2].partition("' | kubectl apply")[0])
    for item in manifest["items"]:
        bare.storage.create(f"{item['kind'].lower()}s.rbac.authorization.k8s.io", item)
    assert podidentity("explain", "pod", "default/web", "-o", "json") == 0
    explanation = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in explanation["findings"]] == ["door", "identity", "grant", "token"]


def test_a_pod_of_the_token_file_door(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Where NMI does not serve the door, `explain` names the flag that NMI lacks."""
    cluster.healthy()
    grant(cluster, READER)
    add_pod(cluster, variables=BY_FILE, path="/var/opt/azcmagent/tokens")
    assert podidentity("explain", "pod", "default/web", "-o", "json") == 1
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert list(findings) == ["door", "nmi", "identity", "grant", "token"]
    assert "--token-file-port=2580" in findings["nmi"]["todo"]


def test_all_pods_of_both_ways(cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """`explain --all` has pods with the label of either way, and one that the webhook did not change."""
    cluster.healthy()
    grant(cluster, READER)
    add_pod(cluster)
    add_pod(cluster, "wrong", "api://AzureADTokenExchange")
    cluster.pod("slipped", "n1", labels={"azure.workload.identity/use": "true"})
    cluster.pod("legacy", "n1", labels={"aadpodidbinding": "reader"})
    assert podidentity("explain", "--all", "-o", "json") == 1
    items = json.loads(capsys.readouterr().out)["items"]
    outcomes = {item["pod"]: (item["outcome"], item["findings"][-1]["check"]) for item in items}
    assert outcomes == {
        "default/legacy": ("problem", "binding"),
        "default/slipped": ("problem", "webhook"),
        "default/web": ("ok", "token"),
        "default/wrong": ("problem", "token"),
    }


@pytest.fixture
def tenant(kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenant]:
    """A tenant that this process is signed in to, and the cluster's issuer, both on the Internet."""
    made = Tenant()
    with site(kubernetes, tmp_path, monkeypatch) as content, signed_in(made, tmp_path, monkeypatch, site=content):
        yield made


@pytest.mark.parametrize("credentials", [0, 19])
def test_the_command_that_doctor_gives_mends_it(
    bare: "Cluster", tenant: Tenant, podidentity: "Run", capsys: pytest.CaptureFixture[str], credentials: int
) -> None:
    """Doctor names a missing credential and the command that creates it, and says if 19 of 20 are used."""
    tenant.fill(credentials)
    install_broker(bare)
    grant(bare, tenant.client_id)
    status, findings = diagnose(podidentity, capsys)
    assert status == 1
    missing, *few = findings["credential"]
    assert missing["what"].endswith(f"for system:serviceaccount:{NAMESPACE}:{NAME} of issuer {ISSUER}")
    words = shlex.split(missing["todo"])
    assert words[:4] == ["az", "identity", "federated-credential", "create"]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    properties = {
        "issuer": options["--issuer"],
        "subject": options["--subject"],
        "audiences": [options["--audiences"]],
    }
    assert tenant.identity.lower().endswith(f"/userassignedidentities/{options['--identity-name']}")
    path = f"{tenant.identity}/federatedIdentityCredentials/{options['--name']}"
    tenant.ask("PUT", f"{ARM}{path}?api-version=2023-01-31", {"properties": properties})
    status, findings = diagnose(podidentity, capsys)
    assert status == 0
    assert findings["credential"][0]["what"].endswith(f"trusts system:serviceaccount:{NAMESPACE}:{NAME}")
    assert [one["what"].partition(" uses ")[2] for one in few] == (
        ["19 of its 20 federated credentials"] if credentials else []
    )
    assert "credential" not in diagnose(podidentity, capsys, "--no-azure")[1]


def test_an_identity_that_azure_does_not_know(
    bare: "Cluster", tenant: Tenant, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """A client ID that Azure does not know is reported; for an application doctor names the command of az."""
    install_broker(bare)
    grant(bare, READER)
    grant(bare, tenant.application_client_id)
    _, findings = diagnose(podidentity, capsys, "--azure")
    verdicts = {one["verdict"]: one for one in findings["credential"]}
    assert "neither an identity in the subscriptions that you see" in verdicts["unknown"]["what"]
    assert f"az ad app federated-credential create --id {tenant.application_client_id}" in verdicts["problem"]["todo"]


def test_nmi_the_webhook_and_the_broker_must_agree_on_the_doors(
    bare: "Cluster", published: Site, podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Doctor reads in their flags another port, another audience, and an account that the broker does not accept."""
    assert published.documents
    install_broker(bare, "--nmi-service-accounts=elsewhere/nmi")
    webhook = next(item for item in yaml.safe_load_all(WEBHOOK.read_text()) if item["kind"] == "Deployment")
    (container,) = webhook["spec"]["template"]["spec"]["containers"]
    container["args"] += ["--token-file-port=2580", "--custom-token-endpoint-audience=api://Mine"]
    bare.storage.create("deployments.apps", webhook)
    bare.node("n1")
    daemon = {"name": "nmi", "image": "podidentity/nmi:2", "args": ["--broker=https://b", "--token-file-port=2590"]}
    bare.pod("nmi-1", "n1", labels={"component": "nmi"}, containers=[daemon])
    status, findings = diagnose(podidentity, capsys)
    assert status == 1
    port, audience = findings["token-file door"]
    assert port["what"].endswith("port 2580 of their node, and NMI serves the door on port 2590")
    assert audience["what"].endswith("tokens of the audience api://Mine, and no broker takes it")
    (word,) = findings["nmi through the broker"]
    assert "--nmi-service-accounts=default/" in word["todo"]
