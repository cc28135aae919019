"""What the lab needs of its Kubernetes, whichever it is: `embedded`, which is part of the lab, or `real`.

A port only. Called by `inside`.
"""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from podidentity.lab.fabric import NodeNetwork

KUBERNETES_PORT = 6443
"""Of the API, on the fabric's address."""


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
        """It may do everything."""
        ...

    async def run(self, ready: Callable[[], None]) -> None:
        """Run until cancelled; call `ready` once pods can be created. Raises `HostError`, `LabError`, `OSError`."""
        ...

    def cluster_ip(self, namespace: str, name: str) -> str | None:
        """The address of a Service."""
        ...

    def join(self, node: str, taints: Sequence[str]) -> None:
        """Let a node that waits join, tainted. Raises `LabError` when there is no such node or it cannot wait."""
        ...

    def pod_at(self, address: str) -> str | None:
        """Namespace and name of the pod that has an address of its own, `namespace/name`; None when it is not known."""
        ...

    async def pods(self) -> Mapping[str, int]:
        """How many pods each node has, by node."""
        ...
