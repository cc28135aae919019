"""`podidentity lab demo`: all its steps pass, and a step that fails is reported."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from podidentity_lab.demo.running import STEPS

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]  # 20 s alone on two cores, minutes on a crowded machine
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory for the demo's lab."""
    place = tmp_path / "labs"
    place.mkdir(mode=0o700)
    return place


def demo(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end, in a directory that has nothing of the checkout."""
    variables = {"PATH": os.environ["PATH"], "HOME": "/", "PODIDENTITY_LAB_HOME": str(home), "TMPDIR": str(home.parent)}
    command = ["setpriv", "--pdeathsig=KILL", "--", sys.executable, "-m", "podidentity", "lab", "demo", *options]
    return subprocess.run(
        command, cwd=home.parent, env=variables, capture_output=True, text=True, check=False, timeout=380
    )


def test_the_walk_through_passes(home: Path) -> None:
    """Every step is announced in order and passes, the last line counts the steps, and nothing stays behind."""
    told = demo(home)
    assert told.returncode == 0, told.stdout + told.stderr
    announced = re.findall(r"^\[ ?(\d+)/(\d+)\] (.*)$", told.stdout, re.MULTILINE)
    expected = [(str(number), str(len(STEPS)), title) for number, (title, _) in enumerate(STEPS, start=1)]
    assert announced == expected
    assert told.stdout.count("    ok  ") == len(STEPS)
    assert "\x1b" not in told.stdout
    assert told.stdout.splitlines()[-1].startswith(f"demo: {len(STEPS)} of {len(STEPS)} steps passed")
    assert [path.name for path in home.iterdir()] == [".lock"]
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_a_step_that_fails_says_what_was_expected_and_where_the_logs_are(home: Path, tmp_path: Path) -> None:
    """With a binding for the wrong pods, a step fails with what was expected and found, and names logs that exist."""
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "deploy", copy / "deploy")
    shutil.copytree(REPOSITORY / "examples", copy / "examples")
    binding = copy / "examples/keyvault-app/azureidentitybinding.yaml"
    binding.write_text(binding.read_text().replace("Selector: keyvaultsampleidentity", "Selector: wrong"))
    told = demo(home, "--files", str(copy))
    assert told.returncode == 1
    failed = next(line for line in told.stdout.splitlines() if "FAILED" in line)
    assert "Create the AzureIdentityBinding" in failed
    assert "expected 'keyvaultsampleidentity', got 'wrong'" in failed
    logs = Path(failed.rpartition("The logs are in ")[2])
    assert list(logs.glob("*nmi*.log"))
    assert re.search(r"^demo: \d+ of \d+ steps passed", told.stdout.splitlines()[-1])
    assert [path.name for path in home.iterdir()] == [".lock"]


def test_files_of_your_own_must_be_laid_out_as_the_repository_is(home: Path, tmp_path: Path) -> None:
    """A directory without the manifest is refused in one sentence that names it."""
    (tmp_path / "empty").mkdir()
    told = demo(home, "--files", str(tmp_path / "empty"))
    assert told.returncode == 1
    assert f"{tmp_path}/empty has no deploy/infra/deployment-rbac.yaml" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_demo_runs_where_its_directory_is_gone(home: Path, tmp_path: Path) -> None:
    """The command works in a directory that was removed; here it only prints its help."""
    (tmp_path / "gone").mkdir()
    script = f"rmdir ../gone; exec '{sys.executable}' -m podidentity lab demo --help"
    variables = {"PATH": os.environ["PATH"], "HOME": "/", "PODIDENTITY_LAB_HOME": str(home)}
    told = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path / "gone",
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
