"""A cluster that never had aad-pod-identity: the manifests of a new installation, and what they prevent.

Runs before anything else is installed: two NMIs on one node would want the same ports. Leaves nothing behind.
"""

import json
from collections.abc import Iterator

import pytest

import upstreams
from cluster.harness import REPOSITORY, Cluster, Identity, pod
from cluster.programs import BRIEFLY, ONCE
from cluster.test_helm import tables

NEW = REPOSITORY / "deploy/podidentity"
SYSTEM = "podidentity-system"
TEAM = "new-team"


@pytest.fixture(scope="module")
def identity(cluster: Cluster) -> Iterator[Identity]:
    """Podidentity installed as in README, and an identity with its binding in a team's namespace."""
    cluster.kubectl("apply", "--server-side", "-f", str(NEW / "standard.yaml"))
    for workload in ("daemonset/nmi", "deployment/mic"):
        cluster.roll_out(workload, SYSTEM)
    cluster.kubectl("create", "namespace", TEAM)
    made = cluster.identity("new-reader")
    cluster.bind(made, namespace=TEAM)
    yield made
    cluster.kubectl("delete", "--ignore-not-found", "-f", str(NEW / "standard.yaml"))
    cluster.delete(f"namespace/{TEAM}", f"endpoints/{upstreams.LOCK}", f"lease/{upstreams.LOCK}")


def test_a_pod_gets_the_identity_of_its_own_namespace(cluster: Cluster, identity: Identity) -> None:
    """A pod gets its token; MIC's lock is in `default`, where the MICs of all installations look."""
    cluster.create(pod("own", ONCE, binding=identity.name), namespace=TEAM)
    assert json.loads(cluster.finished("own", TEAM)) == ["200", identity.client_id]
    assert cluster.get("lease", upstreams.LOCK, "-n", "default")["spec"]["holderIdentity"].startswith("mic-")
    assert cluster.get("configmap", "aad-pod-identity-config", "-n", SYSTEM)["data"]


@pytest.mark.parametrize("labels", [{}, {"app": "mic", "component": "mic"}], ids=["stranger", "mic"])
def test_a_pod_of_another_namespace_gets_none(cluster: Cluster, identity: Identity, labels: dict[str, str]) -> None:
    """A pod of another namespace gets no token by the binding's label, nor by MIC's labels.

    An exception of aad-pod-identity lets pods with MIC's labels through.
    """
    packets = cluster.imds_packets()
    name = f"other-{len(labels)}"
    stranger = pod(name, BRIEFLY, binding=identity.name)
    stranger["metadata"]["labels"] |= labels
    cluster.create(stranger)
    assert json.loads(cluster.result(name))[0] != "200"
    assert cluster.imds_packets() == packets


def test_uninstalled_as_its_page_says(cluster: Cluster, identity: Identity) -> None:
    """The lock is free, and the interception is gone from every node."""
    cluster.kubectl("delete", "-n", TEAM, f"azureidentitybinding/{identity.name}")
    cluster.kubectl("delete", "-n", SYSTEM, "deployment", "mic", "--cascade=foreground")
    cluster.kubectl("delete", "-n", SYSTEM, "daemonset", "nmi", "--cascade=foreground")
    cluster.kubectl("create", "-f", str(NEW / "uninstall.yaml"))
    cluster.roll_out("daemonset/nmi-uninstall", SYSTEM)
    cluster.kubectl("delete", "-f", str(NEW / "uninstall.yaml"))
    for node in ("node-0", "node-1"):
        assert "podidentity" not in tables(cluster, node)
    assert cluster.get("lease", upstreams.LOCK, "-n", "default")["spec"].get("holderIdentity", "") == ""
