"""`kubectl debug`, `attach`, `run -it` and `exec -t`: terminals, and containers that are added to a pod that runs."""

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from system.lab.running import KUBECTL, Json, Lab, home_of_nobody, lab, pod
from system.lab.terminals import Screen, screen
from waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
IMAGE = "--image=podidentity/lab-tools:1"
SIZE = "until stty size | grep '^40 123'; do :; done"
"""Clients tell a program's terminal its size when the program runs already, as with any Kubernetes."""
PROCESSES = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; done"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of one node with one pod that runs."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "debug", "--nodes", "1") as one:
        one.create(pod("app", "sleep 1234"))
        until(lambda: one.is_ready("app"), "the pod runs")
        yield one


def debuggers(up: Lab, name: str = "app") -> dict[str, Json]:
    """Return the state of each ephemeral container of a pod, by name."""
    statuses = up.get("pod", name)["status"].get("ephemeralContainerStatuses") or ()
    return {status["name"]: status["state"] for status in statuses}


def at_terminal(up: Lab, *words: str) -> AbstractContextManager[Screen]:
    """Run kubectl at a terminal of 40 rows and 123 columns."""
    return screen([KUBECTL, *words], up.variables, 40, 123)


def test_a_debugger_sees_the_pod(up: Lab) -> None:
    """It is in the pod's network, sees its target's processes, and can be listed and entered; the pod goes on."""
    script = f"ip -br addr show eth0; {PROCESSES}; sleep 4321"
    up.kubectl("debug", "app", IMAGE, "--target=main", "--container=looker", "--", "sh", "-c", script)
    until(lambda: "running" in debuggers(up).get("looker", {}), "the debugger runs")
    until(lambda: "sleep 4321" in up.kubectl("logs", "app", "-c", "looker"), "what it sees")
    status = up.get("pod", "app")["status"]
    log = up.kubectl("logs", "app", "--container=looker")
    assert status["podIP"] in log
    assert "sleep 1234" in log
    assert up.kubectl("exec", "app", "--container=looker", "--", "hostname") == "app\n"
    assert "looker" in up.kubectl("describe", "pod", "app").partition("Ephemeral Containers:")[2]
    assert (status["phase"], status["containerStatuses"][0]["restartCount"]) == ("Running", 0)
    assert up.is_ready("app")


def test_without_a_target_it_has_processes_of_its_own(up: Lab) -> None:
    """It ends, and is not started again; its exit code stands in the pod's status."""
    up.kubectl("debug", "app", IMAGE, "--container=alone", "--", "sh", "-c", f"{PROCESSES}; exit 3")
    until(lambda: "terminated" in debuggers(up).get("alone", {}), "the debugger's end")
    assert debuggers(up)["alone"]["terminated"]["exitCode"] == 3
    assert "sleep 1234" not in up.kubectl("logs", "app", "--container=alone")


def test_an_image_that_is_missing_is_said(up: Lab) -> None:
    """The state of such a debugger says what to do, as that of any container."""
    up.kubectl("debug", "app", "--image=nowhere/at-all:1", "--container=missing", "--", "sh")
    until(lambda: "waiting" in debuggers(up).get("missing", {}), "the debugger's state")
    until(lambda: "podidentity lab load" in json.dumps(debuggers(up)["missing"]), "what to do")


def test_somebody_debugs_at_a_terminal(up: Lab) -> None:
    """A prompt, the terminal's size, also when it changes, Ctrl-C, and the shell's end."""
    words = ("debug", "app", "-it", IMAGE, "--target=main", "--container=typed", "--", "sh")
    with at_terminal(up, *words) as terminal:
        terminal.until_shown("# ")
        terminal.press(f"{SIZE}; tty; echo $TERM-$((6*7))\r")
        terminal.until_shown("xterm-42")
        assert "40 123\r\n/dev/pts/0" in terminal.shown
        terminal.resize(50, 100)
        terminal.press("until stty size | grep '^50'; do :; done\r")
        terminal.until_shown("50 100")
        terminal.press("sleep 1000\r")
        until(lambda: "sleep 1000" in up.kubectl("exec", "app", "--", "sh", "-c", PROCESSES), "the program runs")
        terminal.press("\x03")
        terminal.press("echo status $?\r")
        terminal.until_shown("status 130")
        terminal.press("exit 7\r")
        assert terminal.process.wait(60) == 0
    assert debuggers(up)["typed"]["terminated"]["exitCode"] == 7
    assert "xterm-42" in up.kubectl("logs", "app", "--container=typed")


def test_exec_has_terminals(up: Lab) -> None:
    """`exec -it` at a terminal: size and exit status; when kubectl is killed, its program ends."""
    with at_terminal(up, "exec", "-it", "app", "--", "sh", "-c", f"{SIZE}; sleep 987") as terminal:
        terminal.until_shown("40 123")
        terminal.process.kill()
        until(lambda: "sleep 987" not in up.kubectl("exec", "app", "--", "sh", "-c", PROCESSES), "its end")
    with at_terminal(up, "exec", "-it", "app", "--", "sh", "-c", "read line; echo got $line; exit 9") as terminal:
        terminal.press("words\r")
        terminal.until_shown("got words")
        assert terminal.process.wait(60) == 9


def test_input_from_a_pipe_ends(up: Lab) -> None:
    """`kubectl run -i` gives a container its input, whose end it sees; `attach` shows what others write."""
    words = ("run", "sorter", "-i", "--rm", "--restart=Never", IMAGE, "--", "sort")
    done = up.try_kubectl(*words, stdin="b\na\n")
    assert (done.returncode, done.stdout.splitlines()[:2]) == (0, ["a", "b"]), done.stderr
    up.create(pod("writer", "echo ready; read line; echo got $line; read line; echo then $line", stdin=True))
    until(lambda: up.is_ready("writer"), "the pod runs")
    with at_terminal(up, "attach", "writer") as onlooker:
        onlooker.until_shown("ready")
        up.try_kubectl("attach", "-i", "writer", stdin="one\n")
        onlooker.until_shown("got one")
    assert up.finished("writer") == "ready\ngot one\nthen\n"


def test_a_copy_shares_its_processes(up: Lab) -> None:
    """`--copy-to` makes a pod of its own, in which the debugger sees the program; the first pod is left alone."""
    up.kubectl(
        "debug", "app", "--copy-to=copy", "--share-processes", IMAGE, "--container=looker", "--", "sleep", "4321"
    )
    until(lambda: up.is_ready("copy"), "the copy runs")
    seen = up.kubectl("exec", "copy", "--container=looker", "--", "sh", "-c", f"{PROCESSES}; ls -A /proc/1/root")
    assert "sleep 1234" in seen
    assert "sleep 4321" in seen
    # No process of an ended program stays, although the namespace's first process is nobody's shell.
    up.kubectl("exec", "copy", "--container=looker", "--", "sh", "-c", "(sleep 0.01 &)")
    zombies = "grep -l '^State:.Z' /proc/[0-9]*/status; true"
    until(lambda: not up.kubectl("exec", "copy", "--container=looker", "--", "sh", "-c", zombies), "no zombies")
    up.kubectl("delete", "pod", "copy", "--grace-period=1")
    assert up.is_ready("app")


def test_a_node_is_debugged(up: Lab) -> None:
    """`kubectl debug node/...`: the node's network and its own files below /host."""
    script = "hostname; ip -br addr; cat /host/etc/kubernetes/azure.json"
    told = up.kubectl("debug", "node/node-0", IMAGE, "--", "sh", "-c", script)
    name = re.search(r"node-debugger-node-0-\w+", told)
    assert name
    log = up.finished(name[0])
    node = up.get("node", "node-0")["status"]["addresses"][0]["address"]
    assert log.startswith("node-0\n")
    assert node in log
    assert "subscriptionId" in log


def test_terminals_without_root() -> None:
    """A lab of a user without rights has all of it."""
    with home_of_nobody() as (home, user), lab(home, "rootless", "--nodes", "1", user=user) as one:
        one.create(pod("app", "sleep 1234"))
        until(lambda: one.is_ready("app"), "the pod runs")
        with at_terminal(one, "debug", "app", "-it", IMAGE, "--target=main", "--", "sh") as terminal:
            terminal.until_shown("# ")
            terminal.press(f"{PROCESSES}; tty\r")
            terminal.until_shown("/dev/pts/0")
            assert "sleep 1234" in terminal.shown
        one.kubectl(
            "debug",
            "app",
            "--copy-to=copy",
            "--share-processes",
            IMAGE,
            "--container=looker",
            "--",
            "sleep",
            "4321",
        )
        until(lambda: one.is_ready("copy"), "the copy runs")
        with at_terminal(one, "exec", "-it", "copy", "--", "sh", "-c", f"{SIZE}; {PROCESSES}") as terminal:
            terminal.until_shown("40 123\r\n")
            terminal.until_shown("sleep 4321")
