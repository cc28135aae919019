"""NMI comes and goes under load from pods of both nodes: a pod gets its own token or waits, and never anything else."""

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from cluster.harness import Cluster, Identity, pod, until
from cluster.programs import KEEP_ASKING

NODES = ("node-0", "node-1")


@pytest.fixture(scope="module")
def asking(installed: Cluster) -> Iterator[Identity]:
    """A pod on each node that keeps asking on new connections."""
    made = installed.identity("asking")
    installed.bind(made)
    for node in NODES:
        installed.create(pod(f"asking-{node}", KEEP_ASKING, binding=made.name, node=node))
    for node in NODES:
        until(_grown(installed, node, f"200 {made.client_id}", 0), f"tokens on {node}")
    yield made
    installed.delete(*(f"pod/asking-{node}" for node in NODES))


def test_ten_rolling_updates_refuse_nobody(installed: Cluster, asking: Identity) -> None:
    """Every node's NMI is replaced ten times: each request is answered with the pod's own token, none is refused.

    Each time they were answered before the next one: a client that is held back asks again after 1, 3, 7, 15 ... s, and
    on a slow machine could find the way closed each time.
    """
    own = f"200 {asking.client_id}"
    probe = {"name": "nmi", "readinessProbe": {"periodSeconds": 1}}  # half as long until the kubelet looks
    everywhere = {
        "updateStrategy": {"rollingUpdate": {"maxUnavailable": "100%"}},
        "template": {"spec": {"containers": [probe]}},
    }
    with _nothing_but_tokens(installed, asking, allowed=set()):
        installed.kubectl("patch", "daemonset", "nmi", "-p", json.dumps({"spec": everywhere}))
        installed.roll_out("daemonset/nmi")
        for _ in range(9):
            _until_answered(installed, own)
            installed.kubectl("rollout", "restart", "daemonset/nmi")
            installed.roll_out("daemonset/nmi")


def test_eviction_refuses_nobody(installed: Cluster, asking: Identity) -> None:
    """A drained node's NMI goes as in an update; its DaemonSet brings it back."""
    with _nothing_but_tokens(installed, asking, allowed=set()):
        before = _nmi_pods(installed)
        for name in before:
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            path = f"/api/v1/namespaces/default/pods/{name}/eviction"
            installed.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        _until_replaced(installed, before)


def test_a_killed_nmi_lets_nothing_through(installed: Cluster, asking: Identity) -> None:
    """SIGKILL gives nobody time for anything: connections are refused or cut, and no packet passes.

    The successor answers 503 until it has listed the pods.
    """
    cut = {"ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "TimeoutError", "503"}
    with _nothing_but_tokens(installed, asking, allowed=cut):
        killed = installed.processes("nmi")
        assert len(killed) == len(NODES)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(installed.processes("nmi") - killed) == len(NODES), "NMI's return")
        installed.roll_out("daemonset/nmi")


@contextlib.contextmanager
def _nothing_but_tokens(installed: Cluster, asking: Identity, allowed: set[str]) -> Iterator[None]:
    """Over the body, pods on both nodes get their own tokens, afterwards too; else only what is `allowed`."""
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
    """Wait for an answer to each of the pods."""
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
