"""From a Helm release of aad-pod-identity's chart to ours by `helm upgrade`, and back by `helm rollback`.

The tests build on each other, on a cluster without podidentity: two NMIs on one node would want the same ports.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import helm_python
import pytest

import chart
import upstreams
import upstreams_release
from cluster.harness import Cluster, Identity, pod, until
from cluster.programs import BRIEFLY, ONCE
from cluster.test_helm import TIMEOUT_SECONDS, tables
from podidentity_lab.nodes import SCALE_SET

RELEASE = "identity"
NAMESPACE = "migrated"
VALUES = {"nmi": {"allowNetworkPluginKubenet": "false"}}  # strings, as its own values are; the rest is left to defaults
MIC = "app.kubernetes.io/component=mic"
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
    """Helm, for the release's namespace."""
    with helm_python.Config(kubeconfig_path=cluster.lab.variables["KUBECONFIG"], namespace=NAMESPACE) as config:
        yield config


def test_upgraded_to_our_chart(cluster: Cluster, helm: helm_python.Config, kept: Identity) -> None:
    """The workloads are updated in place; the pod from before gets its token, and so does a new one.

    While the predecessor's leader renews its lock, ours never leads. The lock is in `default`, and the release is not.
    """
    before, packets = _uids(cluster), cluster.imds_packets()
    cluster.kubectl("apply", "-f", str(chart.CHART / "crds" / "crd.yaml"))
    with _leading(cluster) as others:
        helm.upgrade(str(chart.CHART), RELEASE, VALUES, namespace=NAMESPACE, wait="legacy", timeout=TIMEOUT_SECONDS)
        until(lambda: _standing_by(cluster), "our MICs stand by")
        assert others.lost == 0
        assert cluster.get("leases", "-A", "--field-selector=metadata.name=" + upstreams.LOCK)["items"] == []
    assert _uids(cluster) == before
    for workload in WORKLOADS:
        container = cluster.get(workload, "-n", NAMESPACE)["spec"]["template"]["spec"]["containers"][0]
        assert {"name": "FORCENAMESPACED", "value": "false"} in container["env"], "the upgrade changed who may use what"
    rules = cluster.get("clusterrole", "aad-pod-identity-nmi")["rules"]
    assert any("secrets" in rule["resources"] for rule in rules), "service principals would end with the upgrade"
    assert _answer(cluster) == ["200", kept.client_id]
    cluster.create(pod("helm-late", ONCE, binding=kept.name, node="node-1"))
    assert json.loads(cluster.result("helm-late")) == ["200", kept.client_id]
    assert cluster.imds_packets() == packets


def test_rolled_back(cluster: Cluster, helm: helm_python.Config, kept: Identity) -> None:
    """Upstream's workloads are back, and objects that only our chart has are gone.

    Pods reach the metadata service again only after our interception is taken away.
    """
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


class _Predecessor(threading.Thread):
    """A stand-in for aad-pod-identity's leader: it renews its record, and counts how often somebody else wrote it."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.lost = 0
        self._cluster = cluster
        self._ends = threading.Event()

    def run(self) -> None:
        """Renew every two seconds, as client-go does, until told to end."""
        beat = 0
        while not self._ends.wait(0 if beat == 0 else 2):
            record = {"holderIdentity": "upstream-mic", "leaseDurationSeconds": 15, "leaderTransitions": 1}
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            annotation = {upstreams.LEADER_ANNOTATION: json.dumps({**record, "acquireTime": now, "renewTime": now})}
            metadata = {"name": upstreams.LOCK, "namespace": "default", "annotations": annotation}
            if beat == 0:
                self._cluster.create({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata})
            else:
                found = self._cluster.get("endpoints", upstreams.LOCK)["metadata"]["annotations"]
                self.lost += json.loads(found[upstreams.LEADER_ANNOTATION])["holderIdentity"] != "upstream-mic"
                change = json.dumps({"metadata": {"annotations": annotation}})
                self._cluster.kubectl("patch", "endpoints", upstreams.LOCK, "--type=merge", "-p", change)
            beat += 1

    def end(self) -> None:
        """Stop renewing."""
        self._ends.set()
        self.join()


@contextlib.contextmanager
def _leading(cluster: Cluster) -> Iterator[_Predecessor]:
    leader = _Predecessor(cluster)
    leader.start()
    try:
        yield leader
    finally:
        leader.end()


def _standing_by(cluster: Cluster) -> bool:
    """Whether both of our MICs have noticed the predecessor's leader."""
    names = [one["metadata"]["name"] for one in cluster.get("pods", "-n", NAMESPACE, "-l", MIC)["items"]]
    logs = [cluster.kubectl("logs", "-n", NAMESPACE, name) for name in names]
    return len(logs) == 2 and all("upstream-mic leads" in log for log in logs)


def _answer(cluster: Cluster, program: str = ONCE) -> list[str]:
    """Return the answer to a request of the pod from before."""
    told: list[str] = json.loads(cluster.kubectl("exec", "helm-kept", "--", "python3", "-c", program))
    return told


def _uids(cluster: Cluster) -> set[str]:
    return {cluster.get(workload, "-n", NAMESPACE)["metadata"]["uid"] for workload in WORKLOADS}
