"""Both distributions as users get them: wheels in a fresh virtual environment, outside any checkout."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]


def run(command: Sequence[str | Path], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `directory`, with nothing of this process's environment but PATH."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), **variables}
    return subprocess.run(
        ["setpriv", "--pdeathsig=KILL", "--", *map(str, command)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, by distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(folder), ".", "./lab"], cwd=REPOSITORY, check=True)
    return {path.name.split("-", 1)[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Path:
    """A virtual environment that has podidentity alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True, symlinks=True)
    install(folder, wheels["podidentity"])
    return folder


def install(environment: Path, *wheels: Path) -> None:
    """Install wheels with the versions that the project pins."""
    options = ["--quiet", "--disable-pip-version-check", "--constraint", str(REPOSITORY / "constraints.txt")]
    subprocess.run([environment / "bin/pip", "install", *options, *wheels], check=True)


def test_each_wheel_has_its_own_package_alone(wheels: dict[str, Path]) -> None:
    """The product contains nothing of the lab, and the lab contains the files that its demo needs."""
    tops = {}
    for name, path in wheels.items():
        with zipfile.ZipFile(path) as archive:
            tops[name] = {entry.split("/")[0] for entry in archive.namelist() if ".dist-info" not in entry}
            if name == "podidentity_lab":
                assert {
                    "podidentity_lab/data/deploy/infra/deployment-rbac.yaml",
                    "podidentity_lab/data/examples/keyvault-app/keyvault_app/web.py",
                } <= {*archive.namelist()}
    assert tops == {"podidentity": {"podidentity"}, "podidentity_lab": {"podidentity_lab"}}


def test_without_the_lab_its_command_says_how_to_install_it(environment: Path, tmp_path: Path) -> None:
    """With podidentity alone --help works, and `lab` ends with one sentence and exit status 3."""
    program = environment / "bin/podidentity"
    assert run([program, "--help"], tmp_path).returncode == 0
    ended = run([program, "lab", "demo"], tmp_path)
    assert (ended.returncode, ended.stderr.strip()) == (
        3,
        "error: the lab is a package of its own; pip install podidentity-lab",
    )


def test_the_demo_passes_from_wheels_alone(environment: Path, wheels: dict[str, Path], tmp_path: Path) -> None:
    """The walk-through needs no checkout: two wheels and their dependencies are enough."""
    install(environment, wheels["podidentity"], wheels["podidentity_lab"])
    (tmp_path / "labs").mkdir(mode=0o700)
    ended = run([environment / "bin/podidentity", "lab", "demo"], tmp_path, PODIDENTITY_LAB_HOME=str(tmp_path / "labs"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1].startswith("demo: ")


PAGE = REPOSITORY / "docs/tutorial/your-own-application.md"
EXAMPLE = REPOSITORY / "examples/pytest-app"


def test_the_tutorial_of_an_own_application_works(wheels: dict[str, Path], tmp_path: Path) -> None:
    """The tutorial's commands run in an empty directory; the files that they write are those of examples/pytest-app."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    # Versions as well: pip takes one under development only when it is named.
    names = [path.name.split("-")[:2] for path in wheels.values()]
    (tmp_path / "own.txt").write_text("".join(f"{name}=={version}\n" for name, version in names))
    (tmp_path / "labs").mkdir(mode=0o700)
    variables = {
        "PIP_CONSTRAINT": f"{REPOSITORY / 'constraints.txt'} {tmp_path / 'own.txt'}",
        "PIP_FIND_LINKS": str(wheels["podidentity"].parent),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CACHE_DIR": str(Path.home() / ".cache/pip"),
        "PODIDENTITY_LAB_HOME": str(tmp_path / "labs"),
    }
    ended = run(["bash", "-c", "set -euo pipefail\n" + "\n".join(blocks)], tmp_path, **variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Hello, world!" in ended.stdout
    assert re.findall(r"(\d+) passed", ended.stdout) == ["4", "4"]
    of_page = {path for path in (tmp_path / "greeter").rglob("*") if path.is_file() and not _is_made(path)}
    example = {path for path in EXAMPLE.rglob("*") if path.is_file() and not _is_made(path)}
    contents = {str(path.relative_to(tmp_path / "greeter")): path.read_text() for path in of_page}
    assert contents == {str(path.relative_to(EXAMPLE)): path.read_text() for path in example}


def test_the_jobs_steps_are_the_tutorials_own() -> None:
    """The example workflow runs only commands of the tutorial, apart from the runner's packages and settings."""
    steps = yaml.safe_load((EXAMPLE / ".github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    commands = [line for step in steps for line in step.get("run", "").splitlines() if not line.startswith("sudo ")]
    page = PAGE.read_text().replace("pip install --quiet", "pip install")
    assert commands == ["python -m pip install -r requirements-test.txt", "python -m pytest -n 2"]
    assert [command for command in commands if f"\n{command}\n" not in page] == []


def _is_made(path: Path) -> bool:
    """Whether a file is produced by the tutorial's programs, or only describes the example."""
    parts = {".venv", "__pycache__", ".pytest_cache", "README.md", "seed.yaml"}
    return bool(parts & set(path.parts))
