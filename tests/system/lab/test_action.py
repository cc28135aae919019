"""The GitHub Action, as far as it runs without GitHub: its step that starts a lab."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving import LOOPBACK, unused_port
from system.lab.running import KUBECTL, Lab, lab
from waiting import until

pytestmark = pytest.mark.root
ACTION = Path(__file__).parents[3] / ".github/actions/lab/action.yml"
SEED = "identities: [{name: reader, group: app}]\n"


def test_the_step_that_starts_a_lab(tmp_path: Path) -> None:
    """It takes the inputs, and its output is the directory of a lab that is up."""
    step = next(step for step in yaml.safe_load(ACTION.read_text())["runs"]["steps"] if step.get("id") == "up")
    (tmp_path / "podidentity-lab").mkdir()
    (tmp_path / "podidentity-lab/bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "seed.yaml").write_text(SEED)
    home, output = tmp_path / "labs", tmp_path / "output"
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PODIDENTITY_LAB_HOME": str(home),
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_OUTPUT": str(output),
    }
    inputs = {"SEED": str(tmp_path / "seed.yaml"), "NODES": "1"}
    assert inputs.keys() == step["env"].keys()
    one = Lab(home, "lab")
    try:
        subprocess.run(["bash", "-euo", "pipefail", "-c", step["run"]], env={**variables, **inputs}, check=True)
        directory = Path(output.read_text().strip().removeprefix("directory="))
        nodes = subprocess.run(
            [KUBECTL, "--kubeconfig", str(directory / "kubeconfig"), "get", "nodes", "-o", "name"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert nodes.stdout == "node/node-0\n"
        assert one.run("env", "--name", "lab", "--identity", "reader").returncode == 0
    finally:
        one.run("down", "--name", "lab")
    until(lambda: not (home / "lab").exists(), "nothing is left")


def test_ports_of_choice(tmp_path: Path) -> None:
    """`--listen`, for containers: the API's port, and the proxy and the identities on the next two."""
    home = tmp_path / "labs"
    home.mkdir(mode=0o700)
    first = three_ports()
    with lab(home, "first", "--nodes", "1", "--listen", f"{LOOPBACK}:{first}") as one:
        assert one.variables["HTTPS_PROXY"] == f"http://{LOOPBACK}:{first + 1}"
        assert one.kubectl("get", "nodes", "-o", "name") == "node/node-0\n"
        refused = Lab(home, "second").run("up", "--name", "second", "--listen", f"{LOOPBACK}:{first + 2}")
    assert refused.returncode == 1
    assert f"port {first + 2}: Address already in use; name another port" in refused.stderr


def three_ports() -> int:
    """Return the first of three ports in a row on which nobody listens."""
    while True:
        first = unused_port()
        with contextlib.suppress(OSError), socket.socket() as second, socket.socket() as third:
            second.bind((LOOPBACK, first + 1))
            third.bind((LOOPBACK, first + 2))
            return first
