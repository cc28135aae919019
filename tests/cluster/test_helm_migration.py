"""From a Helm release of aad-pod-identity's chart to ours by `helm upgrade`, and back by `helm rollback`.

One story, in this order, on a cluster without podidentity: two NMIs on one node would want the same ports.
"""

import json
from collections.abc import Iterator

import helm_python
import pytest

import chart
import upstreams
import upstreams_release
from cluster.harness import Cluster, Identity, pod
from cluster.programs import BRIEFLY, ONCE
from cluster.test_helm import TIMEOUT_SECONDS, tables
from podidentity.lab.nodes import SCALE_SET

RELEASE = "identity"
NAMESPACE = "migrated"
VALUES = {"forceNamespaced": "false", "nmi": {"allowNetworkPluginKubenet": "false"}}  # strings, as its own values are
WORKLOADS = ("daemonset/aad-pod-identity-nmi", "deployment/aad-pod-identity-mic")
TOOLS = "podidentity/lab-tools:1"
SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"]
IDLE = "import signal; signal.pause()"


@pytest.fixture(scope="module")
def kept(cluster: Cluster) -> Iterator[Identity]:
    """The release as aad-pod-identity left it, and a pod whose identity is Assigned."""
    cluster.forget()
    cluster.create(*upstreams.definitions())
    names = [f"crd/{one['metadata']['name']}" for one in upstreams.definitions()]
    cluster.kubectl("wait", "--for=condition=Established", *names)
    cluster.kubectl("create", "namespace", NAMESPACE)
    objects = upstreams_release.objects(RELEASE, NAMESPACE, TOOLS, SLEEP)
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    cluster.kubectl("create", "--field-manager=helm", "-f", "-", stdin=json.dumps(listed))
    cluster.create(upstreams_release.secret(RELEASE, NAMESPACE, objects, VALUES), namespace=NAMESPACE)
    identity = cluster.identity("helm-kept")
    cluster.bind(identity)
    whole = [cluster.get(kind, identity.name) for kind in ("azureidentity", "azureidentitybinding")]
    cluster.create(pod("helm-kept", IDLE, binding=identity.name, node="node-0"))
    cluster.create(upstreams.assigned("helm-kept", "node-0", whole[0], whole[1], "Assigned"))
    cluster.admin.assign_to_scale_set(cluster.lab.variables["LAB_NODE_RESOURCE_GROUP"], SCALE_SET, identity.resource_id)
    cluster.pod_ip("helm-kept")
    for workload in WORKLOADS:
        cluster.roll_out(workload, NAMESPACE)
    yield identity
    cluster.delete("pod", "--all")
    cluster.delete(f"namespace/{NAMESPACE}")
    cluster.forget()


@pytest.fixture(scope="module")
def helm(cluster: Cluster, kept: Identity) -> Iterator[helm_python.Config]:  # noqa: ARG001  # there before Helm looks
    """Helm in the release's namespace."""
    with helm_python.Config(kubeconfig_path=cluster.lab.variables["KUBECONFIG"], namespace=NAMESPACE) as config:
        yield config


def test_upgraded_to_our_chart(cluster: Cluster, helm: helm_python.Config, kept: Identity) -> None:
    """The same workloads, updated in place: the pod that was there has its token, and so has a new one."""
    before, packets = _uids(cluster), cluster.imds_packets()
    cluster.kubectl("apply", "-f", str(chart.CHART / "crds" / "crd.yaml"))
    helm.upgrade(str(chart.CHART), RELEASE, VALUES, namespace=NAMESPACE, wait="legacy", timeout=TIMEOUT_SECONDS)
    assert _uids(cluster) == before
    assert _answer(cluster) == ["200", kept.client_id]
    cluster.create(pod("helm-late", ONCE, binding=kept.name, node="node-1"))
    assert json.loads(cluster.result("helm-late")) == ["200", kept.client_id]
    assert cluster.imds_packets() == packets


def test_rolled_back(cluster: Cluster, helm: helm_python.Config, kept: Identity) -> None:
    """Its workloads are back and ours alone are gone; the way to the metadata service is open when we say so."""
    before, packets = _uids(cluster), cluster.imds_packets()
    helm.rollback(RELEASE, version=1, wait="legacy", timeout=TIMEOUT_SECONDS)
    assert _uids(cluster) == before
    for workload in WORKLOADS:
        container = cluster.get(workload, "-n", NAMESPACE)["spec"]["template"]["spec"]["containers"][0]
        assert (container["image"], container["command"]) == (TOOLS, SLEEP)
    left = cluster.get("poddisruptionbudget,role,rolebinding", "-n", NAMESPACE)["items"]
    assert [one["metadata"]["name"] for one in left] == []
    assert _answer(cluster, BRIEFLY)[0] != "200"
    cluster.create(pod("helm-between", BRIEFLY, binding=kept.name, node="node-1"))  # starts while there is no NMI
    assert json.loads(cluster.result("helm-between"))[0] != "200"
    assert cluster.imds_packets() == packets
    cluster.take_interception_away()
    for node in ("node-0", "node-1"):
        assert "podidentity" not in tables(cluster, node)
    _answer(cluster, BRIEFLY)
    assert cluster.imds_packets() > packets, "aad-pod-identity's NMI would be cut off"
    stored = cluster.get("azureassignedidentity", f"helm-kept-default-{kept.name}")
    assert stored["status"]["status"] == "Assigned"


def _answer(cluster: Cluster, program: str = ONCE) -> list[str]:
    """What the pod gets that was there from the beginning."""
    told: list[str] = json.loads(cluster.kubectl("exec", "helm-kept", "--", "python3", "-c", program))
    return told


def _uids(cluster: Cluster) -> set[str]:
    return {cluster.get(workload, "-n", NAMESPACE)["metadata"]["uid"] for workload in WORKLOADS}
