"""The walk-through on real nodes, by the command behind `make demo KUBERNETES=real`, in a cluster of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.harness import REPOSITORY
from podidentity_lab.demo.running import STEPS
from podidentity_lab.real import program

DEMO_SECONDS = 850.0  # a minute alone on two cores


@pytest.mark.usefixtures("possible")
def test_the_walk_through_passes_on_real_nodes(tmp_path: Path) -> None:
    """Every step that passes on the embedded Kubernetes passes on the real one, and nothing stays behind."""
    home, scratch = tmp_path / "labs", tmp_path / "tmp"
    home.mkdir(mode=0o700)
    scratch.mkdir()
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": "/",
        "PODIDENTITY_LAB_HOME": str(home),
        "TMPDIR": str(scratch),
        "XDG_CACHE_HOME": str(program.place().parents[1]),
    }
    demo = [sys.executable, "-m", "podidentity", "lab", "demo", "--kubernetes", "real"]
    # Whatever becomes of the tests: no lab outlives them.
    command = ["setpriv", "--pdeathsig=KILL", "--", *demo]
    told = subprocess.run(
        command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False, timeout=DEMO_SECONDS
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[-1].startswith(f"demo: {len(STEPS)} of {len(STEPS)} steps passed")
    assert [path.name for path in home.iterdir()] == [".lock"]
    assert not list(scratch.iterdir())
