"""Programs that ask for tokens from within pods, and what became of their requests."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from podidentity_lab.demo.stage import Stage

ASKED_URL = (
    "http://169.254.169.254/metadata/identity/oauth2/token"
    "?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"
)
ASK_AGAIN = f"""
import json, os, sys, time, urllib.error, urllib.request

restarted = len(sys.argv) > 1
while True:
    began = time.time()
    try:
        asked = urllib.request.Request("{ASKED_URL}", headers={{"Metadata": "true"}})
        with urllib.request.urlopen(asked, timeout=5) as answer:
            status, text = answer.status, "a token"
            answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    except OSError as error:
        status, text = 0, str(error)
    print(json.dumps([began, status, text, restarted]), flush=True)
    if status >= 400 and not restarted:
        os.execv(sys.executable, [sys.executable, "-c", os.environ["PROGRAM"], "restarted"])
    time.sleep(0.1)
"""
"""Asks ten times a second for ever. At the first refusal it executes itself anew, as a restarted application would."""


class Answer(NamedTuple):
    """When a request began (Unix seconds), its HTTP status (0: none came), the text, and who asked."""

    time: float
    status: int
    text: str
    restarted: bool


def start_asking(
    stage: Stage, name: str, labels: Mapping[str, str], program: str = ASK_AGAIN, *, node: str = ""
) -> None:
    """Start a pod that asks until it is deleted."""
    pod = stage.pod(name, program, labels)
    pod["spec"]["nodeName"] = node or stage.facts["node"]
    pod["spec"]["terminationGracePeriodSeconds"] = 0
    pod["spec"]["containers"][0]["env"] = [{"name": "PROGRAM", "value": program}]
    label = "".join(f", with the label {key}={value}" for key, value in labels.items())
    show = f"kubectl create -f -   # {name}: a pod on {pod['spec']['nodeName']} that asks all the time{label}"
    stage.kubectl("create", "-f", "-", stdin=json.dumps(pod), show=show)


def answers_of(stage: Stage, name: str, *, status: int | None = None) -> list[Answer]:
    """Return the answers that a pod has had so far, oldest first; none before it has begun."""
    if stage.get("pod", name)["status"].get("phase") != "Running":
        return []
    lines = stage.quietly("logs", name).splitlines()
    answers = [Answer(*json.loads(line)) for line in lines if line.endswith("]")]
    return [answer for answer in answers if status is None or answer.status == status]
