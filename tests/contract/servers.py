"""The API servers that the contract's tests run against, each as a kubeconfig of its admin."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from podidentity_lab.kubernetes import Kubernetes
from serving import served


class TwoLines:
    """The logs of containers that wrote two lines each, because no kubelet runs here."""

    async def read(
        self, namespace: str, pod: str, container: str, *, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Yield the same lines for every container."""
        del namespace, follow, tail_lines
        yield f"{pod}/{container}\n".encode()
        yield b"second\n"


@contextlib.contextmanager
def embedded(
    folder: Path, *, controllers: bool = True, backup: dict[str, Any] | None = None
) -> Iterator[tuple[Path, Kubernetes]]:
    """Serve the lab's embedded Kubernetes behind TLS; yield its admin's kubeconfig and the cluster itself."""
    cluster = Kubernetes(TwoLines(), backup=backup)
    with served(cluster.app, cluster.tls_context(), cluster.run if controllers else None) as port:
        yield _kubeconfig(folder, cluster, port), cluster


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
