"""The real NMI takes its node's start-up taint off, once it intercepts."""

from pathlib import Path
from typing import Any

from system.redirect.network import Network
from system.redirect.node import Node
from waiting import until

PATH = "/api/v1/nodes/n1"
OTHER = {"key": "example.com/other", "effect": "NoExecute"}
TAINTED: dict[str, Any] = {
    "metadata": {"name": "n1"},
    "spec": {"taints": [{"key": "podidentity.io/starting", "effect": "NoSchedule"}, OTHER]},
}


def test_the_taint_goes_once_the_interception_stands(tmp_path: Path) -> None:
    """By flag and role, through the daemon's own readiness; other taints stay."""
    with Network("routed") as network, Node(network, tmp_path) as node:
        node.api.call(node.api.served.put, PATH, TAINTED)
        node.start("--startup-taint=podidentity.io/starting")
        until(lambda: node.api.served.objects[PATH]["spec"]["taints"] == [OTHER], "the taint is gone")
        assert node.page("/healthz") == (200, "Active")
