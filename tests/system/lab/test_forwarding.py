"""`kubectl port-forward`: a port of a pod on the host's loopback, by the package's kubectl, which is new enough."""

import contextlib
import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import LOOPBACK
from system.lab.running import Lab, lab, pod
from waiting import until

pytestmark = pytest.mark.root
KUBECTL = str(Path(sys.executable).with_name("kubectl"))
PORT = 8080
SERVER = f"cd /tmp && seq 200000 >much && exec /usr/bin/python3 -m http.server --bind 127.0.0.1 {PORT}"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with one pod that serves on its own loopback only."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "forward", "--nodes", "1") as one:
        probe = {"exec": {"command": ["/usr/bin/curl", "-sf", f"http://127.0.0.1:{PORT}/much"]}, "periodSeconds": 1}
        one.create(pod("server", SERVER, readinessProbe=probe))
        until(lambda: one.is_ready("server"), "the server")
        yield one


@contextlib.contextmanager
def forwarded(up: Lab, port: int) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run `kubectl port-forward` of a port to one that the kernel chooses: that port, and kubectl's process."""
    process = subprocess.Popen(
        [KUBECTL, "port-forward", "pod/server", f":{port}"],
        env=up.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            match = re.match(r"Forwarding from 127\.0\.0\.1:(\d+) ->", line)
            assert match, line
            yield int(match[1]), process
        finally:
            process.kill()


def body(connection: http.client.HTTPConnection, path: str) -> bytes:
    """GET a path; the answer's body."""
    connection.request("GET", path)
    return connection.getresponse().read()


def test_connections_reach_the_pod_s_own_loopback(up: Lab) -> None:
    """Several at once over one WebSocket, and an answer of more than a megabyte is complete."""
    expected = "".join(f"{number}\n" for number in range(1, 200001)).encode()
    with forwarded(up, PORT) as (port, _):
        connections = [http.client.HTTPConnection(LOOPBACK, port, timeout=60) for _ in range(4)]
        for connection in connections:
            connection.request("GET", "/much")
        assert all(connection.getresponse().read() == expected for connection in connections)


def test_a_port_on_which_nobody_listens_is_explained(up: Lab) -> None:
    """The client is cut off, and kubectl says which port and why."""
    with forwarded(up, PORT + 1) as (port, process):
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            body(http.client.HTTPConnection(LOOPBACK, port, timeout=60), "/much")
        assert process.stderr is not None
        text = process.stderr.readline()
    assert f"port {PORT + 1} of the pod: " in text
    assert "refused" in text


def test_who_has_no_right_is_told(up: Lab) -> None:
    """A user without the right is refused by the API server, and kubectl shows its message."""
    token = up.kubectl("create", "token", "default").strip()
    config = [KUBECTL, "--kubeconfig", "/dev/null", "--server", server(up), "--insecure-skip-tls-verify"]
    done = subprocess.run(
        [*config, "--token", token, "port-forward", "pod/server", f":{PORT}"],
        env=up.variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "forbidden" in done.stderr


def server(up: Lab) -> str:
    """Return the address of the lab's API."""
    return up.kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
