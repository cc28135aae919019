"""The two other ways to run: managed mode, where an administrator assigns identities, and namespaced mode.

Each is installed on a cluster without podidentity and removed again, so that these tests run last.
"""

import json
from collections.abc import Iterator

import pytest
import yaml

from cluster.harness import DEPLOY, Cluster, pod, until
from cluster.programs import ONCE
from system.lab.running import Json

ELSEWHERE = "elsewhere"
MANAGED = str(DEPLOY / "managed-mode-deployment.yaml")
SYSTEM = "kube-system"
IMPATIENT = ("--retry-attempts-for-created=1", "--retry-attempts-for-assigned=1")
"""10 s instead of 100 until a request that waits for nothing is refused."""


@pytest.fixture(scope="module")
def bare(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster without podidentity, and with a second namespace."""
    cluster.uninstall()
    cluster.kubectl("create", "namespace", ELSEWHERE)
    until(
        lambda: cluster.try_kubectl("get", "serviceaccount", "default", "-n", ELSEWHERE).returncode == 0, "an account"
    )
    yield cluster
    cluster.delete(f"namespace/{ELSEWHERE}")
    cluster.uninstall()


@pytest.fixture
def managed(bare: Cluster) -> Iterator[Cluster]:
    """NMI alone in kube-system, from the manifest of managed mode."""
    bare.kubectl("apply", "--server-side", "--force-conflicts", "-f", MANAGED)
    bare.roll_out("daemonset/nmi", SYSTEM)
    yield bare
    bare.kubectl("delete", "daemonset", "nmi", "-n", SYSTEM, "--cascade=foreground")
    bare.kubectl("delete", "--ignore-not-found", "-f", MANAGED)


@pytest.fixture
def namespaced(bare: Cluster) -> Cluster:
    """Both daemons in namespaced mode from their first start on."""
    manifests = list(yaml.safe_load_all((DEPLOY / "deployment-rbac.yaml").read_text()))
    flags = {"DaemonSet": ("--forceNamespaced", *IMPATIENT), "Deployment": ("--forceNamespaced",)}
    for one in manifests:
        if one["kind"] in flags:
            one["spec"]["template"]["spec"]["containers"][0]["args"] += flags[one["kind"]]
    bare.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    bare.roll_out("daemonset/nmi")
    bare.roll_out("deployment/mic")
    return bare


def test_managed_mode(managed: Cluster) -> None:
    """A binding serves pods of its own namespace only; IMDS refuses an identity that the machine lacks."""
    packets = managed.imds_packets()
    assigned, missing = managed.identity("managed"), managed.identity("unassigned")
    words = managed.get("node", "node-0")["spec"]["providerID"].split("/")
    managed.admin.assign_to_scale_set(words[6], words[10], assigned.resource_id)
    managed.bind(assigned)
    managed.bind(missing)
    assert _answer(managed, pod("own", ONCE, binding="managed", node="node-0")) == ["200", assigned.client_id]
    assert _answer(managed, pod("other", ONCE, binding="managed", node="node-1"), ELSEWHERE) == ["404", ""]
    assert _answer(managed, pod("early", ONCE, binding="unassigned", node="node-1")) == ["403", ""]
    assert managed.imds_packets() == packets


def test_namespaced_mode(namespaced: Cluster) -> None:
    """A label gives nothing in another namespace until that has an identity and a binding of its own."""
    packets = namespaced.imds_packets()
    here, there = namespaced.identity("here"), namespaced.identity("there")
    namespaced.bind(here, selector="shared")
    assert _answer(namespaced, pod("own", ONCE, binding="shared", node="node-0")) == ["200", here.client_id]
    assert _answer(namespaced, pod("other", ONCE, binding="shared", node="node-0"), ELSEWHERE) == ["404", ""]
    namespaced.bind(there, ELSEWHERE, selector="shared")
    assert _answer(namespaced, pod("later", ONCE, binding="shared"), ELSEWHERE) == ["200", there.client_id]
    assert namespaced.imds_packets() == packets


def _answer(cluster: Cluster, obj: Json, namespace: str = "default") -> list[str]:
    """Return what a new pod is answered: the status, and the client ID of the token."""
    name = obj["metadata"]["name"]
    cluster.create(obj, namespace=namespace)
    told: list[str] = json.loads(cluster.finished(name, namespace))
    cluster.delete(f"pod/{name}", "-n", namespace)
    return told
