"""What a container's root holds: this machine's programs, read-only, and an /etc of its own. `launch` builds it.

/usr and the Python that runs the lab are shown as they are. Nothing else of the machine is there: no home directory, no
/etc, no certificates but the lab's. An unpacked image has all of its own instead, and what the container writes is laid
over it.
"""

import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import podidentity
import podidentity_lab

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "protocols", "services", "iproute2")
"""What programs below /usr need of the machine's /etc; nothing in it is about this machine alone."""

_DIRECTORIES = {
    **dict.fromkeys(
        ("/proc", "/sys", "/dev", "/etc", "/run", "/var/log", "/var/lib", "/var/cache", "/opt", "/srv"), 0o755
    ),
    **dict.fromkeys(("/home", "/mnt", "/root"), 0o755),
    **dict.fromkeys(("/tmp", "/var/tmp"), 0o1777),  # noqa: S108  # the container's own
}
_IMAGE_DIRECTORIES = {**dict.fromkeys(("/proc", "/sys", "/dev", "/etc"), 0o755), "/tmp": 0o1777}  # noqa: S108
"""What every container has, whatever is in its image."""
_FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}

Bind = tuple[str, str, bool]
"""Source, target, and whether it is read-only."""


@dataclass(frozen=True, slots=True)
class Rights:
    """As whom a container's program runs, and what it may do. Capabilities carry no `CAP_`."""

    user: int = 0
    group: int = 0
    groups: tuple[int, ...] = ()
    capabilities: frozenset[str] = frozenset()
    privileged: bool = False
    no_new_privileges: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """What a pod is called and knows of the network: the texts of its private files."""

    hostname: str
    hosts: str
    resolv_conf: str
    certificates: str = field(repr=False)


_OTHERS_READ = stat.S_IROTH | stat.S_IXOTH


@dataclass(frozen=True, slots=True)
class Program:
    """What to start, and in which environment: nothing of the lab's own environment is in it."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    working_directory: str = "/"


def plan(  # what `launch` reads
    root: Path,
    program: Program,
    rights: Rights,
    network: Network,
    volumes: Sequence[Bind],
    *,
    read_only: bool,
    image: Path | None = None,
) -> dict[str, object]:
    """Return a container's root and program as values that JSON can express, for `launch`.

    `image` is an unpacked image that the root is to begin with, in the place of this machine's programs.
    """
    links, binds = _system() if image is None else ({}, [])
    etc = {
        "/etc/hosts": network.hosts,
        "/etc/hostname": f"{network.hostname}\n",
        "/etc/resolv.conf": network.resolv_conf,
        CERTIFICATES: network.certificates,
    }
    return {
        "root": str(root),
        "image": None if image is None else str(image),
        "directories": _DIRECTORIES if image is None else _IMAGE_DIRECTORIES,
        "links": {**links, "/var/run": "../run", "/etc/mtab": "/proc/self/mounts"} if image is None else {},
        "files": {**_FILES, **etc} if image is None else etc,
        # Parents first: volumes may be in volumes, and this Python may be below a volume's place, such as /tmp.
        "binds": sorted([*binds, *volumes], key=lambda bind: bind[1].rstrip("/").count("/")),
        "read_only": read_only,
        "hostname": network.hostname,
        "command": list(program.command),
        "environment": dict(program.environment),
        "working_directory": program.working_directory,
        "user": rights.user,
        "group": rights.group,
        "groups": list(rights.groups),
        "capabilities": sorted(rights.capabilities),
        "privileged": rights.privileged,
        "no_new_privileges": rights.no_new_privileges,
    }


def python_directories() -> tuple[str, ...]:
    """Return the directories of this Python, its packages and this project, outermost first: a container runs them."""
    paths = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, str(Path(sys.executable).resolve().parents[1])]
    paths += [str(Path(package.__path__[0]).resolve().parent) for package in (podidentity, podidentity_lab)]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    directories = {path for item in paths for path in (item, os.path.realpath(item)) if Path(path).is_dir()}
    outside = {path for path in directories if not path.startswith("/usr/") and path not in {"/usr", "/"}}
    return tuple(sorted(path for path in outside if not any(path.startswith(f"{other}/") for other in outside)))


def _system() -> tuple[dict[str, str], list[Bind]]:
    links: dict[str, str] = {}
    binds: list[Bind] = []
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            links[str(path)] = str(path.readlink())
        elif path.is_dir():
            binds.append((str(path), str(path), True))
    configuration = [f"/etc/{name}" for name in _ETC if Path("/etc", name).exists()]
    configuration += [
        str(path) for path in sorted(Path("/etc").glob("java-*-openjdk"))
    ]  # Debian's JDKs have their conf there
    programs = [part for path in python_directories() for part in readable_parts(Path(path))]
    binds += [(path, path, True) for path in (*configuration, *programs)]
    return links, binds


def readable_parts(directory: Path) -> tuple[str, ...]:
    """Return what to mount of a directory so that any user of a container can read it.

    That is the directory itself or, where it is its owner's alone, all that it contains: a container's users meet a
    directory of the container's own in its place.
    """
    if directory.stat().st_mode & _OTHERS_READ == _OTHERS_READ:
        return (str(directory),)
    return tuple(str(path) for path in sorted(directory.iterdir()))
