"""One node's kubelet: registers the node, follows the pods bound to it, and gives each a task. Called by `inside`."""

import asyncio
import logging

from podidentity.lab.kubelet.containers import Running
from podidentity.lab.kubelet.logs import ContainerLogs
from podidentity.lab.kubelet.node import Json, Node, timestamp
from podidentity.lab.kubelet.pod import Pod
from podidentity.lab.kubelet.statuses import Started

log = logging.getLogger("podidentity.lab.kubelet")


class Kubelet:
    """The kubelet of `node`."""

    def __init__(self, node: Node, logs: ContainerLogs) -> None:
        self._node = node
        self._logs = logs
        self._pods: dict[str, Pod] = {}

    async def run(self) -> None:
        """Run until cancelled; then the containers are ended at once."""
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
        """Say whether a container of a pod here is running, or will be: a follower of its log waits."""
        for pod in self._pods.values():
            if pod.is_named(namespace, name):
                states = (*pod.state.init, *pod.state.containers)
                return any(one.spec["name"] == container and isinstance(one.now, Started) for one in states)
        return False

    def running(self, namespace: str, name: str, container: str) -> Running | None:
        """The process of a container of a pod here; None when it does not run here."""
        found = (pod.running.get(container) for pod in self._pods.values() if pod.is_named(namespace, name))
        return next(filter(None, found), None)

    def _take_up(self, group: asyncio.TaskGroup, change: str, obj: Json) -> None:
        uid, known = obj["metadata"]["uid"], self._pods.get(obj["metadata"]["uid"])
        if change == "DELETED":
            if known is not None:
                known.stop(0)  # deleted by force: nobody waits for its process
            return
        deleting = "deletionTimestamp" in obj["metadata"]
        if known is None:
            known = self._pods[uid] = Pod(self._node, obj, self._logs)
            task = group.create_task(self._run(known), name=f"pod {obj['metadata']['name']}")
            task.add_done_callback(lambda _: self._pods.pop(uid, None))
        if deleting:
            known.stop(float(obj["metadata"].get("deletionGracePeriodSeconds") or 0))

    async def _run(self, pod: Pod) -> None:
        """One pod that the kubelet cannot cope with must not end the node."""
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
