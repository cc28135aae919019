"""NMI and MIC as the manifest installs them in a lab: no packet of a pod reaches the metadata service."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.lab.running import Lab, lab, pod
from waiting import until

pytestmark = pytest.mark.root
MANIFEST = Path(__file__).parents[3] / "deploy/infra/deployment-rbac.yaml"
TOKEN = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"


@pytest.fixture(scope="module", params=["routed", "bridge"])
def up(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with NMI on every node: one in a scale set, one a VM."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "guarded", "--virtual-machines", "1", "--network", request.param) as one:
        one.kubectl("create", "-f", str(MANIFEST))
        one.kubectl("rollout", "status", "daemonset/nmi", "--timeout=60s")
        one.kubectl("rollout", "status", "deployment/mic", "--timeout=60s")
        yield one


def test_pods_are_answered_by_nmi_on_every_node(up: Lab) -> None:
    """A pod without the label gets IMDS's own refusal from NMI, and the metadata service hears nothing of it."""
    for node in ("node-0", "node-1"):
        asker = pod(f"asker-{node}", f"curl -sS -m 10 -H Metadata:true '{TOKEN}'")
        asker["spec"]["nodeName"] = node
        assert json.loads(up.run_pod(asker))["error"] == "invalid_request"
    told = json.loads(up.run("status", "--name", "guarded", "--json").stdout)
    assert told["imds_packets"] == {"node-0": 0, "node-1": 0}


def test_a_killed_nmi_is_started_again_and_lets_nothing_through(up: Lab) -> None:
    """Between the death of NMI and its return pods are refused: the metadata service hears nothing."""
    ask = f"while :; do curl -s -m 2 -H Metadata:true '{TOKEN}'; echo; done"
    asker = pod("hammer", ask)
    asker["spec"]["nodeName"] = "node-0"
    up.create(asker)
    until(lambda: "invalid_request" in up.kubectl("logs", "hammer", "--tail=5"), "an answer")
    nmi = next(
        one
        for one in up.get("pods")["items"]
        if one["spec"]["nodeName"] == "node-0" and is_nmi(one["metadata"]["name"])
    )
    name = nmi["metadata"]["name"]
    up.kubectl("delete", "pod", name, "--grace-period=0", "--force")
    up.kubectl("rollout", "status", "daemonset/nmi", "--timeout=60s")
    answers = up.kubectl("logs", "hammer").count("invalid_request")
    until(lambda: up.kubectl("logs", "hammer").count("invalid_request") > answers, "further answers")
    told = json.loads(up.run("status", "--name", "guarded", "--json").stdout)
    assert told["imds_packets"] == {"node-0": 0, "node-1": 0}


def is_nmi(name: str) -> bool:
    """Whether a pod is of the DaemonSet."""
    return name.startswith("nmi-")
