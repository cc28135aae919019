"""Where a lab keeps its files, who owns them, and how what a crash left behind is found and removed.

A lab's directory is alive while somebody holds the lock in it; the kernel releases it with the last process of the lab,
however that ended. Every command first removes the directories that nobody holds.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from podidentity.errors import LabError
from podidentity_lab import cgroups

DEFAULT_NAME = "lab"
_MARK = b"podidentity's labs: whatever is beside this file is a lab, and is removed when nobody runs it\n"
"""The content of a home's lock, without which nothing in a directory is touched."""


@dataclass(frozen=True, slots=True)
class Directory:
    """The files of one lab."""

    path: Path

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.path.name

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig for the host's kubectl."""
        return self.path / "kubeconfig"

    @property
    def ca(self) -> Path:
        """The certificate of the lab's Azure."""
        return self.path / "ca.pem"

    @property
    def java_trust_store(self) -> Path:
        """The same certificate in the form that Java's own trust has."""
        return self.path / "ca.p12"

    @property
    def facts_file(self) -> Path:
        """Ports, IDs and the owner's secret; it is there once the lab is ready."""
        return self.path / "lab.json"

    @property
    def logs(self) -> Path:
        """What the lab and its containers say."""
        return self.path / "logs"

    @property
    def nodes(self) -> Path:
        """What each node has of its own: hostPath volumes lead here."""
        return self.path / "nodes"

    @property
    def images(self) -> Path:
        """Images of the user's own: what `oci.store` keeps."""
        return self.path / "images"

    @property
    def control(self) -> Path:
        """The socket on which the lab tells its status and is stopped."""
        return self.path / "control.sock"

    @property
    def lock(self) -> Path:
        """Held while the lab lives; contains the process ID of its outer process."""
        return self.path / "lock"

    @property
    def cgroup(self) -> str:
        """The control group of a real cluster's containers, by a name that no other lab has."""
        return f"podidentity-{self.name}-{hashlib.sha256(bytes(self.path)).hexdigest()[:8]}"

    def facts(self) -> dict[str, Any] | None:
        """Return what the lab wrote when it was ready; None before."""
        try:
            facts: dict[str, Any] = json.loads(self.facts_file.read_text())
        except FileNotFoundError:
            return None
        return facts

    def is_alive(self) -> bool:
        """Whether a process of the lab holds the lock."""
        with contextlib.suppress(FileNotFoundError), self.lock.open("rb") as lock_file:
            return not _take(lock_file.fileno())
        return False

    def owner(self) -> int:
        """Return the process ID of the outer process; 0 when the lab has not written it yet."""
        try:
            return int(self.lock.read_text())
        except (OSError, ValueError):
            return 0

    def write(self, path: Path, text: str) -> None:
        """Write a file for its owner alone, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123  # a mode
            file.write(text)
        partial.replace(path)


def home() -> Path:
    """Return the directory of all this user's labs, made when missing. Raises `LabError` when others can write it."""
    set_by_user = os.environ.get("PODIDENTITY_LAB_HOME")
    base = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108  # its owner and mode are checked below
    path = Path(set_by_user or f"{base}/podidentity-lab-{os.getuid()}").absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.lstat()
        # Anybody may have made this name in /tmp before us, and secrets will be in it.
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
            raise LabError(f"{path} is not a directory of yours alone; {_NEW_HOME}")
        # A home of root's, say, is root's alone as well, and every directory in it would pass for a lab that crashed.
        if set_by_user and not _is_home(path):
            raise LabError(f"{path} is not a directory of labs: something else is in it; {_NEW_HOME}")
    except OSError as error:
        raise LabError(
            f"the lab's directory {path} cannot be made: {error.strerror}; set PODIDENTITY_LAB_HOME to another one"
        ) from None
    return path


_NEW_HOME = "set PODIDENTITY_LAB_HOME to a directory that does not exist yet"


def _is_home(path: Path) -> bool:
    lock = path / ".lock"
    return (lock.is_file() and lock.read_bytes() in (b"", _MARK)) if lock.exists() else not any(path.iterdir())


def all_labs() -> tuple[Directory, ...]:
    """Return this user's running labs, sorted by name; remove what dead ones left."""
    with _home_locked() as base:
        return tuple(_living(base))


def find(name: str) -> Directory:
    """Return a running lab. Raises `LabError` when there is none of this name."""
    labs = all_labs()
    for lab in labs:
        if lab.name == name:
            return lab
    if not labs:
        raise LabError(f"lab {name!r}: no lab is up; start it with `podidentity lab up --name {name}`")
    alternatives = ", ".join(lab.name for lab in labs)
    message = f"lab {name!r}: up are {alternatives}; say which one with --name, or start it by `podidentity lab up`"
    raise LabError(message)


@contextlib.contextmanager
def claimed(name: str) -> Iterator[tuple[Directory, int]]:
    """Make a lab's directory and take its lock; yield both, the lock as a descriptor. At the end the directory goes.

    `LabSettings` has made sure that `name` is no path.

    Raises `LabError` when the name is in use or nothing can be written.
    """
    with _home_locked() as base:
        if any(lab.name == name for lab in _living(base)):
            raise LabError(
                f"lab {name!r}: it is up already; use it, stop it with `podidentity lab down --name {name}`, or give "
                "another --name"
            )
        lab = Directory(base / name)
        descriptor = _make(lab)
    try:
        yield lab, descriptor
    finally:
        _remove(lab)
        os.close(descriptor)


def _make(lab: Directory) -> int:
    try:
        for path in (lab.path, lab.logs, lab.nodes):
            path.mkdir(mode=0o700)
        descriptor = os.open(lab.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(descriptor, str(os.getpid()).encode())
    except OSError as error:
        _remove(lab)
        message = f"the lab cannot write below {lab.path}: {error.strerror}; make room, or set PODIDENTITY_LAB_HOME"
        raise LabError(message) from None
    _take(descriptor)
    return descriptor


def _living(base: Path) -> Iterator[Directory]:
    for path in sorted(base.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        lab = Directory(path)
        if lab.is_alive():
            yield lab
        else:
            _remove(lab)


@contextlib.contextmanager
def _home_locked() -> Iterator[Path]:
    """Hold the lock that keeps two commands from making or removing labs at once; yield the home."""
    base = home()
    with (base / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not lock.tell():
            _write_mark(base, lock)
        yield base


def _write_mark(base: Path, lock: IO[bytes]) -> None:
    try:
        lock.write(_MARK)
        lock.flush()
    except OSError as error:
        message = f"the lab cannot write below {base}: {error.strerror}; make room, or set PODIDENTITY_LAB_HOME"
        raise LabError(message) from None


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(lab: Directory) -> None:
    """Remove a lab's control group and directory, also where a pod took the right to do so from it."""
    cgroups.remove(lab.cgroup)
    for folder, _, _ in os.walk(lab.path):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(lab.path, ignore_errors=True)
