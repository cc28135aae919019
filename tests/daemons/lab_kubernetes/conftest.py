"""The embedded Kubernetes behind real TLS on loopback, and the real kubectl."""

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from podidentity.lab.kubernetes import Kubernetes

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


class Silence:
    """Containers that wrote two lines."""

    async def read(
        self, namespace: str, pod: str, container: str, *, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Give the lines, whoever asks."""
        del namespace, follow, tail_lines
        yield f"{pod}/{container}\n".encode()
        yield b"second\n"


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Kubernetes]:
    """A served cluster; its kubeconfig lies in `tmp_path`."""
    cluster = Kubernetes(Silence())
    config = uvicorn.Config(cluster.app, port=0, proxy_headers=False, log_level="error", lifespan="off", ws="none")
    config.load()
    config.ssl = cluster.tls_context()
    server = uvicorn.Server(config)
    started = threading.Event()

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        controllers = asyncio.create_task(cluster.run())
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0)
        port = server.servers[0].sockets[0].getsockname()[1]
        write_kubeconfig(tmp_path, cluster, port)
        started.set()
        await serving
        controllers.cancel()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(20)
    yield cluster
    server.force_exit = server.should_exit = True
    thread.join(20)


def write_kubeconfig(folder: Path, cluster: Kubernetes, port: int) -> None:
    """Write what kubectl needs."""
    (folder / "ca.pem").write_bytes(cluster.ca_pem)
    (folder / "kubeconfig").write_text(
        f"""apiVersion: v1
kind: Config
current-context: lab
contexts: [{{name: lab, context: {{cluster: lab, user: admin}}}}]
clusters: [{{name: lab, cluster: {{server: "https://127.0.0.1:{port}", certificate-authority: {folder}/ca.pem}}}}]
users: [{{name: admin, user: {{token: {cluster.admin_token}}}}}]
"""
    )


@pytest.fixture
def kubectl(kubernetes: Kubernetes, tmp_path: Path) -> Kubectl:
    """Run kubectl; PATH's, else the package's."""
    assert kubernetes.admin_token
    program = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
    environment = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return run
