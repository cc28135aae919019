"""What every step of the demo works with: the lab's environment, kubectl, the administrator, waiting, fetching.

A step fails by raising `StepError`; the sentence says what was expected and what came instead.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from podidentity.errors import LabError
from podidentity.lab import control, directory
from podidentity.lab.demo.admin import Admin
from podidentity.lab.demo.narration import Narrator

POLL_SECONDS = 0.2
EXPLAINED_LINES = 6  # the last ones of `explain` hold the reason and the outcome


class StepError(LabError):
    """A step did not come true."""


@dataclass
class Stage:
    """The lab as the demo sees it, and what earlier steps left for later ones (`facts`)."""

    environment: Mapping[str, str]
    narrator: Narrator
    admin: Admin
    repository: Path
    kubectl_program: str
    facts: dict[str, str] = field(default_factory=dict)
    patience_seconds: float = 60.0

    def az(self, command: str, answer: Mapping[str, Any], *keys: str) -> None:
        """Show the `az` command that was stood for, and the parts of the answer that matter."""
        self.narrator.asked(f"az {command}")
        properties = answer.get("properties", {})
        shown = {key: answer.get(key, properties.get(key)) for key in keys}
        self.narrator.answered(json.dumps(shown))

    def kubectl(self, *arguments: str, stdin: str | None = None, show: str | None = None) -> str:
        """Run kubectl against the lab, show it, and give its output."""
        self.narrator.asked(show or f"kubectl {' '.join(arguments)}")
        output = self.quietly(*arguments, stdin=stdin)
        self.narrator.answered(output)
        return output

    def quietly(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl without showing it."""
        done = subprocess.run(
            # Should the demo be killed, kubectl would wait on for a lab that is gone.
            ["setpriv", "--pdeathsig", "KILL", "--", self.kubectl_program, *arguments],
            input=stdin,
            env=dict(self.environment),
            cwd=self.repository,
            capture_output=True,
            text=True,
            timeout=2 * self.patience_seconds,
            check=False,
        )
        if done.returncode != 0:
            raise StepError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, decoded."""
        return json.loads(self.quietly("get", *arguments, "-o", "json"))

    def explain(self, pod: str, *, outcome: int) -> str:
        """Ask `podidentity explain` about a pod, show what it says, and expect its exit status; what it said."""
        self.narrator.asked(f"podidentity explain pod default/{pod}")
        done = subprocess.run(
            [sys.executable, "-m", "podidentity", "explain", "pod", f"default/{pod}"],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.narrator.answered("\n".join(done.stdout.strip().splitlines()[-EXPLAINED_LINES:]) or done.stderr)
        expect(f"exit status of explain for {pod}", expected=outcome, got=done.returncode)
        return done.stdout

    def packets(self) -> dict[str, int]:
        """Packets of pods that passed each node's uplink towards the metadata address, by node."""
        told = control.ask(directory.find(self.facts["lab"]), "GET", "/status")
        counts: dict[str, int] = told["imds_packets"]
        return counts

    def fetch(self, url: str) -> tuple[int, str]:
        """GET a URL inside the lab, through its proxy. Status 0: no answer."""
        try:
            with httpx2.Client(proxy=self.environment["HTTP_PROXY"], trust_env=False, timeout=10) as http:
                answer = http.get(url)
        except httpx2.HTTPError as error:
            return 0, str(error)
        return answer.status_code, answer.text

    def pod(self, name: str, program: str, labels: Mapping[str, str]) -> Any:
        """A pod that runs a Python program once, beside the application."""
        container = {"name": name, "image": "podidentity/lab-tools:1", "command": ["python3", "-c", program]}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name, **labels}},
            "spec": {"restartPolicy": "Never", "nodeName": self.facts["node"], "containers": [container]},
        }

    def bind(self, name: str, identity: Mapping[str, Any]) -> None:
        """Create the AzureIdentity of an identity as Azure answered it, and a binding, both called `name`."""
        for kind, spec in (
            (
                "AzureIdentity",
                {"type": 0, "resourceID": identity["id"], "clientID": identity["properties"]["clientId"]},
            ),
            ("AzureIdentityBinding", {"azureIdentity": name, "selector": name}),
        ):
            metadata = {"name": name, "namespace": "default"}
            obj = {"apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
            self.kubectl("apply", "-f", "-", stdin=json.dumps(obj), show=f"kubectl apply -f -   # the {kind} {name}")

    def events(self, kind: str, name: str) -> list[str]:
        """What the events about an object say, oldest first."""
        involved = f"involvedObject.kind={kind},involvedObject.name={name}"
        return [
            f"{one['reason']}: {one['message']}" for one in self.get("events", "--field-selector", involved)["items"]
        ]

    def assigned_states(self) -> dict[str, str]:
        """The state of each assigned identity, by the name of its AzureIdentity."""
        items = self.get("azureassignedidentities", "-A")["items"]
        return {_identity_of(one): str(one.get("status", {}).get("status", "")) for one in items}

    def run_in_pod(self, name: str, program: str, labels: Mapping[str, str], *, host_network: bool = False) -> str:
        """Start a pod that runs a Python program once, wait for its end, give what it printed."""
        pod = self.pod(name, program, labels)
        pod["spec"]["hostNetwork"] = host_network
        what = "a pod in the node's own network" if host_network else "a pod"
        if labels:
            what += f" with the label {', '.join(f'{key}={value}' for key, value in labels.items())}"
        self.kubectl(
            "create",
            "-f",
            "-",
            stdin=json.dumps(pod),
            show=f"kubectl create -f -   # {name}: {what} that asks for a token",
        )
        self.until(
            f"pod {name} to finish", lambda: self.get("pod", name)["status"].get("phase") in {"Succeeded", "Failed"}
        )
        return self.kubectl("logs", name)

    def rollout(self, *workloads: str) -> None:
        """Wait until workloads (`deployment/mic`) are there in their newest form."""
        for workload in workloads:
            self.kubectl("rollout", "status", workload, f"--timeout={self.patience_seconds:.0f}s")

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for a condition; say what was waited for when it never comes."""
        deadline = time.monotonic() + self.patience_seconds
        while not condition():
            if time.monotonic() > deadline:
                raise StepError(f"waited {self.patience_seconds:.0f} s for {what}")
            time.sleep(POLL_SECONDS)


def _identity_of(assigned: Mapping[str, Any]) -> str:
    return str(assigned["spec"]["azureIdentityRef"]["metadata"]["name"])


def expect(what: str, *, expected: object, got: object) -> None:
    """Compare; the sentence names all three."""
    if expected != got:
        raise StepError(f"{what}: expected {expected!r}, got {got!r}")
