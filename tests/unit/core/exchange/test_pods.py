"""What a node's NMI may ask for."""

import dataclasses

import pytest

from podidentity.core.exchange.callers import Caller
from podidentity.core.exchange.pods import NodeDaemon, locate, node_daemon, pod_caller
from podidentity.core.exchange.requests import PodReference, Refusal
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.snapshot import Pod

NMI = Caller("podidentity", "nmi", "system:serviceaccount:podidentity:nmi", pod="nmi-1", pod_uid="uid-1", node="node-1")
DAEMON = NodeDaemon(NMI, "node-1")
REFERENCE = PodReference("shop", "cart-0", "uid-2")
POD = Pod(ObjectKey("shop", "cart-0"), "uid-2", "node-1", "Running", service_account="cart")
OWN_POD = Pod(ObjectKey("podidentity", "nmi-1"), "uid-1", "node-1", "Running")


def test_nmi_is_known_by_its_service_account() -> None:
    """A caller whose service account is not NMI's is refused with 403."""
    assert node_daemon(NMI, {"podidentity/nmi"}) == DAEMON
    refusal = node_daemon(NMI, frozenset())
    assert isinstance(refusal, Refusal)
    assert refusal.status == 403


def test_the_node_is_that_of_its_pod() -> None:
    """When NMI's token does not name its node, the node is that of NMI's pod; without such a pod the answer is 401."""
    unplaced = NodeDaemon(NMI._replace(node=""), "")
    assert locate(unplaced, OWN_POD) == unplaced._replace(node="node-1")
    for pod in (None, dataclasses.replace(OWN_POD, uid="another"), dataclasses.replace(OWN_POD, node="")):
        refusal = locate(unplaced, pod)
        assert isinstance(refusal, Refusal)
        assert refusal.status == 401


def test_a_pod_is_judged_as_its_service_account() -> None:
    """The caller is the pod's service account, with the groups that the API server gives it."""
    caller = pod_caller(DAEMON, REFERENCE, POD)
    assert isinstance(caller, Caller)
    assert (caller.key, caller.username) == ("shop/cart", "system:serviceaccount:shop:cart")
    assert caller.groups == ("system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated")
    assert (caller.pod, caller.pod_uid, caller.node) == ("cart-0", "uid-2", "node-1")
    unnamed = pod_caller(DAEMON, REFERENCE, dataclasses.replace(POD, service_account=""))
    assert isinstance(unnamed, Caller)
    assert unnamed.key == "shop/default"
    assert REFERENCE.key == "shop/cart-0"


@pytest.mark.parametrize(
    ("pod", "status"),
    [
        (None, 404),
        (dataclasses.replace(POD, uid="another"), 404),
        (dataclasses.replace(POD, node="node-2"), 403),
        (dataclasses.replace(POD, node=""), 403),
        (dataclasses.replace(POD, phase="Succeeded"), 403),
    ],
)
def test_other_pods_are_refused(pod: Pod | None, status: int) -> None:
    """A pod that is gone, replaced, on another node or at its end is refused."""
    refusal = pod_caller(DAEMON, REFERENCE, pod)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
