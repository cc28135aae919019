"""Runs tests on every Python that matters: the images' own, and the newest on this machine; `pythons.py TESTS ...`.

The images run Debian's Python, whose patch release is older than a developer's and has bugs that later ones mended (a
lock that stays locked when its holder is cancelled); the newest is what users install next. The Python of `.venv` is
left out, because `make check` runs there anyway; a Python that this machine lacks is reported.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
VENVS = ROOT / ".venv/pythons"
IMAGES = (3, 11, 2)
"""The Python of Debian 12, which the images are made of."""
OLDEST, NEWEST = (3, 11), (3, 14)
"""The first and the last minor release that the dependencies support."""
_ASK = "import json, sys; print(json.dumps([*sys.version_info[:3], sys.version_info.releaselevel]))"

Version = tuple[int, ...]


def main(tests: list[str]) -> int:
    """Run `tests` on each Python; return 1 when a test failed on any."""
    pythons, messages = choose(installed_pythons(), sys.version_info[:3])
    for message in messages:
        print(message, flush=True)
    with ThreadPoolExecutor(max_workers=max(1, len(pythons))) as pool:
        results = list(pool.map(functools.partial(run, tests=tests), pythons.items()))
    return int(not all(results))


def choose(pythons: dict[Version, Path], current: Version) -> tuple[dict[Version, Path], list[str]]:
    """Return the Pythons to run on besides `current`, and a sentence for each that this machine lacks."""
    messages = []
    if IMAGES not in pythons and current != IMAGES:
        messages.append(f"Python {version_text(IMAGES)}: this machine has none; only `make test` tests the images' own")
    newest = max([*pythons, current])
    if newest[:2] < NEWEST:
        messages.append(f"Python {version_text(NEWEST)}: this machine has none; {version_text(newest)} is its newest")
    targets = {IMAGES, newest} - {current}
    return {version: pythons[version] for version in sorted(targets & pythons.keys())}, messages


def installed_pythons() -> dict[Version, Path]:
    """Return the released Pythons of this machine that the dependencies support, by version."""
    versions = ((_version(path), path) for path in _candidates())
    return {version: path for version, path in versions if version and OLDEST <= version[:2] <= NEWEST}


def _candidates() -> Iterable[Path]:
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += sorted((Path.home() / ".pyenv/versions").glob("*/bin"))
    folders += sorted((Path.home() / ".local/share/uv/python").glob("*/bin"))
    for folder in dict.fromkeys(path for path in folders if path.name != "shims" and ROOT not in path.parents):
        yield from sorted(
            path
            for path in folder.glob("python3*")
            if path.name[7:].replace(".", "").isdigit() or path.name == "python3"
        )


def _version(python: Path) -> Version | None:
    process = subprocess.run([python, "-I", "-c", _ASK], capture_output=True, text=True, check=False)
    if process.returncode:
        return None
    *numbers, level = json.loads(process.stdout)
    return tuple(numbers) if level == "final" else None


def run(python: tuple[Version, Path], tests: list[str]) -> bool:
    """Run `tests` in the virtual environment of a Python; print its result, and its whole output when a test failed."""
    version, path = python
    program = install(version, path)
    command = [str(program), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = process.stdout.splitlines()
    summary = (lines or ["pytest printed nothing"])[-1] if process.returncode == 0 else process.stdout + process.stderr
    print(f"on Python {version_text(version)}: {summary}", flush=True)
    return process.returncode == 0


def install(version: Version, path: Path) -> Path:
    """Return the Python of a virtual environment with the project; it is made again when the requirements changed."""
    folder = VENVS / version_text(version)
    program, stamp = folder / "bin/python", folder / ".installed"
    requirements = ("pyproject.toml", "lab/pyproject.toml", "constraints.txt")
    digest = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in requirements)).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return program
    print(f"installing into {folder.relative_to(ROOT)}", flush=True)
    # Debian's venv has no pip unless python3-venv is installed: the pip of this Python installs into it.
    subprocess.run([path, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(program), "install", "--quiet", "--disable-pip-version-check"]
    packages = [
        "--constraint",
        "constraints.txt",
        "--editable",
        ".",
        "--editable",
        "./lab",
        "--group",
        "dev",
        "--group",
        "examples",
        "--group",
        "chart",
    ]
    subprocess.run([*pip, *packages], cwd=ROOT, check=True)
    stamp.write_text(digest)
    return program


def version_text(version: Version) -> str:
    """Return a version as people write it: 3.11.2."""
    return ".".join(map(str, version))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
