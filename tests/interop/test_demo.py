"""The demo with the real azure-cli on PATH: it runs the walk-through's commands with it, and says so."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from interop.stage import ROOT

pytestmark = pytest.mark.timeout(900)


def test_the_demo_types_the_real_az(client: Callable[[str], Path], tmp_path: Path) -> None:
    """Every step passes with the real az, through the lab's proxy and without touching the user's profile."""
    programs = client("az") / "bin"
    home = tmp_path / "labs"
    home.mkdir(mode=0o700)
    variables = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path), "PODIDENTITY_LAB_HOME": str(home)}
    told = subprocess.run(
        ["setpriv", "--pdeathsig=KILL", "--", sys.executable, "-m", "podidentity", "lab", "demo"],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=880,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"typed to the real one, {programs}/az" in told.stdout
    passed = re.search(r"^demo: (\d+) of (\d+) steps passed", told.stdout.splitlines()[-1])
    assert passed is not None
    assert passed[1] == passed[2]
    assert not (tmp_path / ".azure").exists()
