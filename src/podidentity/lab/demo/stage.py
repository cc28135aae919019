"""What every step of the demo works with: the lab's environment, kubectl, the administrator, waiting, fetching.

A step fails by raising `StepError`; the sentence says what was expected and what came instead.
"""

import json
import subprocess
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

WAIT_SECONDS = 40.0
POLL_SECONDS = 0.2


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
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise StepError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, decoded."""
        return json.loads(self.quietly("get", *arguments, "-o", "json"))

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

    def run_in_pod(self, name: str, program: str, labels: Mapping[str, str], *, host_network: bool = False) -> str:
        """Start a pod that runs a Python program once, wait for its end, give what it printed."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name, **labels}},
            "spec": {
                "restartPolicy": "Never",
                "nodeName": self.facts["node"],
                "hostNetwork": host_network,
                "containers": [
                    {"name": name, "image": "podidentity/lab-tools:1", "command": ["python3", "-c", program]}
                ],
            },
        }
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

    def until(self, what: str, condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
        """Wait for a condition; say what was waited for when it never comes."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise StepError(f"waited {seconds:.0f} s for {what}")
            time.sleep(POLL_SECONDS)


def expect(what: str, *, expected: object, got: object) -> None:
    """Compare; the sentence names all three."""
    if expected != got:
        raise StepError(f"{what}: expected {expected!r}, got {got!r}")
