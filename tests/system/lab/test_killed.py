"""Labs and demos that are killed at random moments: nothing of them is left, and the next one starts afresh."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.lab.machine import Machine, machine
from system.lab.running import Lab, Namespaces, missing, processes_of
from waiting import until

pytestmark = pytest.mark.root
REPOSITORY = Path(__file__).parents[3]
LONGEST_START_SECONDS = 2.5
LONGEST_DEMO_SECONDS = 9.0
GONE_SECONDS = 20.0  # the kernel needs milliseconds; a loaded machine may need more


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory for labs."""
    place = tmp_path / "labs"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Machine]:
    """The machine that must stay as it is."""
    with machine(tmp_path) as one:
        yield one


def watch(process: subprocess.Popen[str], seconds: float, made: Namespaces) -> None:
    """Let a process run for a while; the namespaces that it makes for itself until then are added."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        made.add_below(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(0.1, max(0.0, deadline - time.monotonic())))
    made.add_below(process.pid)


@pytest.mark.parametrize("batch", range(4))
def test_twenty_labs_killed_at_random_moments_leave_nothing(home: Path, around: Machine, batch: int) -> None:
    """Whenever the outer process dies, the kernel ends the lab with it; the next command removes its directory."""
    chance = random.Random(batch)  # noqa: S311  # moments, not secrets
    before = around.state()
    with contextlib.ExitStack() as stack, Namespaces(around.pid) as made:
        labs = [Lab(home, f"lab-{number}", around.user) for number in range(5)]
        started = [stack.enter_context(one.started("--nodes", "1")) for one in labs]
        chance.shuffle(started)
        for process in started:
            watch(process, chance.uniform(0.0, LONGEST_START_SECONDS / 2), made)
            process.kill()
        until(lambda: not made.members(), "the labs' processes to end", GONE_SECONDS)
    until(lambda: not processes_of(home), "the labs' processes to end", GONE_SECONDS)
    assert Lab(home, "any").run("list").stdout == ""
    assert [path.name for path in home.iterdir()] == [".lock"]
    assert around.state() == before


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGHUP, 1)]
)
def test_a_killed_demo_leaves_nothing_and_the_next_starts(
    home: Path, tmp_path: Path, around: Machine, number: signal.Signals, times: int
) -> None:
    """Killed anywhere, by kill, a closed terminal or Ctrl-C twice: no process, file, mount or rule of it stays."""
    chance = random.Random(int(number))  # noqa: S311  # moments, not secrets
    before = around.state()
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    for longest in (LONGEST_START_SECONDS, LONGEST_DEMO_SECONDS):
        with Namespaces(around.pid) as made, demo(home, scratch, around) as process:
            watch(process, chance.uniform(0.0, longest), made)
            for _ in range(times):
                process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
            printed, said = process.communicate(timeout=60)
            assert process.returncode != 0
            assert not printed or "Traceback" not in said  # before its first word, Python itself is still starting
            until(lambda made=made: not made.members(), "the demo's processes to end", GONE_SECONDS)  # type: ignore[misc]
    assert Lab(home, "any").run("list").stdout == ""
    assert [path.name for path in home.iterdir()] == [".lock"]
    assert not list(scratch.iterdir())
    assert around.state() == before


LEAVING = """
import os, signal
from podidentity_lab import cgroups, directory, up
with directory.claimed("real") as (lab, _):
    up.leave_somebody_behind(lab)
    made = list(cgroups.make(lab.cgroup, "node-0"))
    print(*made, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_the_kernel_does_not_remove_is_removed(home: Path) -> None:
    """Control groups of a killed lab go, and so does its directory, though nobody runs another command."""
    if os.geteuid() != 0:
        missing("control groups need root; only a lab with a real cluster makes them")
    variables = {"PATH": os.environ["PATH"], "PODIDENTITY_LAB_HOME": str(home), "HOME": "/"}
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], env=variables, capture_output=True, text=True, check=False, timeout=60
    )
    groups = [Path(one) for one in done.stdout.split()]
    assert (done.returncode, bool(groups)) == (-signal.SIGKILL, True), done.stderr
    until(lambda: not any(one.parent.exists() for one in groups), "the control groups to go", 2 * GONE_SECONDS)
    until(lambda: [path.name for path in home.iterdir()] == [".lock"], "the directory to go", 2 * GONE_SECONDS)


def demo(home: Path, scratch: Path, around: Machine) -> subprocess.Popen[str]:
    """Start the demo as `make demo` does, in a session of its own."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "--", *around.user.command("demo")],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "PODIDENTITY_LAB_HOME": str(home), "TMPDIR": str(scratch), "HOME": "/"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
