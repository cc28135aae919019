"""A node with the real NMI on it: IMDS behind the uplink, an API server on the node, the daemon as a process."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import make
from daemons.kube.scripted import ScriptedServer, kubeconfig
from daemons.nmi.imds import StandInImds
from podidentity.core.model import crd
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, AzureIdentity, ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.supervisor import STARTED_NAME
from system.redirect.background import Background
from system.redirect.network import IMDS, PODS, Network
from waiting import until

ASSIGNED = f"/apis/{crd.API_VERSION}/namespaces/default/azureassignedidentities"
RESOURCE = "https://vault.azure.net"
TARGET = f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource={RESOURCE}"
HEAD = "GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n"


def exchange(connection: socket.socket, target: str = TARGET) -> tuple[int, dict[str, Any]]:
    """Send one request and read its whole answer: status and body. Raises when the connection ends."""
    status, body, _ = exchange_and_look(connection, target)
    return status, body


def exchange_and_look(connection: socket.socket, target: str = TARGET) -> tuple[int, dict[str, Any], bool]:
    """Do likewise, and say whether the answer was the connection's last."""
    connection.sendall(HEAD.format(target=target).encode())
    received = b""
    while True:
        head, end, body = received.partition(b"\r\n\r\n")
        if end:
            lines = head.lower()
            length = int(lines.partition(b"content-length: ")[2].split(b"\r\n")[0])
            if len(body) >= length:
                return int(head.split(b" ")[1]), json.loads(body), b"connection: close" in lines
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionResetError(f"the connection ended after {received!r}")
        received += piece


class Node:
    """The daemon and everything around it. `network` has IMDS's namespace free."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network = network
        self.directory = directory
        self.search_path = os.environ["PATH"]
        self.address = ""
        """What Kubernetes says is the node's address; empty: nothing."""
        self._log = directory / "nmi.log"
        self._kubeconfig = directory / "kubeconfig"
        self._opened = contextlib.ExitStack()
        self._started: list[subprocess.Popen[bytes]] = []
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        imds = StandInImds()
        self.imds = self._opened.enter_context(Background(self.network.azure, lambda: imds.listening(IMDS, 80)))
        self._kubeconfig.write_text(json.dumps(self.serve_kubernetes()))
        return self

    def serve_kubernetes(self) -> dict[str, Any]:
        """Start an API server on the node; the kubeconfig with which to reach it."""
        self.api = self._opened.enter_context(Background(self.network.node, ScriptedServer.listening))
        return kubeconfig(f"http://127.0.0.1:{self.api.served.port}")

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.wait(10)
        self._opened.close()

    # The cluster.

    def add_pod(self, number: int, name: str, *, selector: str = "reader", address: str = "", uid: str = "") -> Pod:
        """Tell the API server of a running pod at the address of the network's pod `number`, or another."""
        pod = replace(make.pod(name, selector=selector), uid=uid or f"uid-of-{name}")
        at = address or PODS[number]
        obj = {
            "metadata": {
                "name": name,
                "namespace": pod.key.namespace,
                "uid": pod.uid,
                "labels": dict(pod.labels),
            },
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIP": at, "podIPs": [{"ip": at}]},
        }
        self._tell(f"/api/v1/namespaces/default/pods/{name}", "ADDED", obj)
        return pod

    def assign(
        self, pod: str, identity: AzureIdentity, state: AssignedState = AssignedState.ASSIGNED
    ) -> AzureAssignedIdentity:
        """Do what MIC does."""
        key = ObjectKey("default", f"{pod}-{identity.key.name}")
        binding = make.binding(azure_identity=identity.key.name)
        assigned = AzureAssignedIdentity(key, identity, binding, ObjectKey("default", pod), "n1", state)
        self._tell(f"{ASSIGNED}/{key.name}", "ADDED", crd.render_assigned(assigned))
        return assigned

    def remove(self, path: str) -> None:
        """Delete an object."""

        def act() -> None:
            server = self.api.served
            obj = server.objects.pop(path)
            server.version += 1
            obj["metadata"]["resourceVersion"] = str(server.version)
            self._send(path, "DELETED", obj)

        self.api.call(act)

    def _tell(self, path: str, kind: str, obj: Any) -> None:
        def act() -> None:
            self._send(path, kind, self.api.served.put(path, obj))

        self.api.call(act)

    def _send(self, path: str, kind: str, obj: Any) -> None:
        plural = path.split("/")[-2]
        for watch in self.api.served.watches:
            if watch.request.path.endswith(plural) and not watch.ended.is_set():
                watch.send(kind, obj)

    # IMDS.

    @contextlib.contextmanager
    def slow_imds(self) -> Iterator[Callable[[], bool]]:
        """Let IMDS answer nobody until `go_on`; yields what says whether somebody has asked."""
        served = self.imds.served
        before = len(served.requests)
        self.imds.call(lambda: setattr(served, "gate", asyncio.Event()))
        try:
            yield lambda: len(served.requests) > before
        finally:
            self.go_on()

    def go_on(self) -> None:
        """Let IMDS answer."""

        def act() -> None:
            if self.imds.served.gate is not None:
                self.imds.served.gate.set()
            self.imds.served.gate = None

        self.imds.call(act)

    # The daemon.

    def start(self, *flags: str, supervised: bool = False) -> None:
        """Start NMI and wait until it says that it is ready."""
        self.process = self.spawn(*flags, supervised=supervised)
        until(self._is_ready, f"NMI is ready; its log:\n{self.log()}", seconds=60.0)

    def spawn(self, *flags: str, supervised: bool = False) -> subprocess.Popen[bytes]:
        """Start NMI. All that a node has meet in one directory."""
        sockets = self.directory / "sockets"
        sockets.mkdir(mode=0o755, exist_ok=True)
        program = [sys.executable, "-m", "podidentity"]
        command = [*program, "nmi", "--node=n1", "--http-probe-port=8085", f"--handover-socket={sockets}/nmi.sock"]
        if supervised:
            command = [*program, "supervise", *command]
        environ = {"KUBECONFIG": str(self._kubeconfig), "PATH": self.search_path, "HOST_IP": self.address}
        with self._log.open("ab") as log:
            process = self.network.node.popen(
                *command, *flags, stdin=subprocess.DEVNULL, stderr=log, stdout=log, env=environ
            )
        self._started.append(process)
        return process

    def is_started(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether a process serves, or could: what the startup probe asks of its container's processes."""
        assert process.poll() is None, self.log()
        return Path(f"/proc/{process.pid}/comm").read_text().strip() == STARTED_NAME

    def run_once(self, *flags: str) -> tuple[int, str]:
        """Run NMI beside the daemon until it ends by itself: its exit status and what it wrote."""
        done = self.network.node.call(
            lambda: subprocess.run(
                [sys.executable, "-m", "podidentity", "nmi", "--node=n1", "--handover-socket=", *flags],
                env={"KUBECONFIG": str(self._kubeconfig), "PATH": os.environ["PATH"]},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        )
        return done.returncode, done.stdout + done.stderr

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return self.page("/readyz")[0] == 200

    def page(self, path: str, port: int = 8085) -> tuple[int, str]:
        """Fetch one of the daemon's own pages; status 0 when nobody answers."""

        def fetch() -> tuple[int, str]:
            try:
                with socket.create_connection(("127.0.0.1", port), 2) as connection:
                    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    received = b"".join(iter(lambda: connection.recv(65536), b""))
            except OSError:
                return 0, ""
            head, _, body = received.partition(b"\r\n\r\n")
            return int(head.split(b" ")[1]), body.decode()

        return self.network.node.call(fetch)

    def kill(self) -> None:
        """End the daemon as the kernel does when memory is short."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def terminate(self) -> int:
        """Ask the daemon to stop, if nobody has yet, and wait for it: its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(15)
        self.process = None
        return status

    def log(self) -> str:
        """Return what the daemon wrote."""
        return self._log.read_text() if self._log.exists() else ""

    # Pods.

    def connect(self, number: int, timeout_seconds: float = 5.0) -> socket.socket:
        """Open a connection from a pod to where it believes IMDS to be."""
        return self.network.pods[number].call(lambda: socket.create_connection((IMDS, 80), timeout_seconds))

    def ask(self, number: int, target: str = TARGET) -> tuple[int, dict[str, Any]]:
        """Ask once, on a connection of its own."""
        with self.connect(number) as connection:
            return exchange(connection, target)
