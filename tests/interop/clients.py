"""Installs the clients that the interop tests drive, each with its own package manager and pinned versions.

They go to a cache outside the clone, `$XDG_CACHE_HOME/podidentity/interop`: one directory for each client and for each
set of pins, complete or not there at all.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podidentity" / "interop"
INSTALL_SECONDS = 900
_STAMP = ".complete"


class MissingToolError(Exception):
    """A client's package manager is not on this machine; the sentence names it and how to get it."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client: to install it, `programs` must be on PATH; its `pins` decide its directory.

    A pin is a path, relative to tests/interop or absolute.
    """

    name: str
    programs: tuple[str, ...]
    pins: tuple[str, ...]
    install: Callable[[Path], None]

    @property
    def directory(self) -> Path:
        """The directory where the client is, or will be, installed."""
        pinned = hashlib.sha256()
        for path in sorted(HERE / pin for pin in self.pins):
            pinned.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return CACHE / f"{self.name}-{pinned.hexdigest()[:12]}"


def installed(name: str) -> Path:
    """Return the directory of one of `CLIENTS`, as `ensure` does. Raises `MissingToolError`."""
    return ensure(CLIENTS[name])


def ensure(client: Client) -> Path:
    """Return a client's directory, and install the client first if it is missing. Raises `MissingToolError`."""
    directory = client.directory
    missing = [program for program in client.programs if shutil.which(program) is None]
    if missing:
        raise MissingToolError(
            f"{client.name} needs {', '.join(missing)} on PATH; install it, or leave this client out"
        )
    with _locked(client.name):
        if not (directory / _STAMP).exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            client.install(directory)
            (directory / _STAMP).touch()
    return directory


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str, directory: Path, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {directory} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def python_packages(source: str) -> Callable[[Path], None]:
    """Return an installer into a virtual environment of the base Python, so that the lab's containers can run it.

    `source`, the directory with the pins, is relative to tests/interop or absolute.
    """

    def install(directory: Path) -> None:
        _run(sys.executable, "-m", "venv", ".", directory=directory)
        pip = ("bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        pins = ("--requirement", str(HERE / source / "requirements.txt"))
        _run(*pip, "--constraint", str(HERE / source / "constraints.txt"), *pins, directory=directory)

    return install


def javascript_packages(source: str) -> Callable[[Path], None]:
    """Return an installer of the packages of a package.json; `source` likewise."""

    def install(directory: Path) -> None:
        shutil.copy(HERE / source / "package.json", directory)
        _run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", directory=directory)

    return install


def _go(source: str, programs: Mapping[str, str]) -> Callable[[Path], None]:
    """Return an installer of Go programs, given the package of each program's name."""

    def install(directory: Path) -> None:
        for name, package in programs.items():
            # -trimpath and no cgo: the program runs in any container, and names no path of this machine.
            build = ("go", "build", "-trimpath", "-mod=readonly", "-o", str(directory / name), package)
            _run(*build, directory=HERE / source, CGO_ENABLED="0", GOFLAGS="")

    return install


def _older_go(directory: Path) -> None:
    """Install the program for the newest Go SDK with the pins of an older one."""
    build = directory / "build"
    shutil.copytree(HERE / "managed/go-2023", build)
    shutil.copy(HERE / "go/managed/main.go", build)
    command = ("go", "build", "-trimpath", "-mod=readonly", "-o", str(directory / "managed"), ".")
    _run(*command, directory=build, CGO_ENABLED="0", GOFLAGS="")


def _older_java(directory: Path) -> None:
    """Install the program for the newest Java SDK with the pins of an older one."""
    program = Path("src/main/java/Managed.java")
    shutil.copytree(HERE / "managed/java-2022", directory / "build")
    (directory / "build" / program).parent.mkdir(parents=True)
    shutil.copy(HERE / "java" / program, directory / "build" / program)
    _package(directory)


def _java(directory: Path) -> None:
    shutil.copytree(HERE / "java", directory / "build")
    _package(directory)


def _package(directory: Path) -> None:
    goals = ("package", "dependency:copy-dependencies", "-DoutputDirectory=../libs", "-DincludeScope=runtime")
    _run("mvn", "--quiet", "--batch-mode", *goals, directory=directory / "build")


_JAVA_FILES = (
    "java/pom.xml",
    "java/src/main/java/Reader.java",
    "java/src/main/java/Workload.java",
    "java/src/main/java/Managed.java",
)
_GO_FILES = ("go/go.mod", "go/go.sum", "go/main.go", "go/workload/main.go", "go/managed/main.go")
CLIENTS = {
    client.name: client
    for client in (
        Client("az", (), ("az/requirements.txt", "az/constraints.txt"), python_packages("az")),
        Client("python", (), ("python/requirements.txt", "python/constraints.txt"), python_packages("python")),
        Client("javascript", ("node", "npm"), ("javascript/package.json",), javascript_packages("javascript")),
        Client("go", ("go",), _GO_FILES, _go("go", {"reader": ".", "workload": "./workload", "managed": "./managed"})),
        Client(
            "go-autorest",
            ("go",),
            ("go-autorest/go.mod", "go-autorest/go.sum", "go-autorest/main.go"),
            _go("go-autorest", {"run": "."}),
        ),
        Client(
            "controller",
            ("go",),
            ("controller/go.mod", "controller/go.sum", "controller/main.go"),
            _go("controller", {"controller": "."}),
        ),
        Client("java", ("java", "mvn", "keytool"), _JAVA_FILES, _java),
        Client(
            "python-2022",
            (),
            ("managed/python-2022/requirements.txt", "managed/python-2022/constraints.txt"),
            python_packages("managed/python-2022"),
        ),
        Client(
            "javascript-2022",
            ("node", "npm"),
            ("managed/javascript-2022/package.json",),
            javascript_packages("managed/javascript-2022"),
        ),
        Client(
            "go-2023",
            ("go",),
            ("managed/go-2023/go.mod", "managed/go-2023/go.sum", "go/managed/main.go"),
            _older_go,
        ),
        Client(
            "java-2022",
            ("java", "mvn"),
            ("managed/java-2022/pom.xml", "java/src/main/java/Managed.java"),
            _older_java,
        ),
    )
}


def main() -> None:
    """Install the named clients, or all; print which ones cannot be installed."""
    for name in sys.argv[1:] or CLIENTS:
        try:
            print(f"{name}: {installed(name)}")
        except MissingToolError as error:
            print(f"{name}: not installed: {error}")


if __name__ == "__main__":
    main()
