"""A control group of the lab's own for a real cluster's containers, and its removal.

Everything else of a lab is in namespaces and ends with them; control groups belong to the machine. So each node sees a
group of its own as the root of the hierarchy, whatever its programs make is below it, and whatever removes the lab's
directory removes these groups as well.
"""

import contextlib
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PATIENCE_SECONDS = 20.0  # a group is busy until its last process, already killed, is gone
_LOOK_SECONDS = 0.05


def make(name: str, member: str) -> dict[Path, Path]:
    """Make the group `name`/`member` in every hierarchy; return each with its hierarchy. Raises `OSError`."""
    paths = {}
    for hierarchy in _hierarchies():
        for above, group in ((hierarchy, hierarchy / name), (hierarchy / name, hierarchy / name / member)):
            group.mkdir(exist_ok=True)
            _open_up(above, group)
        paths[hierarchy / name / member] = hierarchy
    return paths


def _open_up(above: Path, group: Path) -> None:
    """Let processes run in a new `group`."""
    if (above / "cgroup.controllers").exists():  # version 2: what is above decides which controllers there are
        for controller in (above / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):
                (above / "cgroup.subtree_control").write_text(f"+{controller}")
        return
    for limit in ("cpuset.cpus", "cpuset.mems"):  # version 1: a new group has none, and nothing may run there
        if (above / limit).exists():
            (group / limit).write_text((above / limit).read_text())


def remove(name: str) -> None:
    """Remove the group `name` and all below it, in every hierarchy; nothing when there is none."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (groups := _groups(name)) and time.monotonic() < deadline:
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        if _groups(name):
            time.sleep(_LOOK_SECONDS)


def _groups(name: str) -> list[Path]:
    return [hierarchy / name for hierarchy in _hierarchies() if (hierarchy / name).is_dir()]


def _hierarchies() -> list[Path]:
    """Return the mounted hierarchies: one with version 2, one for each set of controllers with version 1."""
    if (ROOT / "cgroup.procs").exists():
        return [ROOT]
    return sorted({path.resolve() for path in ROOT.glob("*") if (path / "cgroup.procs").exists()})
