"""A real cluster whose lab is killed: nothing stays on the machine, though nobody runs another command."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from cluster.harness import until
from podidentity.lab import cgroups
from podidentity.lab.directory import Directory
from podidentity.lab.real import program
from system.lab.running import Lab, User, pod


@pytest.mark.usefixtures("cluster")  # or the sentence why there can be none
def test_a_killed_lab_leaves_no_control_group(tmp_path: Path) -> None:
    """A SIGKILL of the outer process alone, while a container runs: its control groups and the lab's directory go."""
    home = tmp_path / "labs"
    home.mkdir(mode=0o700)
    one = Lab(home, "killed", User(environment={"XDG_CACHE_HOME": str(program.place().parents[1])}))
    with one.started("--kubernetes", "real", "--nodes", "1") as process:
        until(lambda: (one.directory / "lab.json").exists() or process.poll() is not None, "the lab")
        one.enter()
        until(lambda: one.try_kubectl("get", "serviceaccount", "default").returncode == 0, "the service account")
        one.create(pod("busy", "sleep infinity"))
        until(lambda: _busy(one.directory), "a container")
        assert int((one.directory / "lock").read_text()) == process.pid
        os.kill(process.pid, signal.SIGKILL)
    until(lambda: not _groups(one.directory), "the control groups to go")
    until(lambda: not one.directory.exists(), "the directory to go")


def _groups(lab: Path) -> list[Path]:
    """In every hierarchy, of either version."""
    name = Directory(lab).cgroup
    return [*cgroups.ROOT.glob(name), *cgroups.ROOT.glob(f"*/{name}")]


def _busy(lab: Path) -> bool:
    """Whether a process is in the lab's control groups, however deep: containers alone are."""
    with contextlib.suppress(OSError):  # groups come and go while a container starts
        return any(members.read_text() for group in _groups(lab) for members in group.glob("node-0/**/cgroup.procs"))
    return False
