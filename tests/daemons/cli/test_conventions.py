"""What people who know kubectl expect: contexts, namespaces, formats, exit statuses, completion, a plugin."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import make
from daemons.cli.test_explain import ASSIGNED, BINDINGS, IDENTITIES, assigned
from podidentity.core.model import crd
from podidentity.core.model.identities import AssignedState
from podidentity.core.report import diagnosing

if TYPE_CHECKING:
    from daemons.cli.conftest import Cluster, Run

PROGRAMS = Path(sys.executable).parent
KUBECTL = shutil.which("kubectl") or str(PROGRAMS / "kubectl")
NOT_YET = 6


def waits(cluster: "Cluster") -> None:
    """Add a pod whose identity is not yet on its node's machine."""
    cluster.pod("late", "n1", labels={"aadpodidbinding": "writer"})
    cluster.storage.create(IDENTITIES, crd.render_identity(make.identity("writer")))
    cluster.storage.create(
        BINDINGS, crd.render_binding(make.binding("writer-binding", azure_identity="writer", selector="writer"))
    )
    created = make.assigned(make.pod("late", selector="writer"), make.identity("writer"), AssignedState.CREATED)
    cluster.storage.create(ASSIGNED, crd.render_assigned(created))


def test_not_yet_and_never_are_told_apart(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 6 means that waiting may help, and 1 that it will not, so a script can tell."""
    cluster.healthy()
    waits(cluster)
    cluster.pod("lost", "n1", labels={"aadpodidbinding": "nothing"})
    assert podidentity("explain", "pod", "late") == NOT_YET, capsys.readouterr().out
    assert podidentity("explain", "pod", "lost") == 1
    assert podidentity("explain", "--all") == 1


def test_every_pod_has_a_line(cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """Each line has a pod's outcome and its reason; `wide` adds the node; a namespace narrows the list."""
    cluster.healthy()
    assigned(cluster)
    waits(cluster)
    assert podidentity("explain", "--all") == NOT_YET
    head, late, web = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAMESPACE", "POD", "OUTCOME", "WHY"]
    assert late.split()[:3] == ["default", "late", "wait"]
    assert web.split()[:3] == ["default", "web", "ok"]
    assert "the pod gets a token of AzureIdentity default/reader" in web
    assert podidentity("explain", "--all", "-o", "wide") == NOT_YET
    assert capsys.readouterr().out.splitlines()[0].split("   ")[3].strip() == "NODE"
    assert podidentity("explain", "--all", "-n", "elsewhere") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (
        "",
        "no pod has the label aadpodidbinding or azure.workload.identity/use=true\n",
    )


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_one_document_with_a_version(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str], output: str, load: Any
) -> None:
    """Each command prints one document with apiVersion and kind, as JSON or as YAML."""
    cluster.healthy()
    assigned(cluster)
    for words, kind in [
        (["explain", "pod", "web"], "Explanation"),
        (["explain", "--all"], "ExplanationList"),
        (["doctor"], "Diagnosis"),
    ]:
        assert podidentity(*words, "-o", output) == 0
        document = load(capsys.readouterr().out)
        assert (document["apiVersion"], document["kind"]) == ("podidentity.io/v1", kind)
    assert document["outcome"] == "ok"
    assert {"check", "verdict", "what", "todo"} == set(document["findings"][0])


def test_a_context_is_chosen_by_name(
    cluster: "Cluster", podidentity: "Run", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--context` overrides the current context, and its namespace counts unless `-n` names another."""
    cluster.healthy()
    assigned(cluster)
    path = tmp_path / "kubeconfig"
    config = yaml.safe_load(path.read_text())
    real = config["contexts"][0]["context"]
    config["clusters"].append({"name": "gone", "cluster": {"server": "https://127.0.0.1:9"}})
    config["contexts"] = [
        {"name": "gone", "context": {**real, "cluster": "gone"}},
        {"name": "here", "context": real},
        {"name": "elsewhere", "context": {**real, "namespace": "team"}},
    ]
    path.write_text(yaml.safe_dump({**config, "current-context": "gone"}))
    assert podidentity("explain", "pod", "web", "--context", "here") == 0
    assert podidentity("doctor", "--context", "here", "-o", "wide") == 0
    assert "✓ ok " in capsys.readouterr().out
    assert podidentity("explain", "pod", "web", "--context", "elsewhere") == 4
    assert "there is no pod team/web" in capsys.readouterr().err
    assert podidentity("explain", "pod", "web", "--context", "elsewhere", "-n", "default") == 0
    assert podidentity("doctor", "--context", "nowhere") == 2
    assert 'no context "nowhere"; give one of gone, here, elsewhere' in capsys.readouterr().err
    assert podidentity("doctor") == 4


def test_a_namespace_narrows_what_doctor_looks_at(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `-n` doctor leaves out other namespaces' problems: here, an identity that is not assigned in time."""
    monkeypatch.setattr(diagnosing, "STUCK_SECONDS", -1.0)
    cluster.healthy()
    cluster.storage.create(ASSIGNED, crd.render_assigned(make.assigned(state=AssignedState.CREATED)))
    whole = podidentity("doctor", "-o", "json"), json.loads(capsys.readouterr().out)["findings"]
    part = podidentity("doctor", "-n", "elsewhere", "-o", "json"), json.loads(capsys.readouterr().out)["findings"]
    verdicts = [
        {finding["verdict"] for finding in found if finding["check"] == "assigned"} for _, found in (whole, part)
    ]
    assert (whole[0], part[0], verdicts) == (1, 0, [{"problem"}, {"ok"}])


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program with our programs on its PATH."""
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_kubectl_finds_its_plugin(cluster: "Cluster", tmp_path: Path) -> None:
    """`kubectl podidentity` is the same command, and its help says so."""
    cluster.healthy()
    assigned(cluster)
    kubeconfig = str(tmp_path / "kubeconfig")
    done = run(KUBECTL, "podidentity", "explain", "pod", "web", KUBECONFIG=kubeconfig)
    assert done.returncode == 0, done.stderr
    assert "the pod gets a token" in done.stdout
    assert run(KUBECTL, "podidentity", "-h").stdout.startswith("Usage: kubectl podidentity ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_the_words(shell: str, podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """The script that `completion` prints asks the program for completions, and the program gives them."""
    assert podidentity("completion", shell) == 0
    program = capsys.readouterr().out
    assert f"_PODIDENTITY_COMPLETE={shell}_complete" in program.replace("env ", "")
    asked = {"_PODIDENTITY_COMPLETE": f"{shell}_complete", "COMP_WORDS": "podidentity ex"}
    asked["COMP_CWORD"] = "ex" if shell == "fish" else "1"
    assert "explain" in run("podidentity", **asked).stdout


def test_bash_completes(podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """In a real bash `podidentity explain --out<TAB>` completes to `--output`."""
    assert podidentity("completion", "bash") == 0
    program = capsys.readouterr().out
    script = (
        f"{program}\nCOMP_WORDS=(podidentity explain --out); COMP_CWORD=2\n"
        '_podidentity_completion podidentity; echo "${COMPREPLY[@]}"'
    )
    assert "--output" in run("bash", "--norc", "-c", script).stdout
