"""NMI is updated, evicted and killed under load: a pod gets its own token or waits, and never gets anything else."""

import contextlib
import copy
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.harness import Cluster, Identity, pod, until
from cluster.programs import KEEP_ASKING
from system.lab.running import Json, parent_of

NODES = ("node-0", "node-1")
GAP_SECONDS = 0.25
CRASH_SECONDS = 5.0  # enough for Python to start on a busy machine, too short for a container
BUSY = 4  # times the reference


@pytest.fixture(scope="module")
def asking(installed: Cluster) -> Iterator[Identity]:
    """A pod on each node that asks for a token again and again, each time on a new connection."""
    made = installed.identity("asking")
    installed.bind(made)
    for node in NODES:
        installed.create(pod(f"asking-{node}", KEEP_ASKING, binding=made.name, node=node))
    for node in NODES:
        until(_grown(installed, node, f"200 {made.client_id}", 0), f"tokens on {node}")
    yield made
    installed.delete(*(f"pod/asking-{node}" for node in NODES))


def test_rolling_updates_are_not_noticed(installed: Cluster, asking: Identity) -> None:
    """A successor serves before its predecessor stops: no request fails, and no SYN is sent twice.

    A client whose SYN is not answered sends it again after a second. The longest time without a token is also compared
    with that during an update of another workload, which costs the machine as much.
    """
    installed.create(daemon_set("idle"))
    installed.roll_out("daemonset/idle")
    with _nothing_but_tokens(installed, asking, allowed=set()):
        for node in NODES:
            installed.gap(f"asking-{node}")
        installed.kubectl("rollout", "restart", "daemonset/idle")
        installed.roll_out("daemonset/idle")
        reference = max(installed.gap(f"asking-{node}") for node in NODES)
        gaps = []
        for _ in range(3):
            installed.kubectl("rollout", "restart", "daemonset/nmi")
            installed.roll_out("daemonset/nmi")
            gaps.append(max(installed.gap(f"asking-{node}") for node in NODES))
    installed.delete("daemonset/idle")
    assert max(gaps) <= max(GAP_SECONDS, BUSY * reference), (gaps, reference)


def test_from_the_way_before_surge_and_back_refuses_nobody(installed: Cluster, asking: Identity) -> None:
    """An update from an older NMI's manifest and one back to it refuse nobody.

    The older NMI has no supervisor, declares its ports and does not hand its sockets over.
    """
    now = installed.get("daemonset", "nmi")
    with _nothing_but_tokens(installed, asking, allowed=set()):
        for manifest in (as_before(now), clean(now)):
            installed.kubectl("replace", "-f", "-", stdin=json.dumps(manifest))
            installed.roll_out("daemonset/nmi")
            _until_answered(installed, f"200 {asking.client_id}")
    assert "ports" not in installed.get("daemonset", "nmi")["spec"]["template"]["spec"]["containers"][0]


def test_eviction_refuses_nobody(installed: Cluster, asking: Identity) -> None:
    """An NMI that is evicted, as when its node is drained, ends as in an update; the DaemonSet starts another one."""
    with _nothing_but_tokens(installed, asking, allowed=set()):
        before = _nmi_pods(installed)
        for name in before:
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            path = f"/api/v1/namespaces/default/pods/{name}/eviction"
            installed.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        _until_replaced(installed, before)


def test_a_killed_process_makes_pods_wait(installed: Cluster, asking: Identity) -> None:
    """When NMI's process is killed, connections that it was answering are cut, and none is refused.

    Its supervisor keeps the sockets open until it has started again.
    """
    cut = {"ConnectionResetError", "RemoteDisconnected"}
    restarts = sum(installed.restarts("nmi").values())
    with _nothing_but_tokens(installed, asking, allowed=cut):
        for node in NODES:
            installed.gap(f"asking-{node}")
        killed = installed.processes("nmi")
        assert len(killed) == len(NODES)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(installed.processes("nmi") - killed) == len(NODES), "NMI's return")
        _until_answered(installed, f"200 {asking.client_id}")
        gaps = [installed.gap(f"asking-{node}") for node in NODES]
        assert max(gaps) <= CRASH_SECONDS, gaps
    assert sum(installed.restarts("nmi").values()) == restarts  # no container ended


def test_a_killed_container_lets_nothing_through(installed: Cluster, asking: Identity) -> None:
    """When NMI's container is killed, connections are refused or cut, and no packet reaches the metadata service.

    A SIGKILL of the container's first process leaves no time for anything. The successor may answer 503 until it has
    listed the pods.
    """
    cut = {"ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "TimeoutError", "503"}
    with _nothing_but_tokens(installed, asking, allowed=cut):
        killed = installed.processes("nmi")
        assert len(killed) == len(NODES)
        for pid in killed:
            os.kill(parent_of(Path("/proc", str(parent_of(Path("/proc", str(pid)))))), signal.SIGKILL)  # tini
        until(lambda: len(installed.processes("nmi") - killed) == len(NODES), "NMI's return")
        installed.roll_out("daemonset/nmi")


def daemon_set(name: str) -> Json:
    """Return a DaemonSet that does nothing but start what NMI's image has in it."""
    container = {
        "name": "main",
        "image": "podidentity/lab-tools:1",
        "command": ["python3", "-c", "import podidentity.nmi.lifecycle, signal; signal.pause()"],
    }
    labels = {"app": name}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def clean(daemon_set: Json) -> Json:
    """Return an object without the fields that the API server adds."""
    kept = {name: daemon_set["metadata"][name] for name in ("name", "namespace", "labels")}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": kept, "spec": daemon_set["spec"]}


def as_before(daemon_set: Json) -> Json:
    """Return the manifest of an NMI that does not hand its sockets over yet."""
    manifest = copy.deepcopy(clean(daemon_set))
    manifest["spec"]["updateStrategy"] = {"type": "RollingUpdate"}
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    del container["startupProbe"]
    container["command"] = ["tini", "--", "nmi"]
    container["args"].append("--handover-socket=")
    ports = {"imds": 2579, "probe": 8085, "metrics": 9090}
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    return manifest


@contextlib.contextmanager
def _nothing_but_tokens(installed: Cluster, asking: Identity, allowed: set[str]) -> Iterator[None]:
    """Hold that pods on both nodes get their own tokens in the body and after it, or else what is `allowed`."""
    own, packets = f"200 {asking.client_id}", installed.imds_packets()
    before = {node: Counter(installed.counts(f"asking-{node}")) for node in NODES}
    yield
    for node in NODES:
        settled = installed.counts(f"asking-{node}")
        until(_grown(installed, node, own, settled.get(own, 0)), f"tokens on {node} again")
        gained = Counter(installed.counts(f"asking-{node}")) - before[node]
        assert gained[own] > 0
        assert set(gained) - {own} <= allowed, gained
    assert installed.imds_packets() == packets


def _until_answered(installed: Cluster, own: str) -> None:
    """Wait until each of the pods has one more token."""
    for node in NODES:
        until(_grown(installed, node, own, installed.counts(f"asking-{node}").get(own, 0), by=1), f"a token on {node}")


def _grown(installed: Cluster, node: str, own: str, count: int, by: int = 20) -> Callable[[], bool]:
    return lambda: installed.counts(f"asking-{node}").get(own, 0) >= count + by


def _nmi_pods(installed: Cluster) -> list[str]:
    return [one["metadata"]["name"] for one in installed.get("pods", "-l", "component=nmi")["items"]]


def _until_replaced(installed: Cluster, before: list[str]) -> None:
    old = set(before)

    def replaced() -> bool:
        status = installed.get("daemonset", "nmi")["status"]
        return not old & set(_nmi_pods(installed)) and status.get("numberReady") == len(NODES)

    until(replaced, "NMI's successors")
