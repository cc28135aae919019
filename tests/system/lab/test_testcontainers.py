"""`podidentity_lab.testcontainers`, with the real Testcontainers, and a Docker whose container is a lab of this host.

The API is a stand-in: what it calls a container's files are those of a lab of this machine, and its published ports are
that lab's. So all of the module runs but Docker itself.
"""

import base64
import contextlib
import io
import json
import re
import struct
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from docker.errors import APIError
from testcontainers.core.config import testcontainers_config
from testcontainers.core.docker_client import DockerClient

from podidentity.errors import LabError
from podidentity_lab.testcontainers import INSIDE, KUBERNETES_PORT, LabContainer
from serving import LOOPBACK
from system.lab.running import KUBECTL, Lab, lab

pytestmark = pytest.mark.root
CONTAINER = "c0ffee"
OF_CONTAINER = f"/containers/{CONTAINER}"
Answer = tuple[int, dict[str, str], bytes]
NOTHING: Answer = (404, {"Content-Type": "application/json"}, b'{"message": "not here"}')


class Docker:
    """As much of Docker's API as one container takes. `up`: the lab that is in it; None: it ends at once."""

    def __init__(self, up: Lab | None) -> None:
        self.up = up
        self.settings: dict[str, Any] = {}
        self.removed = False

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        """Return status, headers and body."""
        address = urlsplit(target)
        path = re.sub(r"^/v[0-9.]+", "", address.path)
        content = json.loads(body) if body else {}
        answers: dict[str, Callable[[], Answer]] = {
            "GET /version": lambda: _json({"ApiVersion": "1.44", "Version": "26.0"}),
            "GET /images/podidentity-lab/json": lambda: _json({"Id": "sha256:1", "RepoTags": ["podidentity-lab"]}),
            "POST /containers/create": lambda: self._create(content),
            f"POST {OF_CONTAINER}/start": lambda: (204, {}, b""),
            f"GET {OF_CONTAINER}/json": lambda: _json(self._container()),
            f"GET {OF_CONTAINER}/logs": lambda: (200, {}, _frame("error: this kernel does not let you\n")),
            f"GET {OF_CONTAINER}/archive": lambda: self._archive(Path(parse_qs(address.query)["path"][0])),
            f"DELETE {OF_CONTAINER}": self._remove,
        }
        return answers.get(f"{method} {path}", lambda: NOTHING)()

    def _create(self, settings: dict[str, Any]) -> Answer:
        self.settings = settings
        return _json({"Id": CONTAINER})

    def _remove(self) -> Answer:
        self.removed = True
        return 204, {}, b""

    def _container(self) -> dict[str, Any]:
        facts = self._facts()
        names = ("kubernetes_port", "gateway_port", "identity_port")
        ports = {
            f"{KUBERNETES_PORT + number}/tcp": [{"HostIp": LOOPBACK, "HostPort": str(facts[name])}]
            for number, name in enumerate(names)
            if facts
        }
        state = {"Status": "running" if self.up else "exited", "Running": bool(self.up)}
        network = {"Ports": ports}
        return {"Id": CONTAINER, "Name": "/lab", "State": state, "NetworkSettings": network, "Config": {"Tty": False}}

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.up.directory / "lab.json").read_text()) if self.up else {}
        return facts

    def _archive(self, path: Path) -> Answer:
        if self.up is None:
            return NOTHING
        assert path.parent == INSIDE.path
        content = (self.up.directory / path.name).read_bytes()
        if path.name in {"lab.json", "kubeconfig"}:  # in the container the ports are those of the command line
            content = content.replace(str(self._facts()["kubernetes_port"]).encode(), str(KUBERNETES_PORT).encode())
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo(path.name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        stat = base64.b64encode(json.dumps({"name": path.name}).encode()).decode()
        return 200, {"X-Docker-Container-Path-Stat": stat}, buffer.getvalue()


def _json(content: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@contextlib.contextmanager
def listening(docker: Docker) -> Iterator[int]:
    """Serve the API on loopback: its port. Each connection is for one request, as Docker's hijacked ones are."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = docker.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815  # the base class's names

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _frame(text: str) -> bytes:
    """Return text as standard output in Docker's multiplexed stream."""
    return struct.pack(">BxxxI", 1, len(text.encode())) + text.encode()


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    """A Docker whose containers end at once, until somebody gives it a lab."""
    stand_in = Docker(None)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    with listening(stand_in) as port:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{LOOPBACK}:{port}")
        yield stand_in


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Lab]:
    """A lab of this machine."""
    home = tmp_path / "labs"
    home.mkdir(mode=0o700)
    with lab(home, "lab", "--nodes", "1") as one:
        yield one


def test_the_host_works_with_a_lab_in_a_container(docker: Docker, up: Lab) -> None:
    """Kubectl and curl reach it by the published ports, with the container's certificates; then nothing is left."""
    docker.up = up
    with LabContainer(up=("--nodes", "1")) as container:
        variables = container.environment()
        folder = container.directory.path
        nodes = subprocess.run(
            [KUBECTL, "get", "nodes", "-o", "name"], env=variables, capture_output=True, text=True, check=True
        )
        assert nodes.stdout == "node/node-0\n"
        answer = subprocess.run(
            ["curl", "-sS", "https://management.azure.com/subscriptions?api-version=2022-12-01"],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(answer.stdout)["error"]["code"] == "AuthenticationFailed"
    assert docker.settings["Cmd"] == ["up", "--listen", f"0.0.0.0:{KUBERNETES_PORT}", "--nodes", "1"]
    assert docker.settings["HostConfig"]["Privileged"] is True
    assert (docker.removed, folder.exists()) == (True, False)


def test_a_command_runs_in_the_container(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output, or a sentence with what it said. Docker's own stream of bytes is not imitated."""
    results = {"status": (0, b"lab\n"), "join": (1, b"error: no node waits\n")}
    assert docker.up is None
    monkeypatch.setattr(LabContainer, "exec", lambda _, words: results[words[2]])
    container = LabContainer()
    assert container.run("status") == "lab\n"
    with pytest.raises(LabError, match=r"^podidentity lab join nobody: error: no node waits$"):
        container.run("join", "nobody")


def test_a_container_that_ends_is_explained_by_its_last_words(docker: Docker) -> None:
    """Nothing is waited for that cannot come."""
    with pytest.raises(LabError, match=r"error: this kernel does not let you; run it privileged$"):
        LabContainer().start()
    assert docker.removed


def test_the_stand_in_refuses_what_it_does_not_have(docker: Docker) -> None:
    """A request that the module did not make before would be seen."""
    assert docker.up is None
    with pytest.raises(APIError):
        DockerClient().client.images.list()
