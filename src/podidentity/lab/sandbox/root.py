"""What a container's root holds: this machine's programs, read-only, and an /etc of its own. `launch` builds it.

No image is unpacked: /usr and the Python that runs the lab are shown as they are. Nothing else of the machine is there:
no home directory, no /etc, no certificates but the lab's. Called by `kubelet.containers`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import podidentity

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "protocols", "services", "iproute2")
"""What programs below /usr need of the machine's /etc, and which says nothing about the machine."""

_DIRECTORIES = {
    **dict.fromkeys(
        ("/proc", "/sys", "/dev", "/etc", "/run", "/var/log", "/var/lib", "/var/cache", "/opt", "/srv"), 0o755
    ),
    **dict.fromkeys(("/home", "/mnt", "/root"), 0o755),
    **dict.fromkeys(("/tmp", "/var/tmp"), 0o1777),  # noqa: S108  # the container's own
}
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


@dataclass(frozen=True, slots=True)
class Program:
    """What to start, and in which environment: nothing of the lab's own environment is in it."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    working_directory: str = "/"


def plan(  # what `launch` reads
    root: Path, program: Program, rights: Rights, network: Network, volumes: Sequence[Bind], *, read_only: bool
) -> dict[str, object]:
    """Write down a container's root and program, as JSON-able values for `launch`."""
    links, binds = _system()
    etc = {
        "/etc/hosts": network.hosts,
        "/etc/hostname": f"{network.hostname}\n",
        "/etc/resolv.conf": network.resolv_conf,
        CERTIFICATES: network.certificates,
    }
    return {
        "root": str(root),
        "directories": _DIRECTORIES,
        "links": {**links, "/var/run": "../run", "/etc/mtab": "/proc/self/mounts"},
        "files": {**_FILES, **etc},
        # Parents first: a volume may be mounted in a volume.
        "binds": [*binds, *sorted(volumes, key=lambda bind: bind[1].rstrip("/").count("/"))],
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
    """Where this Python, its packages and this project are: what a container needs to run them. Outermost first."""
    paths = [sys.base_prefix, sys.base_exec_prefix, sys.prefix, str(Path(sys.executable).resolve().parents[1])]
    paths.append(str(Path(podidentity.__file__).resolve().parents[1]))
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    wanted = {path for item in paths for path in (item, os.path.realpath(item)) if Path(path).is_dir()}
    outside = {path for path in wanted if not path.startswith("/usr/") and path not in {"/usr", "/"}}
    return tuple(sorted(path for path in outside if not any(path.startswith(f"{other}/") for other in outside)))


def _system() -> tuple[dict[str, str], list[Bind]]:
    links: dict[str, str] = {}
    binds: list[Bind] = []
    for path in map(Path, _SYSTEM):
        if path.is_symlink():
            links[str(path)] = str(path.readlink())
        elif path.is_dir():
            binds.append((str(path), str(path), True))
    own = [f"/etc/{name}" for name in _ETC if Path("/etc", name).exists()]
    own += [str(path) for path in sorted(Path("/etc").glob("java-*-openjdk"))]  # Debian's JDKs have their conf there
    binds += [(path, path, True) for path in (*own, *python_directories())]
    return links, binds
