"""`kubectl exec`: a program beside a container, with its input, its output and its exit code."""

import subprocess
from collections.abc import Iterator

import pytest

from system.lab.running import KUBECTL, Lab, lab, pod
from waiting import until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with one pod that runs."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "exec", "--nodes", "1") as one:
        one.create(pod("sleeper", "sleep infinity", env=[{"name": "COLOUR", "value": "red"}]))
        until(lambda: one.is_ready("sleeper"), "the pod runs")
        yield one


def executed(up: Lab, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`kubectl exec`, whatever comes of it."""
    return up.try_kubectl("exec", *words, stdin=stdin)


def test_it_runs_in_the_container(up: Lab) -> None:
    """Environment and root are the container's; output and errors come on streams of their own."""
    done = executed(up, "sleeper", "--", "/bin/sh", "-c", "echo $COLOUR; ls /home >&2; hostname")
    assert (done.returncode, done.stdout.split()) == (0, ["red", "sleeper"])
    assert "red" not in done.stderr


def test_the_exit_code_is_the_program_s(up: Lab) -> None:
    """Kubectl ends as the program did."""
    done = executed(up, "sleeper", "--", "/bin/sh", "-c", "exit 7")
    assert done.returncode == 7


def test_input_goes_in(up: Lab) -> None:
    """`-i` passes standard input, and its end."""
    done = executed(up, "-i", "sleeper", "--", "/usr/bin/sort", stdin="b\na\n")
    assert (done.returncode, done.stdout) == (0, "a\nb\n")


def test_much_output_arrives_whole(up: Lab) -> None:
    """Nothing is cut off at the end."""
    done = executed(up, "sleeper", "--", "/usr/bin/seq", "100000")
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 100001))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nobody", "--", "true"), "not found"),
        (("sleeper", "-c", "other", "--", "true"), "other"),
    ],
)
def test_what_cannot_be_run_is_explained(up: Lab, words: tuple[str, ...], told: str) -> None:
    """The command fails with a sentence that says what was wrong."""
    done = executed(up, *words)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr


def test_nothing_stays_behind(up: Lab) -> None:
    """When kubectl is killed, the program that it runs in the container ends."""
    client = subprocess.Popen(
        [KUBECTL, "exec", "sleeper", "--", "sleep", "987"], env=up.variables, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: "sleep\x00987" in commands(up), "the program runs")
    finally:
        client.kill()
        client.wait()
    until(lambda: "sleep\x00987" not in commands(up), "the program is gone")


def commands(up: Lab) -> str:
    """Return the command lines of all processes in the container."""
    return executed(up, "sleeper", "--", "/bin/sh", "-c", "cat /proc/[0-9]*/cmdline").stdout
