"""`podidentity explain pod` and `podidentity doctor` against a real HTTP API."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import make
from podidentity.core.model import crd
from podidentity.core.model.identities import AssignedState
from podidentity.core.report import diagnosing

if TYPE_CHECKING:
    from daemons.cli.conftest import Cluster, Run

IDENTITIES = "azureidentities.aadpodidentity.k8s.io"
BINDINGS = "azureidentitybindings.aadpodidentity.k8s.io"
ASSIGNED = "azureassignedidentities.aadpodidentity.k8s.io"


def assigned(cluster: "Cluster") -> None:
    """Add a pod with an identity that is assigned to it."""
    cluster.pod("web", "n1", labels={"aadpodidbinding": "reader"})
    cluster.storage.create(IDENTITIES, crd.render_identity(make.identity()))
    cluster.storage.create(BINDINGS, crd.render_binding(make.binding()))
    cluster.storage.create(ASSIGNED, crd.render_assigned(make.assigned()))


def test_a_healthy_pod_is_explained(cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """The last line says of which identity the pod gets a token; exit status 0."""
    cluster.healthy()
    assigned(cluster)
    assert podidentity("explain", "pod", "default/web") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("✓ pod")
    assert "the pod gets a token of AzureIdentity default/reader" in lines[-1]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_no_token_without_nmi_on_the_pod_s_node(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str], *, elsewhere: bool
) -> None:
    """Where NMI is deleted or runs on other nodes only, the command says that the pod gets no token; exit status 1."""
    cluster.node("n1")
    cluster.node("n2")
    cluster.daemon("mic", "n1")
    if elsewhere:
        cluster.daemon("nmi", "n2")
    assigned(cluster)
    assert podidentity("explain", "pod", "default/web") == 1
    printed = capsys.readouterr().out
    assert "no pod of NMI is ready on node n1" in printed
    assert "the pod gets no token until NMI is ready on node n1" in " ".join(printed.split())


def test_programs_read_json(cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """`--output json` prints one document, whose last finding is a label that was mistyped."""
    cluster.healthy()
    cluster.pod("web", "n1", labels={"aadpodidbinding": "raeder"})
    cluster.storage.create(BINDINGS, crd.render_binding(make.binding()))
    assert podidentity("explain", "pod", "default/web", "--output", "json") == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["apiVersion"], document["kind"]) == ("podidentity.io/v1", "Explanation")
    assert (document["pod"], document["outcome"]) == ("default/web", "problem")
    last = document["findings"][-1]
    assert last["check"] == "binding"
    assert last["verdict"] == "problem"
    assert "did you mean reader?" in last["todo"]


def test_what_the_daemons_were_told_counts(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Managed mode and the allow-list are read from the daemons' command lines."""
    cluster.node("n1")
    cluster.daemon("nmi", "n1", "--operation-mode=managed", "--forceNamespaced", "--namespace-allow-list")
    assigned(cluster)
    assert podidentity("explain", "pod", "default/web") == 1
    assert "namespace default is not allowed the identity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        ("a/b/c", '"a/b/c" names no pod; write NAME or NAMESPACE/NAME'),
        ("default/gone", "there is no pod default/gone"),
        ("gone", "there is no pod default/gone"),
    ],
)
def test_bad_input_is_one_sentence(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str], pod: str, words: str
) -> None:
    """What is no pod's name, or a pod that does not exist, gets one sentence and no traceback."""
    cluster.node("n1")
    assert podidentity("explain", "pod", pod) in {2, 4}
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert len(error.splitlines()) == 1


def test_no_cluster_is_one_sentence(
    podidentity: "Run", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A kubeconfig that does not exist gets a sentence with its name; exit status 2."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "gone"))
    assert podidentity("doctor") == 2
    assert "gone does not exist; correct the path" in capsys.readouterr().err


def findings(podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Return doctor's exit status, and its findings by check."""
    status = podidentity("doctor", "--output", "json")
    found: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(capsys.readouterr().out)["findings"]:
        found.setdefault(one["check"], []).append(one)
    return status, found


def test_a_healthy_installation(cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """With our own manifest both service accounts have all rights that they need; exit status 0."""
    cluster.healthy()
    assigned(cluster)
    status, found = findings(podidentity, capsys)
    assert {one["verdict"] for many in found.values() for one in many} == {"ok"}
    assert [one["what"] for one in found["role"]] == ["MIC may do all it needs", "NMI may do all it needs"]
    assert found["leader"][0]["what"] == "mic-n1"
    assert status == 0


def test_an_installation_with_troubles(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without NMI, a role without a right, a stuck assigned identity: each is named; exit status 1."""
    cluster.healthy()
    cluster.node("n2")
    cluster.storage.create(ASSIGNED, crd.render_assigned(make.assigned(state=AssignedState.CREATED)))
    monkeypatch.setattr(diagnosing, "STUCK_SECONDS", -1.0)

    def forbid(obj: Any) -> None:
        obj["rules"] = [rule for rule in obj["rules"] if "nodes" not in rule["resources"]]

    cluster.storage.change("clusterroles.rbac.authorization.k8s.io", None, "aad-pod-id-mic-role", forbid)
    status, found = findings(podidentity, capsys)
    assert status == 1
    assert "not ready on n2" in found["nmi"][0]["what"]
    assert "MIC may not list nodes, list pods, watch nodes, watch pods" in found["role"][0]["what"]
    assert "1 of 1 not yet Assigned: default/" in found["assigned"][0]["what"]


def test_a_startup_taint_that_stays_is_told(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Doctor says that a node keeps the start-up taint because NMI's role does not allow NMI to remove it."""
    cluster.node("n1")
    cluster.daemon("nmi", "n1", "--startup-taint=podidentity.io/starting")
    assert "startup taint" in findings(podidentity, capsys)[1]

    def taint(obj: Any) -> None:
        obj["spec"]["taints"] = [{"key": "podidentity.io/starting", "effect": "NoSchedule"}]

    cluster.storage.change("nodes", None, "n1", taint)
    status, found = findings(podidentity, capsys)
    assert status == 1
    assert found["startup taint"][0]["what"] == (
        "the start-up taint podidentity.io/starting is still on n1, though NMI is ready there: "
        "its role does not allow it to take that away"
    )
    assert "NMI may not patch nodes" in found["role"][0]["what"]


def test_an_empty_cluster(podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """On a cluster where nothing is installed doctor says so; exit status 1."""
    status, found = findings(podidentity, capsys)
    assert status == 1
    assert "not installed" in found["definitions"][0]["what"]
