"""From `deploy/infra` to the namespace of a new installation, by the commands of docs/migrate.

Runs on a cluster without podidentity, and leaves it so.
"""

import json
import subprocess
from collections.abc import Iterator

import pytest

import upstreams
from cluster.harness import REPOSITORY, Cluster, Identity, pod, until
from cluster.programs import ONCE
from cluster.test_helm import tables
from cluster.test_new import NEW, SYSTEM

PAGE = REPOSITORY / "docs/migrate/from-aad-pod-identity.md"
IDLE = "import signal; signal.pause()"


@pytest.fixture(scope="module")
def kept(cluster: Cluster) -> Iterator[Identity]:
    """An installation of `deploy/infra`, and a pod with its identity."""
    cluster.uninstall()
    cluster.install()
    made = cluster.identity("moving")
    cluster.bind(made)
    cluster.create(pod("moving", IDLE, binding=made.name))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/moving", "--timeout=240s")
    until(lambda: answer(cluster) == ["200", made.client_id], "its token")
    yield made
    cluster.kubectl("delete", "-n", SYSTEM, "deployment/mic", "daemonset/nmi", "--cascade=foreground")
    cluster.kubectl("create", "-f", str(NEW / "uninstall.yaml"))
    cluster.roll_out("daemonset/nmi-uninstall", SYSTEM)
    cluster.delete("pod/moving")
    cluster.forget()
    cluster.kubectl("delete", "--ignore-not-found", "-f", str(NEW / "standard.yaml"))


def test_moved_pods_and_machines_keep_what_they_have(cluster: Cluster, kept: Identity) -> None:
    """MIC's record is in the new namespace, no packet passed meanwhile, and the pod's object is the same one."""
    before = cluster.get("azureassignedidentity", f"moving-default-{kept.name}")["metadata"]["uid"]
    record = cluster.get("configmap", "aad-pod-identity-config")["data"]["assigned-by-mic"]
    packets = cluster.imds_packets()
    text = PAGE.read_text()
    commands = text[text.index("kubectl delete deployment/mic --cascade=foreground\nkubectl create namespace") :]
    commands = commands[: commands.index("```")]
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], env=cluster.lab.variables, cwd=REPOSITORY, check=True, timeout=300
    )
    for workload in ("daemonset/nmi", "deployment/mic"):
        cluster.roll_out(workload, SYSTEM)
    until(lambda: answer(cluster) == ["200", kept.client_id], "its token afterwards")
    assert cluster.get("azureassignedidentity", f"moving-default-{kept.name}")["metadata"]["uid"] == before
    until(lambda: cluster.get("lease", upstreams.LOCK)["spec"].get("holderIdentity"), "a leader")
    moved = cluster.get("configmap", "aad-pod-identity-config", "-n", SYSTEM)["data"]["assigned-by-mic"]
    assert json.loads(moved) == json.loads(record)
    left = cluster.get("deployment,daemonset,serviceaccount,poddisruptionbudget")["items"]
    assert [one["metadata"]["name"] for one in left if one["metadata"]["name"] != "default"] == []
    assert cluster.imds_packets() == packets
    assert "podidentity_guard" in tables(cluster, "node-0")


def answer(cluster: Cluster) -> list[str]:
    """Return what the pod gets that asks now: the status, and the client ID of the token."""
    told: list[str] = json.loads(cluster.kubectl("exec", "moving", "--", "python3", "-c", ONCE))
    return told
