"""The policy that limits NMI's right to patch nodes to its own node's start-up taint, on a real API server.

RBAC can name neither a field nor the caller's own node. Whoever takes over one node has NMI's token there; without the
policy that token could relabel, cordon or open every node of the cluster.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from cluster.harness import REPOSITORY, Cluster, until

MANIFEST = REPOSITORY / "deploy/podidentity/startup-taint.yaml"
NMI = "system:serviceaccount:podidentity-system:aad-pod-id-nmi-service-account"
OWN, OTHER = "node-0", "node-1"
STARTING = {"key": "podidentity.io/starting", "value": "true", "effect": "PreferNoSchedule"}
DEDICATED = {"key": "example.com/dedicated", "effect": "PreferNoSchedule"}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def policy(cluster: Cluster) -> Iterator[None]:
    """The right and the policy, once the API server enforces it."""
    cluster.kubectl("apply", "--validate=strict", "-f", str(MANIFEST))
    numbers = itertools.count()
    until(lambda: patch(cluster, OWN, {"metadata": {"labels": {"probe": str(next(numbers))}}}).is_error, "the policy")
    cluster.kubectl("label", "node", OWN, "probe-")
    yield
    cluster.kubectl("delete", "-f", str(MANIFEST))


@pytest.fixture(autouse=True)
def _tainted(cluster: Cluster, policy: None) -> Iterator[None]:  # noqa: ARG001  # it is there first
    """Both nodes carry the start-up taint and another one."""
    for node in (OWN, OTHER):
        set_taints(cluster, node, [STARTING, DEDICATED])
    yield
    for node in (OWN, OTHER):
        set_taints(cluster, node, None)


def set_taints(cluster: Cluster, node: str, taints: list[Json] | None) -> None:
    """Set a node's taints as an administrator."""
    headers = {"Content-Type": "application/merge-patch+json"}
    answer = cluster.api.patch(f"/api/v1/nodes/{node}", json={"spec": {"taints": taints}}, headers=headers)
    answer.raise_for_status()


def patch(cluster: Cluster, node: str, change: Json, claim: str | None = OWN) -> httpx2.Response:
    """Change a node as NMI of the node `claim`, which its token names since Kubernetes 1.32.

    None for an older token.
    """
    headers = {"Content-Type": "application/merge-patch+json", "Impersonate-User": NMI}
    if claim is not None:
        headers["Impersonate-Extra-authentication.kubernetes.io%2Fnode-name"] = claim
    return cluster.api.patch(f"/api/v1/nodes/{node}", json=change, headers=headers)


@pytest.mark.parametrize("claim", [OWN, None])
def test_its_own_nodes_taint_goes(cluster: Cluster, claim: str | None) -> None:
    """NMI may remove its node's start-up taint, with today's tokens and with those of an older Kubernetes."""
    answer = patch(cluster, OWN, {"spec": {"taints": [DEDICATED]}}, claim)
    assert answer.status_code == 200, answer.text
    assert cluster.get("node", OWN)["spec"]["taints"] == [DEDICATED]


@pytest.mark.parametrize(
    ("node", "change", "sentence"),
    [
        (OTHER, {"spec": {"taints": [DEDICATED]}}, "no node but its own"),
        (OWN, {"spec": {"taints": [STARTING]}}, "take off no taint but podidentity.io/starting"),
        (OWN, {"spec": {"taints": None}}, "take off no taint but podidentity.io/starting"),
        (OWN, {"spec": {"taints": [STARTING, DEDICATED, {"key": "x", "effect": "NoExecute"}]}}, "add no taint"),
        (OWN, {"spec": {"taints": [DEDICATED | {"effect": "NoExecute"}]}}, "add no taint and change none"),
        (OWN, {"spec": {"taints": [DEDICATED], "unschedulable": True}}, "how a node is scheduled"),
        (OWN, {"metadata": {"labels": {"kubernetes.io/hostname": "other"}}}, "labels"),
        (OWN, {"metadata": {"annotations": {"x": "y"}}}, "annotations"),
        (OWN, {"metadata": {"finalizers": ["example.com/x"]}}, "finalizers"),
    ],
)
def test_nothing_else_of_any_node_does(cluster: Cluster, node: str, change: Json, sentence: str) -> None:
    """Changes of other nodes, taints, labels or scheduling are refused with a sentence, and nothing changes."""
    before = cluster.get("node", node)
    answer = patch(cluster, node, change)
    assert answer.status_code == 422, answer.text
    assert sentence in answer.json()["message"]
    after = cluster.get("node", node)
    assert (after["spec"], after["metadata"].get("labels")) == (before["spec"], before["metadata"].get("labels"))


def test_everybody_elses_writes_go_on(cluster: Cluster) -> None:
    """The policy concerns NMI's account only: an administrator still writes nodes."""
    cluster.kubectl("label", "node", OWN, "example.com/x=y", "--overwrite")
    cluster.kubectl("label", "node", OWN, "example.com/x-")
