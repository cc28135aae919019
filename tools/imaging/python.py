"""Python packages of the images, from the versions that `constraints.txt` pins, and podidentity itself as a wheel.

Unpacked for the images' Python, whichever Python runs this.
"""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from imaging import debian

PROGRAM = """\
#!/usr/bin/python3 -I
import sys
from podidentity.cli.main import main
sys.argv[1:1] = {words!r}
sys.exit(main())
"""
PROGRAMS: dict[str, list[str]] = {"podidentity": [], **{name: [name] for name in ("nmi", "mic", "broker", "webhook")}}

_UNUSED_FILES = (
    *("**/tests", "**/test", "**/*.pyi", "**/*.pyx", "**/*.pxd", "**/*.c", "**/*.h", "bin"),
    "pygments/lexers/[!_]*.py",  # with them rich would colour code; no command shows any
    "yaml/_yaml.*.so",  # libyaml, which only its own loaders use: `safe_load` is Python
    "aiohttp/_websocket/*.so",  # the broker and the webhook have no WebSockets; aiohttp has the same in Python
    "multidict/_testcapi.*.so",
)
"""What the wheels bring and no program of the image reads: docs/decisions/image-tools.md has the sizes."""

PACKAGES = f"usr/local/lib/python{debian.PYTHON}/dist-packages"
"""Where Debian's Python looks for packages that are not Debian's."""


def project(repository: Path) -> dict[str, Any]:
    """Return the contents of pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())


def install(requirements: Sequence[str], repository: Path, target: Path) -> None:
    """Install `requirements`, wheels only, for the images' Python, into `target`."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += [
        "--root-user-action=ignore",
        "--target",
        str(target),
        "--only-binary=:all:",
        f"--python-version={debian.PYTHON}",
    ]
    command += ["--constraint", str(repository / "constraints.txt")]
    subprocess.run([*command, *requirements], check=True)
    remove_program_records(target)
    for pattern in _UNUSED_FILES:
        for path in sorted(target.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()


def remove_program_records(target: Path) -> None:
    """Remove the programs, which are not in the image, from the RECORD files: their digests depend on pip's Python."""
    rewrite_records(target, lambda line: not line.startswith("../"))


def rewrite_records(target: Path, is_contained: Callable[[str], bool]) -> None:
    """Rewrite the RECORD files of the packages in `target` with only the lines that `is_contained` accepts."""
    for record in target.glob("*.dist-info/RECORD"):
        record.write_text("".join(filter(is_contained, record.read_text().splitlines(keepends=True))))


def install_podidentity(repository: Path, root: Path) -> None:
    """Build podidentity's wheel, unpack it below `root`, and write its programs."""
    wheels = root.with_name(f"{root.name}.wheel")
    shutil.rmtree(wheels, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(wheels), str(repository)], check=True)
    target = root / PACKAGES
    target.mkdir(parents=True, exist_ok=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    shutil.rmtree(wheels)
    for name, words in PROGRAMS.items():
        program = root / "usr/local/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(PROGRAM.format(words=words))
        program.chmod(0o755)


def byte_compile(system: Path, root: Path, folders: Iterable[str]) -> None:
    """Compile `folders` below `root` with the Python of `system`: the images' root is read-only when they run."""
    paths = [str(root / folder) for folder in folders]
    options = ("-q", "-s", str(root), "-p", "/", "--invalidation-mode", "unchecked-hash")
    debian.run_python(system, "-m", "compileall", *options, *paths)
