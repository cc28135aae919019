"""What a kubelet works with: its node, the cluster it belongs to, and the few things it asks of the API's storage."""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Protocol

from podidentity.timing import render_rfc3339
from podidentity_lab.fabric import NodeNetwork
from podidentity_lab.kubernetes import ApiError
from podidentity_lab.oci.library import Library

Json = dict[str, Any]

RUNTIME = Path("/run/podidentity")
"""Roots, volumes and plans of containers: in memory, in the lab's own mount namespace, gone with it."""


class Storage(Protocol):
    """What the kubelets use of the API's storage."""

    def get(self, resource: str, namespace: str | None, name: str) -> Json:
        """Return an object. Raises `ApiError` 404."""
        ...

    def create(self, resource: str, obj: Json) -> Json:
        """Store a new object and return it. Raises `ApiError` 409."""
        ...

    def change(self, resource: str, namespace: str | None, name: str, edit: Callable[[Json], None]) -> Json | None:
        """Read, edit and store an object in one step, and return it; None when there is no such object."""
        ...

    def delete(self, resource: str, namespace: str | None, name: str, *, grace_seconds: int | None = None) -> Json:
        """Delete an object; at once with 0 seconds. Raises `ApiError` 404."""
        ...

    def watch(self, resource: str, namespace: str | None = None) -> AsyncIterator[Any]:
        """Yield what exists, then every change."""
        ...


@dataclass(frozen=True, slots=True)
class Cluster:
    """What all nodes share.

    `library` has the images of `lab load` and of the lab's registry. `token` returns a new token of a service account:
    namespace, account, pod (name, uid), audience (empty: the API's), lifetime in seconds.
    """

    storage: Storage
    token: Callable[[str, str, Mapping[str, str], str, int], str]
    library: Library
    cluster_ca: str
    azure_ca: str
    logs: Path
    bridge: bool
    rootless: bool
    clock: Callable[[], float] = time.time


class Addresses:
    """A node's pod addresses, as the plugin `host-local` gives them: an address is used again as late as possible."""

    def __init__(self, network: str) -> None:
        hosts = [str(address) for address in ip_network(network).hosts()]
        self._free = deque(hosts[1:])  # the first is the bridge's

    def take(self) -> str | None:
        """Return the address that has been free longest; None when all are taken."""
        return self._free.popleft() if self._free else None

    def give_back(self, address: str) -> None:
        """Take back the address of a pod that is gone."""
        self._free.append(address)


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `files` is its own root for hostPath volumes, `provider_id` which Azure machine it is."""

    network: NodeNetwork
    provider_id: str
    files: Path
    cluster: Cluster
    addresses: Addresses = field(init=False)
    pulled_images: dict[str, str] = field(init=False, default_factory=dict)
    """The digests of images that the node has pulled from the lab's registry, by name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "addresses", Addresses(self.network.pods))

    @property
    def name(self) -> str:
        """The name of the Node object, of the network namespace and of the host."""
        return self.network.name


def timestamp(seconds: float) -> str:
    """Return a point in time, in Unix seconds, as Kubernetes writes it."""
    return render_rfc3339(seconds)


def record_event(node: Node, obj: Json, kind: str, reason: str, message: str) -> None:
    """Write an Event about `obj`; `kind` is Normal or Warning. The same event again only increases its count."""
    storage, now = node.cluster.storage, timestamp(node.cluster.clock())
    metadata = obj["metadata"]
    namespace = metadata.get("namespace") or "default"
    digest = f"{abs(hash((metadata['uid'], reason, message))):x}"[:14]
    name = f"{metadata['name']}.{digest}"

    def repeat(event: Json) -> None:
        event["count"] += 1
        event["lastTimestamp"] = now

    if storage.change("events", namespace, name, repeat) is not None:
        return
    involved_object = {
        "kind": obj.get("kind", "Pod"),
        "apiVersion": obj.get("apiVersion", "v1"),
        "name": metadata["name"],
        "namespace": metadata.get("namespace", ""),
        "uid": metadata["uid"],
    }
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": involved_object,
        "type": kind,
        "reason": reason,
        "message": message,
        "source": {"component": "kubelet", "host": node.name},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    storage.create("events", event)


def find(storage: Storage, resource: str, namespace: str, name: str) -> Json | None:
    """Return an object; None when there is none."""
    try:
        return storage.get(resource, namespace, name)
    except ApiError as error:
        if error.status != 404:
            raise
        return None
