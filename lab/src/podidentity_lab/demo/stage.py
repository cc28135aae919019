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
from podidentity_lab import control, directory
from podidentity_lab.demo.admin import Admin
from podidentity_lab.demo.narration import Narrator

POLL_SECONDS = 0.2
EXPLAINED_LINES = 6  # the last ones of `explain` hold the reason and the outcome


class StepError(LabError):
    """Something that a step expects did not happen."""


@dataclass
class Stage:
    """The lab as the demo sees it, and what earlier steps left for later ones (`facts`)."""

    environment: Mapping[str, str]
    narrator: Narrator
    admin: Admin
    files: Path
    kubectl_program: str
    facts: dict[str, str] = field(default_factory=dict)
    patience_seconds: float = 60.0

    def az(self, command: str, answer: Mapping[str, Any], *keys: str) -> None:
        """Show the `az` command whose request was sent, and the parts of the answer that matter."""
        self.narrator.show_command(f"az {command}")
        properties = answer.get("properties", {})
        excerpt = {key: answer.get(key, properties.get(key)) for key in keys}
        self.narrator.show_answer(json.dumps(excerpt))

    def kubectl(self, *arguments: str, stdin: str | None = None, show: str | None = None) -> str:
        """Run kubectl against the lab, show the command and its output, and return the output."""
        self.narrator.show_command(show or f"kubectl {' '.join(arguments)}")
        output = self.quietly(*arguments, stdin=stdin)
        self.narrator.show_answer(output)
        return output

    def quietly(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl without showing it; return its output."""
        process = subprocess.run(
            # Should the demo be killed, kubectl would wait on for a lab that is gone.
            ["setpriv", "--pdeathsig", "KILL", "--", self.kubectl_program, *arguments],
            input=stdin,
            env=dict(self.environment),
            cwd=self.files,
            capture_output=True,
            text=True,
            timeout=2 * self.patience_seconds,
            check=False,
        )
        if process.returncode != 0:
            raise StepError(f"kubectl {' '.join(arguments)} failed: {process.stderr.strip()}")
        return process.stdout

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get ... -o json` prints, decoded."""
        return json.loads(self.quietly("get", *arguments, "-o", "json"))

    def explain(self, pod: str, *, outcome: int) -> str:
        """Run `podidentity explain` for a pod, show its output, expect `outcome` as its status; return the output."""
        self.narrator.show_command(f"podidentity explain pod default/{pod}")
        process = subprocess.run(
            [sys.executable, "-m", "podidentity", "explain", "pod", f"default/{pod}"],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.narrator.show_answer("\n".join(process.stdout.strip().splitlines()[-EXPLAINED_LINES:]) or process.stderr)
        expect(f"exit status of explain for {pod}", right=outcome, actual=process.returncode)
        return process.stdout

    def packets(self) -> dict[str, int]:
        """Return how many packets of pods passed each node's uplink towards the metadata address, by node."""
        status = control.ask(directory.find(self.facts["lab"]), "GET", "/status")
        counts: dict[str, int] = status["imds_packets"]
        return counts

    def fetch(self, url: str) -> tuple[int, str]:
        """GET a URL inside the lab, through its proxy; return status and body. Status 0 means that no answer came."""
        try:
            with httpx2.Client(proxy=self.environment["HTTP_PROXY"], trust_env=False, timeout=10) as http:
                answer = http.get(url)
        except httpx2.HTTPError as error:
            return 0, str(error)
        return answer.status_code, answer.text

    def pod(self, name: str, program: str, labels: Mapping[str, str]) -> Any:
        """Return a pod that runs a Python program once, on the application's node."""
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
        """Return the messages of the events about an object, oldest first."""
        selector = f"involvedObject.kind={kind},involvedObject.name={name}"
        return [
            f"{event['reason']}: {event['message']}"
            for event in self.get("events", "--field-selector", selector)["items"]
        ]

    def assigned_states(self) -> dict[str, str]:
        """Return the state of each assigned identity, by the name of its AzureIdentity."""
        items = self.get("azureassignedidentities", "-A")["items"]
        return {_identity_of(item): str(item.get("status", {}).get("status", "")) for item in items}

    def run_in_pod(self, name: str, program: str, labels: Mapping[str, str], *, host_network: bool = False) -> str:
        """Start a pod that runs a Python program once, wait for its end and return what it printed."""
        pod = self.pod(name, program, labels)
        pod["spec"]["hostNetwork"] = host_network
        description = "a pod in the node's own network" if host_network else "a pod"
        if labels:
            description += f" with the label {', '.join(f'{key}={value}' for key, value in labels.items())}"
        self.kubectl(
            "create",
            "-f",
            "-",
            stdin=json.dumps(pod),
            show=f"kubectl create -f -   # {name}: {description} that asks for a token",
        )
        self.until(
            f"pod {name} to finish", lambda: self.get("pod", name)["status"].get("phase") in {"Succeeded", "Failed"}
        )
        return self.kubectl("logs", name)

    def rollout(self, *workloads: str, namespace: str = "") -> None:
        """Wait until the rollout of these workloads (`deployment/mic`) is complete."""
        place = ("-n", namespace) if namespace else ()
        for workload in workloads:
            self.kubectl(*place, "rollout", "status", workload, f"--timeout={self.patience_seconds:.0f}s")

    def until(self, description: str, condition: Callable[[], object]) -> None:
        """Wait for a condition. Raises `StepError` with `description` when it does not come true in time."""
        deadline = time.monotonic() + self.patience_seconds
        while not condition():
            if time.monotonic() > deadline:
                raise StepError(f"waited {self.patience_seconds:.0f} s for {description}")
            time.sleep(POLL_SECONDS)


def _identity_of(assigned_identity: Mapping[str, Any]) -> str:
    return str(assigned_identity["spec"]["azureIdentityRef"]["metadata"]["name"])


def expect(fact: str, *, right: object, actual: object) -> None:
    """Raise `StepError` with the fact and both values unless `actual` equals `right`."""
    if right != actual:
        raise StepError(f"{fact}: expected {right!r}, got {actual!r}")
