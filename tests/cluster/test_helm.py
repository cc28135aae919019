"""The chart on a real cluster: installed, upgraded and uninstalled by Helm, with nothing left behind.

Runs before anything else is installed: two NMIs on one node would want the same ports.
"""

import json
import subprocess
from collections.abc import Iterator

import helm_python
import pytest

import chart
from cluster.harness import Cluster, Identity, pod, until
from cluster.programs import ONCE
from podidentity_lab.nodes import SCALE_SET
from upstreams import LEADER_ANNOTATION, LOCK

RELEASE = "podidentity"
NAMESPACE = "identity"
TIMEOUT_SECONDS = 300
VALUES = {
    "image": {"repository": "podidentity"},
    "mic": {
        "syncRetryDuration": "30s",
        "immutableUserMSIs": "11111111-0000-4000-8000-000000000000",
        "identityAssignmentReconcileInterval": "2m0s",
        "customCloud": {"enabled": False},
    },
    "nmi": {
        "retryAttemptsForCreated": 16,
        "retryAttemptsForAssigned": 4,
        "findIdentityRetryIntervalInSeconds": 5,
        "blockInstanceMetadata": True,
        "metadataHeaderRequired": True,
    },
}
"""The values, and their types, with which aad-pod-identity's end-to-end suite installs its chart."""


@pytest.fixture(scope="module")
def helm(cluster: Cluster) -> Iterator[helm_python.Config]:
    """Helm, for a namespace of its own."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    with helm_python.Config(kubeconfig_path=cluster.lab.variables["KUBECONFIG"], namespace=NAMESPACE) as config:
        yield config
    cluster.delete(f"namespace/{NAMESPACE}")


@pytest.fixture(scope="module")
def reader(cluster: Cluster) -> Iterator[Identity]:
    """An identity, bound in the namespace `default`."""
    made = cluster.identity("helm-reader")
    cluster.kubectl("apply", "--server-side", "-f", str(chart.CHART / "crds" / "crd.yaml"))
    cluster.bind(made)
    yield made
    cluster.delete("azureidentitybinding/helm-reader", "azureidentity/helm-reader")


def tables(cluster: Cluster, node: str) -> str:
    """Return the netfilter tables and ip rules of a node, as text."""
    enter = ["nsenter", f"--target={cluster.inside()}", "--mount", "--", "nsenter", f"--net=/run/netns/{node}", "--"]
    told = ""
    for command in (["nft", "list", "tables"], ["ip", "rule", "show"]):
        told += subprocess.run([*enter, *command], capture_output=True, text=True, check=True, timeout=60).stdout
    return told


def token_of(cluster: Cluster, name: str, reader: Identity) -> list[str]:
    """Return what a new pod of the identity gets."""
    cluster.create(pod(name, ONCE, binding=reader.name))
    got: list[str] = json.loads(cluster.result(name))
    return got


def test_installed_it_gives_tokens(cluster: Cluster, helm: helm_python.Config, reader: Identity) -> None:
    """`helm install --wait` returns when every part is ready, and a pod gets its own token."""
    helm.install(str(chart.CHART), RELEASE, VALUES, namespace=NAMESPACE, wait="legacy", timeout=TIMEOUT_SECONDS)
    assert "podidentity_guard" in tables(cluster, "node-0")
    assert token_of(cluster, "helm-first", reader) == ["200", reader.client_id]


def health(cluster: Cluster, component: str, port: int) -> dict[str, str]:
    """Return what the probe of each pod of a daemon says, by the pod's name."""
    pods = cluster.get("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={component}")["items"]
    addresses = {one["metadata"]["name"]: one["status"].get("podIP", "") for one in pods}
    return {name: cluster.lab.curl(f"http://{address}:{port}/healthz")[1] for name, address in addresses.items()}


@pytest.mark.usefixtures("helm")
def test_the_lock_names_the_pod_whose_probe_says_active(cluster: Cluster) -> None:
    """The lock is in `default`, wherever the release is. Every other MIC is "Not Active", every NMI "Active"."""

    def one_leads() -> bool:
        annotations = cluster.get("endpoints", LOCK, "-n", "default")["metadata"]["annotations"]
        leader = json.loads(annotations[LEADER_ANNOTATION])["holderIdentity"]
        mics = health(cluster, "mic", 8080)
        return leader in mics and mics == {name: "Active" if name == leader else "Not Active" for name in mics}

    until(one_leads, "the lock's holder, and no other MIC, says that it is active")
    until(lambda: set(health(cluster, "nmi", 8085).values()) == {"Active"}, "each NMI says that it is active")


def test_upgraded_it_goes_on(cluster: Cluster, helm: helm_python.Config, reader: Identity) -> None:
    """A changed value is rolled out to both daemons, and pods get tokens afterwards."""
    values = {"nmi": {"loggingFormat": "json"}, "mic": {"loggingFormat": "json"}}
    helm.upgrade(str(chart.CHART), RELEASE, values, namespace=NAMESPACE, wait="legacy", timeout=TIMEOUT_SECONDS)
    for what in ("daemonset/aad-pod-identity-nmi", "deployment/aad-pod-identity-mic"):
        cluster.roll_out(what, namespace=NAMESPACE)
    log = cluster.kubectl("logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=nmi", "--tail=1")
    assert json.loads(log.splitlines()[0])
    assert token_of(cluster, "helm-second", reader) == ["200", reader.client_id]


def test_uninstalled_nothing_is_left(cluster: Cluster, helm: helm_python.Config, reader: Identity) -> None:
    """Identities on machines, assigned identities, interception and the hooks' objects are gone; the lock is free."""
    cluster.create(pod("helm-left", "import time; time.sleep(3600)", binding=reader.name))
    until(lambda: cluster.get("azureassignedidentities", "-A")["items"], "the pod's assigned identity")
    group = cluster.lab.variables["LAB_NODE_RESOURCE_GROUP"]
    assert cluster.admin.scale_set_identities(group, SCALE_SET)
    helm.uninstall(RELEASE, timeout=TIMEOUT_SECONDS, wait="legacy")
    assert not cluster.admin.scale_set_identities(group, SCALE_SET)
    assert cluster.get("lease", LOCK, "-n", "default")["spec"].get("holderIdentity", "") == ""
    assert cluster.get("azureassignedidentities", "-A")["items"] == []
    for node in ("node-0", "node-1"):
        assert "podidentity" not in tables(cluster, node)
        assert "169.254.169.254" not in tables(cluster, node)
    left = cluster.get("daemonset,job,deployment,serviceaccount,role,secret", "-n", NAMESPACE)["items"]
    assert [one["metadata"]["name"] for one in left if one["metadata"]["name"] != "default"] == []
    cluster.delete("pod/helm-left")
