"""Runs the demo: a fresh lab, the steps in order, one sentence at the end. Called by `podidentity lab demo`."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from podidentity.errors import LabError
from podidentity.lab.demo import proofs, story
from podidentity.lab.demo.admin import Admin
from podidentity.lab.demo.narration import Narrator
from podidentity.lab.demo.stage import Stage

NAME = "demo"
READY_SECONDS = 60.0
STOP_SECONDS = 20.0

STEPS: tuple[tuple[str, Callable[[Stage], None]], ...] = (
    ("Create a resource group", story.create_group),
    ("Create an Azure Key Vault", story.create_vault),
    ("Put a secret into it", story.set_secret),
    ("Install podidentity on the cluster", story.install),
    ("Create an Azure managed identity", story.create_identity),
    ("Let it see the vault", story.grant_reader),
    ("Let it read secrets", story.set_policy),
    ("Let the cluster use it", story.let_the_cluster_use_it),
    ("Create the AzureIdentity", story.create_azure_identity),
    ("Create the AzureIdentityBinding", story.create_binding),
    ("Deploy the sample application", story.deploy_app),
    ("Browse to /keyvault", story.fetch_secret),
    ("A pod without the label gets nothing", proofs.without_the_label),
    ("A second application gets its own token", proofs.second_identity),
    ("... and the first application's vault refuses it", proofs.refused_by_the_vault),
    ("The metadata service saw no pod", proofs.no_packet_reached_imds),
)


def run(repository: Path) -> int:
    """Run every step in a lab of its own; 0 when all passed, 1 otherwise. The lab is taken down in any case."""
    if not (repository / "deploy/infra/deployment-rbac.yaml").exists():
        raise LabError(f"no deploy/infra/deployment-rbac.yaml below {repository}; run the demo in a checkout")
    narrator = Narrator()
    narrator.say("podidentity demo: the walk-through of 2018, on this machine, without an Azure account")
    began = time.monotonic()
    logs = Path(tempfile.mkdtemp(prefix="podidentity-demo-logs-"))
    subprocess.run(_command("down", "--name", NAME), capture_output=True, check=False, timeout=STOP_SECONDS)
    starting = _command("up", "--name", NAME, "--logs", str(logs))
    process = subprocess.Popen(starting, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        environment = _wait_until_ready(process)
        narrator.say(f"the lab is up after {time.monotonic() - began:.1f} s; its logs: {logs}")
        stage = Stage(environment, narrator, Admin(environment), repository, _kubectl(), {"lab": NAME})
        passed = _play(stage)
    finally:
        _stop(process)
    narrator.say(f"\ndemo: {passed} of {len(STEPS)} steps passed in {time.monotonic() - began:.0f} s")
    return 0 if passed == len(STEPS) else 1


def _play(stage: Stage) -> int:
    """Play the steps until one fails; the number that passed."""
    for number, (title, step) in enumerate(STEPS, start=1):
        stage.narrator.step(number, len(STEPS), title)
        try:
            step(stage)
        except (LabError, subprocess.TimeoutExpired) as error:
            stage.narrator.failed(f"step {number}, {title}: {error}. The logs are in {stage.environment['LAB_LOGS']}")
            return number - 1
    return len(STEPS)


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "podidentity", "lab", *words]


def _wait_until_ready(process: subprocess.Popen[str]) -> dict[str, str]:
    """Ask `lab env` until it answers; the environment for kubectl and everything else."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LabError(f"the lab did not start: {process.stderr.read().strip() if process.stderr else ''}")
        told = subprocess.run(_command("env", "--name", NAME), capture_output=True, text=True, check=False, timeout=30)
        if told.returncode == 0:
            return _environment(told.stdout)
        time.sleep(0.1)
    raise LabError(f"the lab was not ready after {READY_SECONDS:.0f} s")


def _environment(exports: str) -> dict[str, str]:
    """Read `export NAME=value` lines as a shell would, on top of a minimal environment."""
    script = f"{exports}\nenv -0"
    minimal = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/")}
    told = subprocess.run(["/bin/sh", "-c", script], env=minimal, capture_output=True, text=True, check=True)
    return dict(item.split("=", 1) for item in told.stdout.split("\0") if "=" in item)


def _kubectl() -> str:
    """Kubectl from PATH, else the one in the extra `lab`."""
    own = Path(sys.executable).with_name("kubectl")
    found = shutil.which("kubectl") or (str(own) if own.exists() else None)
    if found is None:
        raise LabError("kubectl is neither on PATH nor installed; install podidentity[lab]")
    return found


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
