"""The Kubernetes that is part of the lab: API, controllers, Services and kubelets on the lab's own event loop."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from podidentity.errors import LabError
from podidentity_lab.fabric import FABRIC_ADDRESS
from podidentity_lab.kubelet import Cluster, ContainerLogs, Kubelet, Node, attaching
from podidentity_lab.kubelet.containers import ContainerProcess
from podidentity_lab.kubernetes import ISSUER, ApiError, Kubernetes
from podidentity_lab.kubernetes.sessions import ContainerPlace, Session
from podidentity_lab.linux.namespaces import listener, open_stream
from podidentity_lab.oci.library import Library
from podidentity_lab.orchestrator import KUBERNETES_PORT, NodePlan, Place
from podidentity_lab.services import KUBERNETES_ADDRESS, run_services
from podidentity_lab.serving import serve


class Embedded:
    """An `Orchestrator`. `files` holds one directory for each node: what its hostPath volumes lead to.

    `backup` is what `save` returned in an earlier lab. Raises `LabError` when it cannot be read.
    """

    def __init__(
        self,
        place: Place,
        plans: Sequence[NodePlan],
        files: Path,
        library: Library,
        *,
        rootless: bool,
        backup: dict[str, Any] | None = None,
    ) -> None:
        self._place = place
        self._library = library
        logs = ContainerLogs(place.logs)
        self._kubernetes = Kubernetes(logs, self, backup=backup)
        place.publish_issuer(ISSUER, self._kubernetes.token_keys)
        cluster = Cluster(
            storage=self._kubernetes.storage,
            token=self._kubernetes.service_account_token,
            library=library,
            cluster_ca=self._kubernetes.ca_pem.decode(),
            azure_ca=place.azure_ca,
            logs=place.logs,
            bridge=place.bridge,
            rootless=rootless,
        )
        nodes = [Node(plan.network, plan.provider_id, files / plan.network.name, cluster) for plan in plans]
        self._kubelets = [Kubelet(node, logs) for node in nodes]
        logs.follow_while(lambda *container: any(kubelet.runs(*container) for kubelet in self._kubelets))

    @property
    def ca_pem(self) -> bytes:
        """The certificate of its API."""
        return self._kubernetes.ca_pem

    @property
    def admin_token(self) -> str:
        """The token of the administrator, who may do everything."""
        return self._kubernetes.admin_token

    async def run(self, ready: Callable[[], None]) -> None:
        """Run until cancelled. Raises `HostError` and `OSError`."""
        # Sockets first: from here on connections wait instead of being refused.
        sockets = [listener(FABRIC_ADDRESS, KUBERNETES_PORT), self._place.listener]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kubernetes.run())
            group.create_task(serve(self._kubernetes.app, sockets, self._kubernetes.tls_context()))
            for kubelet in self._kubelets:
                group.create_task(kubelet.run())
            group.create_task(run_services(self._kubernetes.storage))
            await asyncio.sleep(0)  # a part that cannot start at all raises here, before the lab is reported as ready
            ready()

    async def execute(self, container: ContainerPlace, command: list[str], *, tty: bool) -> Session | None:
        """Start a program beside a container; return None when the container does not run. Raises `OSError`."""
        running = self._running(container)
        return None if running is None else await attaching.execute(running, command, tty=tty)

    def attach(self, container: ContainerPlace, *, stdin: bool) -> Session | None:
        """Return a container's own streams; None when it does not run."""
        running = self._running(container)
        return None if running is None else attaching.attach(running, stdin=stdin)

    def _running(self, container: ContainerPlace) -> ContainerProcess | None:
        return next(filter(None, (kubelet.running(*container) for kubelet in self._kubelets)), None)

    async def connect(self, namespace: str, pod: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port of a pod as from inside of it. Raises `OSError`."""
        candidates = (kubelet.network_of(namespace, pod) for kubelet in self._kubelets)
        network = next(filter(None, candidates), None)
        if network is None:
            raise OSError("no container of it runs")
        stream = open_stream(network)
        try:
            await asyncio.get_running_loop().sock_connect(stream, ("127.0.0.1", port))
        except BaseException:
            stream.close()
            raise
        return await asyncio.open_connection(sock=stream)

    def cluster_ip(self, namespace: str, name: str) -> str | None:
        """Return the address of a Service; None when it has none."""
        if (namespace, name) == ("default", "kubernetes"):
            return KUBERNETES_ADDRESS
        try:
            address = self._kubernetes.storage.get("services", namespace, name)["spec"].get("clusterIP")
        except ApiError:
            return None
        return None if address in {None, "", "None"} else str(address)

    def join(self, node: str, taints: Sequence[str]) -> None:
        """Raise `LabError`: no node of this Kubernetes waits."""
        message = f"node {node} does not wait to join with {list(taints)}; start a lab with --kubernetes real --late"
        raise LabError(message)

    async def rotate_issuer_key(self, phase: str) -> list[str]:
        """Take a step of the rotation of the key of service accounts' tokens. Raises `LabError`."""
        return self._kubernetes.rotate_token_key(phase)

    def save(self) -> dict[str, Any]:
        """Return the objects that somebody made, as JSON."""
        return self._kubernetes.save()

    async def load_images(self, digests: Mapping[str, str]) -> None:
        """Let names of images lead to manifests in the lab's store. Raises `LabError`."""
        await self._library.load(digests)

    def pod_at(self, address: str) -> str | None:
        """Return namespace and name of the pod with this address; None for a host's address, or nobody's."""
        for pod in self._kubernetes.storage.list("pods"):
            status = pod.get("status") or {}
            is_finished = status.get("phase") in {"Succeeded", "Failed"}  # its address may be another's by now
            if status.get("podIP") == address and not is_finished and not pod["spec"].get("hostNetwork"):
                return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        return None

    async def pods(self) -> Mapping[str, int]:
        """Return how many pods each node has, by node."""
        return Counter(str(pod["spec"].get("nodeName")) for pod in self._kubernetes.storage.list("pods"))
