"""The Kubernetes that is part of the lab: API, controllers, Services and kubelets on the lab's own event loop.

Called by `inside`.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from podidentity.errors import LabError
from podidentity.lab.fabric import FABRIC_ADDRESS
from podidentity.lab.kubelet import Cluster, ContainerLogs, Kubelet, Node
from podidentity.lab.kubernetes import ISSUER, ApiError, Kubernetes
from podidentity.lab.orchestrator import KUBERNETES_PORT, NodePlan, Place
from podidentity.lab.services import KUBERNETES_ADDRESS, run_services
from podidentity.lab.serving import serve
from podidentity.linux.namespaces import listener


class Embedded:
    """An `Orchestrator`. `files` holds one directory for each node: what its hostPath volumes lead to."""

    def __init__(self, place: Place, plans: Sequence[NodePlan], files: Path, *, rootless: bool) -> None:
        self._place = place
        logs = ContainerLogs(place.logs)
        self._kubernetes = Kubernetes(logs, self)
        place.publish_issuer(ISSUER, self._kubernetes.token_keys)
        cluster = Cluster(
            storage=self._kubernetes.storage,
            token=self._kubernetes.service_account_token,
            cluster_ca=self._kubernetes.ca_pem.decode(),
            azure_ca=place.azure_ca,
            logs=place.logs,
            bridge=place.bridge,
            rootless=rootless,
        )
        nodes = [Node(plan.network, plan.provider_id, files / plan.network.name, cluster) for plan in plans]
        self._kubelets = [Kubelet(node, logs) for node in nodes]
        logs.follow_while(lambda *container: any(one.runs(*container) for one in self._kubelets))

    @property
    def ca_pem(self) -> bytes:
        """The certificate of its API."""
        return self._kubernetes.ca_pem

    @property
    def admin_token(self) -> str:
        """It may do everything."""
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
            await asyncio.sleep(0)  # what cannot begin at all raises here, before anybody is told that the lab is ready
            ready()

    async def beside(
        self, namespace: str, pod: str, container: str, command: list[str]
    ) -> asyncio.subprocess.Process | None:
        """Start a program beside a container; None when the container does not run."""
        found = (one.running(namespace, pod, container) for one in self._kubelets)
        running = next(filter(None, found), None)
        pipe = asyncio.subprocess.PIPE
        return None if running is None else await running.beside(command, stdin=pipe, stderr=pipe)

    def cluster_ip(self, namespace: str, name: str) -> str | None:
        """The address of a Service."""
        if (namespace, name) == ("default", "kubernetes"):
            return KUBERNETES_ADDRESS
        try:
            address = self._kubernetes.storage.get("services", namespace, name)["spec"].get("clusterIP")
        except ApiError:
            return None
        return None if address in {None, "", "None"} else str(address)

    def join(self, node: str, taints: Sequence[str]) -> None:
        """No node of this Kubernetes joins later."""
        told = f"{node} cannot join with {list(taints)}: only nodes of a lab with --kubernetes real can wait."
        raise LabError(told)

    def pod_at(self, address: str) -> str | None:
        """The pod that has an address of its own."""
        for pod in self._kubernetes.storage.list("pods"):
            status = pod.get("status") or {}
            over = status.get("phase") in {"Succeeded", "Failed"}  # its address may be another's by now
            if status.get("podIP") == address and not over and not pod["spec"].get("hostNetwork"):
                return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        return None

    async def pods(self) -> Mapping[str, int]:
        """How many pods each node has."""
        return Counter(str(pod["spec"].get("nodeName")) for pod in self._kubernetes.storage.list("pods"))
