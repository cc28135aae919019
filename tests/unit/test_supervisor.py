"""The supervisor with small programs as its daemon: how each of them ends, and what happens to the sockets."""

import os
import signal
import socket
import subprocess
import sys

DAEMON = """
import os, signal, socket, sys
sys.path[:0] = {path!r}
from podidentity.linux.passing import receive_sockets, send_sockets
keeper = socket.socket(fileno=int(os.environ["PODIDENTITY_KEEPER"]))
_, kept = receive_sockets(keeper)
ports = [bound.getsockname()[1] for bound in kept]
print(len(kept), os.environ.get("PODIDENTITY_CRASH", ""), os.getpid(), *ports, flush=True)
{act}
"""
LISTEN = """
listening = kept[0] if kept else socket.create_server(("127.0.0.1", 0))
send_sockets(keeper, "sockets", [listening])
print(listening.getsockname()[1], flush=True)
signal.pause()
"""


def start(act: str) -> subprocess.Popen[str]:
    """Start the supervisor with a daemon that runs the code `act`."""
    daemon = [sys.executable, "-c", DAEMON.format(path=sys.path, act=act)]
    command = [sys.executable, "-m", "podidentity", "supervise", *daemon]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> list[str]:
    """Return the words of a daemon's next line."""
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_connections_wait_while_a_killed_daemon_starts_again() -> None:
    """The socket stays open meanwhile: the port is the same, and a connection waits to be accepted."""
    with start(LISTEN) as supervisor:
        count, first = line(supervisor)
        port = int(*line(supervisor))
        assert count == "0"
        os.kill(int(first), signal.SIGKILL)
        with socket.create_connection(("127.0.0.1", port), 10):
            count, *crash, second, kept_port = line(supervisor)
        assert (count, " ".join(crash), int(kept_port)) == ("1", "signal 9", port)
        assert second != first
        supervisor.terminate()
        assert supervisor.wait(10) == 128 + signal.SIGTERM


def test_what_a_daemon_refuses_ends_it() -> None:
    """When a daemon refuses to start, the supervisor ends with the daemon's exit status."""
    with start("sys.exit(3)") as supervisor:
        assert supervisor.wait(10) == 3


def test_a_daemon_that_crashes_all_the_time_is_given_up() -> None:
    """After six crashes in a minute the supervisor ends, so that the container is restarted more slowly."""
    with start("raise ValueError") as supervisor:
        _, said = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 1
    assert said.splitlines()[-1].endswith("crashed 6 times in a minute; see above")


def test_no_program_is_a_sentence() -> None:
    """Without a program on the command line there is one sentence that says what to write."""
    command = [sys.executable, "-m", "podidentity", "supervise"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: supervise: no program is named; write for example `podidentity supervise nmi`\n",
    )


def test_the_startup_probe_asks_the_processes_themselves() -> None:
    """The probe looks for a process whose name says that it has started.

    A port is no proof: on the host's network two pods may share it.
    """
    program = "import signal; open('/proc/self/comm', 'w').write('nmi-started'); signal.pause()"
    command = [sys.executable, "-m", "podidentity", "started"]
    # In a PID namespace of its own, as in a container: others on this machine may be NMIs. It ends with its shell.
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    script = f'"$@"; echo $?; {sys.executable} -c "{program}" & until "$@"; do :; done; echo started'
    done = subprocess.run(
        [*apart, "/bin/sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["1", "started"], done.stderr
