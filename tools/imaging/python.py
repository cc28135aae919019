"""Python packages of the images, from the versions that `constraints.txt` pins, and podidentity itself as a wheel.

Unpacked for the images' Python, whichever runs this. Called by `image`.
"""

import compileall
import py_compile
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PROGRAM = """\
#!/usr/bin/python3 -I
import sys
from podidentity.cli.main import main
sys.argv[1:1] = {words!r}
sys.exit(main())
"""
PROGRAMS: dict[str, list[str]] = {"podidentity": [], "nmi": ["nmi"], "mic": ["mic"]}

_LEFT_OUT = ("**/tests", "**/test", "**/*.pyi", "**/*.pyx", "**/*.pxd", "**/*.c", "**/*.h", "bin")


def packages_folder(python: str) -> str:
    """Where Debian's Python looks for what did not come from Debian."""
    return f"usr/local/lib/python{python}/dist-packages"


def project(repository: Path) -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())


def install(requirements: Sequence[str], python: str, repository: Path, target: Path) -> None:
    """Install `requirements`, wheels only, for Python `python`, into `target`."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += [
        "--root-user-action=ignore",
        "--target",
        str(target),
        "--only-binary=:all:",
        f"--python-version={python}",
    ]
    command += ["--constraint", str(repository / "constraints.txt")]
    subprocess.run([*command, *requirements], check=True)
    forget_programs(target)
    for pattern in _LEFT_OUT:
        for path in sorted(target.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()


def forget_programs(target: Path) -> None:
    """Take the programs, which are left out, off the packages' lists: their digests hold the path of pip's Python."""
    for record in target.glob("*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if not line.startswith("../")))


def install_podidentity(repository: Path, python: str, root: Path) -> None:
    """Build podidentity's wheel, unpack it below `root`, and write its programs."""
    wheels = root.with_name(f"{root.name}.wheel")
    shutil.rmtree(wheels, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(wheels), str(repository)], check=True)
    target = root / packages_folder(python)
    target.mkdir(parents=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    for name, words in PROGRAMS.items():
        program = root / "usr/local/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(PROGRAM.format(words=words))
        program.chmod(0o755)


def byte_compile(folders: Iterable[Path], python: str, root: Path) -> None:
    """Compile ahead: the images' root is read-only. Only a Python of the same version can; others leave it out."""
    if python != f"{sys.version_info.major}.{sys.version_info.minor}":
        print(f"not compiled ahead: this is not Python {python}")
        return
    for folder in folders:
        compileall.compile_dir(
            folder,
            quiet=2,
            stripdir=str(root),
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
