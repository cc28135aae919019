"""What the lab needs of its Kubernetes, whichever it is: `embedded`, which is part of the lab, or `real`."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from podidentity_lab.fabric import NodeNetwork

KUBERNETES_PORT = 6443
"""The API's port, on the fabric's address."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node to be: its network, which Azure machine it is, and whether it waits until it is told to join."""

    network: NodeNetwork
    provider_id: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """What any Kubernetes of the lab is given: the pods' trust in Azure, logs, and the way in from the host.

    `cgroup` names the control group for what needs one; whoever removes the lab's directory removes it as well.
    `publish_issuer` takes the issuer of its service accounts' tokens and what gives their key set: for Azure's
    federated credentials.
    """

    azure_ca: str
    logs: Path
    listener: socket.socket
    bridge: bool
    cgroup: str
    publish_issuer: Callable[[str, Callable[[], dict[str, Any]]], None]


class Orchestrator(Protocol):
    """A Kubernetes with its nodes."""

    @property
    def ca_pem(self) -> bytes:
        """The certificate of its API."""
        ...

    @property
    def admin_token(self) -> str:
        """The token of the administrator, who may do everything."""
        ...

    async def run(self, ready: Callable[[], None]) -> None:
        """Run until cancelled; call `ready` once pods can be created. Raises `HostError`, `LabError`, `OSError`."""
        ...

    def cluster_ip(self, namespace: str, name: str) -> str | None:
        """Return the address of a Service; None when it has none."""
        ...

    def join(self, node: str, taints: Sequence[str]) -> None:
        """Let a waiting node join, with these taints. Raises `LabError` when no such node waits."""
        ...

    async def rotate_issuer_key(self, phase: str) -> list[str]:
        """Take a step, `publish`, `sign` or `withdraw`; return the published key IDs. Raises `LabError`."""
        ...

    def save(self) -> dict[str, Any] | None:
        """Return the objects that somebody made, as JSON; None when this Kubernetes cannot keep them."""
        ...

    async def load_images(self, digests: Mapping[str, str]) -> None:
        """Give every node images: digests of manifests in the lab's store, by full name. Raises `LabError`."""
        ...

    def pod_at(self, address: str) -> str | None:
        """Return the pod (`namespace/name`) that has an address of its own; None when it is not known."""
        ...

    async def pods(self) -> Mapping[str, int]:
        """Return how many pods each node has, by node."""
        ...
