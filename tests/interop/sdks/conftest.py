"""NMI with its redirect on a node of namespaces, and real SDKs as processes in the pods."""

import atexit
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import make
from interop import clients
from system.redirect.network import Network, need_namespaces
from system.redirect.node import Node

HERE = Path(__file__).parent
LABELLED, PLAIN = 0, 1
_numbers = itertools.count()


class Sdk:
    """One process that asks with an SDK."""

    def __init__(self, node: Node, pod: int, command: list[str]) -> None:
        environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "AZURE_TOKEN_CREDENTIALS": "prod"}
        self._process = node.network.pods[pod].popen(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
        )
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def begin(self, client: str, options: dict[str, str] | None = None, *, chain: bool = False) -> None:
        """Ask for a token of a resource that was never asked for before, because SDKs have caches of their own."""
        resource = f"https://resource-{next(_numbers)}.example"
        asked = {"client": client, "resource": resource, "options": options or {}, "chain": chain}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for the SDK's answer and return it."""
        told: dict[str, Any] = json.loads(self._answers.get(timeout=100))
        return told

    def ask(self, client: str, options: dict[str, str] | None = None, *, chain: bool = False) -> dict[str, Any]:
        """Ask, wait for the answer and return it."""
        self.begin(client, options, chain=chain)
        return self.end()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)


class World:
    """Pod `LABELLED` has identities one and two, pod `PLAIN` has no label; each has an SDK process of each kind."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._sdks: dict[tuple[int, bool], Sdk] = {}

    def sdk(self, pod: int, client: str) -> Sdk:
        """Return the process that asks as `client` in a pod."""
        is_node = client.startswith("node")
        if (pod, is_node) not in self._sdks:
            command = node_command() if is_node else [sys.executable, str(HERE / "ask.py")]
            self._sdks[pod, is_node] = Sdk(self.node, pod, command)
        return self._sdks[pod, is_node]

    def answered(self, status: int) -> int:
        """Return how many requests NMI has answered with a status."""
        _, text = self.node.page("/metrics", 9090)
        lines = [line for line in text.splitlines() if "nmi_operations_duration_seconds_count{" in line]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if f'status_code="{status}"' in line)

    def close(self) -> None:
        """End the SDKs."""
        for sdk in self._sdks.values():
            sdk.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One NMI for all tests, which does not wait for MIC, so that SDKs get its answers at once."""
    need_namespaces()
    with Network("bridge") as network, Node(network, tmp_path_factory.mktemp("nmi")) as node:
        node.add_pod(LABELLED, "one")
        node.add_pod(PLAIN, "plain", selector="")
        for name in ("one", "two"):
            node.assign("one", make.identity(name))
        node.start("--retry-attempts-for-created=0", "--retry-attempts-for-assigned=0")
        made = World(node)
        yield made
        made.close()


def node_command() -> list[str]:
    """Return the command for Node's SDK, with the script beside the SDK; install the SDK if it is missing."""
    try:
        installed = clients.installed("javascript")
    except clients.MissingToolError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    directory = Path(tempfile.mkdtemp(prefix="podidentity-sdk-"))
    atexit.register(shutil.rmtree, directory)
    shutil.copy(HERE / "ask.mjs", directory)
    (directory / "node_modules").symlink_to(installed / "node_modules")
    return ["node", str(directory / "ask.mjs")]
