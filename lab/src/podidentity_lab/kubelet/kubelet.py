"""One node's kubelet: registers the node, follows the pods bound to it, and gives each a task."""

import asyncio
import logging

from podidentity_lab.kubelet.containers import ContainerProcess
from podidentity_lab.kubelet.logs import ContainerLogs
from podidentity_lab.kubelet.node import Json, Node, timestamp
from podidentity_lab.kubelet.pod import Pod
from podidentity_lab.kubelet.statuses import Running

log = logging.getLogger("podidentity_lab.kubelet")


class Kubelet:
    """The kubelet of `node`."""

    def __init__(self, node: Node, logs: ContainerLogs) -> None:
        self._node = node
        self._logs = logs
        self._pods: dict[str, Pod] = {}

    async def run(self) -> None:
        """Run until cancelled; then kill the containers at once."""
        self._node.cluster.storage.create("nodes", self._registration())
        async with asyncio.TaskGroup() as group:
            try:
                async for event in self._node.cluster.storage.watch("pods"):
                    if (event.object["spec"] or {}).get("nodeName") == self._node.name:
                        self._take_up(group, event.type, event.object)
            finally:
                for pod in self._pods.values():
                    pod.stop(0)

    def runs(self, namespace: str, name: str, container: str) -> bool:
        """Whether a container of this node runs or will run: whoever follows its log waits for it."""
        for pod in self._pods.values():
            if pod.is_named(namespace, name):
                states = pod.state.every_container()
                return any(state.spec["name"] == container and isinstance(state.now, Running) for state in states)
        return False

    def running(self, namespace: str, name: str, container: str) -> ContainerProcess | None:
        """Return the process of a container of this node; None when it does not run."""
        candidates = (pod.running.get(container) for pod in self._pods.values() if pod.is_named(namespace, name))
        return next(filter(None, candidates), None)

    def network_of(self, namespace: str, name: str) -> str | None:
        """Return the network namespace of a pod of this node; None when none of its containers runs."""
        pods = (pod for pod in self._pods.values() if pod.is_named(namespace, name) and pod.running)
        return next((pod.network for pod in pods), None)

    def _take_up(self, group: asyncio.TaskGroup, change: str, obj: Json) -> None:
        uid, pod = obj["metadata"]["uid"], self._pods.get(obj["metadata"]["uid"])
        if change == "DELETED":
            if pod is not None:
                pod.stop(0)  # deleted by force: nobody waits for its process
            return
        deleting = "deletionTimestamp" in obj["metadata"]
        if pod is None:
            pod = self._pods[uid] = Pod(self._node, obj, self._logs)
            task = group.create_task(self._run(pod), name=f"pod {obj['metadata']['name']}")
            task.add_done_callback(lambda _: self._pods.pop(uid, None))
        pod.add_ephemeral_containers(obj)
        if deleting:
            pod.stop(float(obj["metadata"].get("deletionGracePeriodSeconds") or 0))

    async def _run(self, pod: Pod) -> None:
        """Run one pod. An error of the kubelet in it is logged and must not end the node."""
        try:
            await pod.run()
        except Exception as error:  # the outermost loop of a pod
            log.exception("pod %s", pod.uid)
            pod.tell("Warning", "FailedSync", f"the lab's kubelet cannot run this pod: {error!r}")

    def _registration(self) -> Json:
        node = self._node
        now = timestamp(node.cluster.clock())
        labels = {
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/hostname": node.name,
            "kubernetes.io/role": "agent",
        }
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }
        amounts = {"cpu": "2", "memory": "4Gi", "pods": "110"}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": labels},
            "spec": {"providerID": node.provider_id, "podCIDR": node.network.pods, "podCIDRs": [node.network.pods]},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": node.network.address},
                    {"type": "Hostname", "address": node.name},
                ],
                "capacity": amounts,
                "allocatable": amounts,
                "conditions": [{**ready, "lastHeartbeatTime": now, "lastTransitionTime": now}],
                "nodeInfo": {
                    "kubeletVersion": "v1.36.0+podidentity-lab",
                    "osImage": "podidentity lab",
                    "operatingSystem": "linux",
                    "architecture": "amd64",
                    "kernelVersion": "",
                    "containerRuntimeVersion": "lab://1",
                },
            },
        }
