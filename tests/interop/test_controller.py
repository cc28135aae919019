"""A controller on client-go, unmodified, at the embedded Kubernetes: informers, a work queue, a Lease, protobuf."""

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interop import clients
from interop.stage import COMMAND_SECONDS, Record, Stage
from waiting import until

NAMESPACE = "controller"
LABEL, READY = "example.com/controller", "example.com/ready"
PROTOBUF = "application/vnd.kubernetes.protobuf"
pytestmark = pytest.mark.timeout(900)


class Candidate:
    """A process of the controller that takes part in the election."""

    def __init__(self, process: subprocess.Popen[bytes], base: Path) -> None:
        self._process = process
        self._base = base

    @property
    def log(self) -> str:
        """What it wrote about itself."""
        return self._base.with_suffix(".err").read_text()

    def is_alive(self) -> bool:
        """Whether it runs; a wait for what it does is over when it does not."""
        return self._process.poll() is None

    def stop(self) -> dict[str, Any]:
        """End it as a cluster ends a container; return what it did."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(COMMAND_SECONDS) == 0, self.log
        report: dict[str, Any] = json.loads(self._base.with_suffix(".out").read_text())
        return report


class Objects:
    """The objects of the test, with kubectl, which sends and reads JSON."""

    def __init__(self, stage: Stage) -> None:
        self._lab = stage.lab

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self._lab.kubectl("--namespace", NAMESPACE, *words, stdin=stdin)

    def create(self, name: str, replicas: int) -> None:
        """Create a ConfigMap for the controller."""
        metadata = {"name": name, "labels": {LABEL: name}}
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"replicas": str(replicas)}}
        self.kubectl("create", "-f", "-", stdin=json.dumps(manifest))

    def resize(self, name: str, replicas: int) -> None:
        """Change a ConfigMap's size."""
        patch = {"data": {"replicas": str(replicas)}}
        self.kubectl("patch", "configmap", name, "--type=merge", f"--patch={json.dumps(patch)}")

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object; None when there is none."""
        text = self.kubectl("get", kind, name, "--output=json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def holder(self) -> str | None:
        """Return who has the Lease; empty: nobody, None: there was never anybody."""
        lease = self.find("lease", "controller")
        return None if lease is None else str(lease["spec"].get("holderIdentity") or "")

    def is_ready(self, name: str, replicas: int) -> bool:
        """Whether the Deployment has that size and is ready, and the controller has written so."""
        deployment, owner = self.find("deployment", name), self.find("configmap", name)
        if deployment is None or owner is None:
            return False
        sizes = (deployment["spec"]["replicas"], deployment.get("status", {}).get("readyReplicas", 0))
        return sizes == (replicas, replicas) and owner["metadata"].get("annotations", {}).get(READY) == str(replicas)


@pytest.fixture
def candidate(stage: Stage, client: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[[str], Candidate]]:
    """Start the controller under a name; whatever becomes of the test, none stays."""
    program = client("controller") / "controller"
    with contextlib.ExitStack() as stack:

        def candidate(name: str) -> Candidate:
            base = tmp_path / name
            out, err = (stack.enter_context(base.with_suffix(suffix).open("wb")) for suffix in (".out", ".err"))
            words = [f"--namespace={NAMESPACE}", f"--identity={name}", "--image=podidentity/lab-tools:1"]
            command = ["setpriv", "--pdeathsig=KILL", "--", str(program), *words]
            process = subprocess.Popen(command, env=stage.lab.variables, stdout=out, stderr=err)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return Candidate(process, base)

        yield candidate


@pytest.fixture
def objects(stage: Stage) -> Iterator[Objects]:
    """A namespace of the test's own."""
    stage.lab.kubectl("create", "namespace", NAMESPACE)
    yield Objects(stage)
    stage.lab.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def wait(condition: Callable[[], bool], description: str, process: Candidate) -> None:
    """Wait for what a candidate does; its log is in the error when it ended."""
    until(lambda: condition() or not process.is_alive(), description, COMMAND_SECONDS)
    assert process.is_alive(), process.log


def test_a_controller_in_go_keeps_deployments_and_hands_over(
    objects: Objects, candidate: Callable[[str], Candidate], record: Record
) -> None:
    """It creates what was there and what comes, follows changes, undoes those of others; a second one takes over."""
    version = re.search(r"k8s.io/client-go v(\S+)", (clients.HERE / "controller/go.mod").read_text())
    assert version
    record(
        "Go client-go", version[1], "a controller with protobuf: informers, work queue, create, update, leader election"
    )
    objects.create("early", 1)
    leader = candidate("leader")
    wait(lambda: objects.holder() == "leader", "the first candidate to lead", leader)
    successor = candidate("successor")
    wait(lambda: objects.is_ready("early", 1), "a Deployment for what was there from the start", leader)
    objects.create("late", 1)
    wait(lambda: objects.is_ready("late", 1), "a Deployment for what came later", leader)
    objects.resize("early", 2)
    wait(lambda: objects.is_ready("early", 2), "the Deployment to follow", leader)
    objects.kubectl("scale", "deployment", "early", "--replicas=0")
    wait(lambda: objects.is_ready("early", 2), "somebody else's change to be undone", leader)
    assert objects.holder() == "leader"
    report = leader.stop()
    assert report["led"] is True
    assert (report["created"], report["annotated"]) == (["early", "late"], ["early", "late"])
    assert report["updated"] == ["early"]
    assert report["sent"] == [PROTOBUF]
    wait(lambda: objects.holder() == "successor", "the second candidate to lead", successor)
    objects.resize("early", 1)
    wait(lambda: objects.is_ready("early", 1), "the successor to work", successor)
    objects.kubectl("delete", "configmap", "late")
    wait(lambda: objects.find("deployment", "late") is None, "the Deployment to go with its owner", successor)
    report = successor.stop()
    assert (report["led"], report["updated"], report["sent"]) == (True, ["early"], [PROTOBUF])
    assert "early" not in report["created"]
    assert objects.holder() == ""
