"""The API servers that the contract is run against, each as a kubeconfig of its admin."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn

from podidentity.lab.kubernetes import Kubernetes

START_SECONDS = 20.0


class TwoLines:
    """Containers that wrote two lines: there are no kubelets here."""

    async def read(
        self, namespace: str, pod: str, container: str, *, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Give the lines, whoever asks."""
        del namespace, follow, tail_lines
        yield f"{pod}/{container}\n".encode()
        yield b"second\n"


@contextlib.contextmanager
def embedded(folder: Path) -> Iterator[tuple[Path, Kubernetes]]:
    """The lab's embedded Kubernetes, with its controllers, behind TLS; its admin's kubeconfig, and itself."""
    cluster = Kubernetes(TwoLines())
    config = uvicorn.Config(cluster.app, port=0, proxy_headers=False, log_level="error", lifespan="off", ws="none")
    config.load()
    config.ssl = cluster.tls_context()
    server = uvicorn.Server(config)
    started = threading.Event()
    port: list[int] = []

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        controllers = asyncio.create_task(cluster.run())
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0)
        port.append(server.servers[0].sockets[0].getsockname()[1])
        started.set()
        await serving
        controllers.cancel()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(START_SECONDS)
    yield _kubeconfig(folder, cluster, port[0]), cluster
    server.force_exit = server.should_exit = True
    thread.join(START_SECONDS)


def _kubeconfig(folder: Path, cluster: Kubernetes, port: int) -> Path:
    (folder / "ca.pem").write_bytes(cluster.ca_pem)
    path = folder / "kubeconfig"
    path.write_text(
        f"""apiVersion: v1
kind: Config
current-context: contract
contexts: [{{name: contract, context: {{cluster: contract, user: admin}}}}]
clusters:
  - name: contract
    cluster: {{server: "https://127.0.0.1:{port}", certificate-authority: {folder}/ca.pem}}
users: [{{name: admin, user: {{token: {cluster.admin_token}}}}}]
"""
    )
    path.chmod(0o600)
    return path
