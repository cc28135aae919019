"""A real cluster whose lab is killed leaves nothing on the machine, without any further command."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from cluster.harness import until
from podidentity_lab import cgroups
from podidentity_lab.directory import Directory
from podidentity_lab.real import program
from system.lab.running import Lab, Namespaces, User, pod, processes_of


@pytest.mark.usefixtures("possible")
def test_a_killed_lab_leaves_nothing(tmp_path: Path) -> None:
    """After a SIGKILL of the outer process alone, processes, control groups and files are gone.

    A container is running at that moment.
    """
    home = tmp_path / "labs"
    home.mkdir(mode=0o700)
    one = Lab(home, "killed", User(environment={"XDG_CACHE_HOME": str(program.place().parents[1])}))
    with Namespaces() as made, one.started("--kubernetes", "real", "--nodes", "1") as process:
        until(lambda: (one.directory / "lab.json").exists() or process.poll() is not None, "the lab")
        one.enter()
        until(lambda: one.try_kubectl("get", "serviceaccount", "default").returncode == 0, "the service account")
        one.create(pod("busy", "sleep infinity"))
        until(lambda: _busy(one.directory), "a container")
        assert int((one.directory / "lock").read_text()) == process.pid
        made.add_below(process.pid)
        assert made.members()
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not made.members(), "nodes, containers and the control plane to end")
    until(lambda: not _groups(one.directory), "the control groups to go")
    until(lambda: not one.directory.exists(), "the directory to go")
    until(lambda: not processes_of(home), "the last process to end")
    assert str(home) not in Path("/proc/self/mountinfo").read_text()


def _groups(lab: Path) -> list[Path]:
    """Return the lab's control groups, in every hierarchy of either version."""
    name = Directory(lab).cgroup
    return [*cgroups.ROOT.glob(name), *cgroups.ROOT.glob(f"*/{name}")]


def _busy(lab: Path) -> bool:
    """Whether a process is in one of the lab's control groups, at any depth, which only containers are."""
    with contextlib.suppress(OSError):  # groups come and go while a container starts
        return any(members.read_text() for group in _groups(lab) for members in group.glob("node-0/**/cgroup.procs"))
    return False
