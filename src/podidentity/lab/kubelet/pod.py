"""The life of one pod on its node: network, volumes, init containers, containers, and its end.

One task per pod runs `Pod.run`. What it knows is in a `PodState`; every change of it is written to the API at once. How
a single container lives is in `lifecycle`. Called by `kubelet`.
"""

import asyncio
import contextlib
import shutil

from podidentity.errors import HostError
from podidentity.lab.kubelet import volumes, wiring
from podidentity.lab.kubelet.containers import Running
from podidentity.lab.kubelet.lifecycle import Lifecycle, Place
from podidentity.lab.kubelet.logs import ContainerLogs
from podidentity.lab.kubelet.node import RUNTIME, Json, Node, record_event
from podidentity.lab.kubelet.statuses import ContainerState, Ended, PodState, Waiting
from podidentity.lab.kubernetes import ApiError

RETRY_SECONDS = 1.0
MOUNT_GRACE_SECONDS = 2.0


class Pod:
    """A pod that is bound to this node. `stop` may be called at any time and more than once."""

    def __init__(self, node: Node, obj: Json, logs: ContainerLogs) -> None:
        self._node = node
        self._obj = obj
        self._logs = logs
        self._grace_seconds: float | None = None
        self._stopping = asyncio.Event()
        self._folder = RUNTIME / "pods" / obj["metadata"]["uid"]
        self._host_network = bool(obj["spec"].get("hostNetwork"))
        self.running: dict[str, Running] = {}
        waiting = "PodInitializing" if obj["spec"].get("initContainers") else "ContainerCreating"
        self.state = PodState(
            node.network.address,
            node.cluster.clock(),
            [ContainerState(one, Waiting("PodInitializing")) for one in obj["spec"].get("initContainers") or ()],
            [ContainerState(one, Waiting(waiting)) for one in obj["spec"]["containers"]],
        )

    @property
    def uid(self) -> str:
        """Which pod this is, whatever its name."""
        return str(self._obj["metadata"]["uid"])

    def is_named(self, namespace: str, name: str) -> bool:
        """Say whether this is the pod that a user means."""
        metadata = self._obj["metadata"]
        return (metadata["namespace"], metadata["name"]) == (namespace, name)

    def stop(self, grace_seconds: float) -> None:
        """End the pod's containers; a later call can only shorten the time."""
        if self._grace_seconds is None or grace_seconds < self._grace_seconds:
            self._grace_seconds = grace_seconds
        self._stopping.set()

    async def run(self) -> None:
        """Live until the pod is to go, then leave nothing of it, the object in the API included."""
        try:
            living = asyncio.create_task(self._live())
            stopping = asyncio.create_task(self._stopping.wait())
            try:
                await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if living.done():
                    living.result()  # a fault of the kubelet itself must not pass in silence
                    await stopping
            finally:
                for task in (living, stopping):
                    task.cancel()
                await asyncio.wait({living, stopping})
        finally:
            await self._clean_up()
        self._forget()

    async def _live(self) -> None:
        """Run the containers to their end; a pod that restarts them for ever has none."""
        await self._join_network()
        place = await self._place()
        for state in self.state.init:
            if not await self._lifecycle(state, place).run_to_success(init=True):
                self.publish()
                return
        self.state.initialized = True
        self.publish()
        async with asyncio.TaskGroup() as group:
            for state in self.state.containers:
                group.create_task(self._lifecycle(state, place).run_to_success(init=False))
        self.publish()

    async def _join_network(self) -> None:
        if self._host_network:
            self.state.address = self._node.network.address
            return
        while True:
            address = self._node.addresses.take()
            if address is not None:
                break
            self.tell(
                "Warning",
                "FailedCreatePodSandBox",
                f"node {self._node.name} has no free pod address; delete pods on it",
            )
            await asyncio.sleep(RETRY_SECONDS)
        self.state.address = address
        await wiring.connect(self._node, self.uid, address)
        self.publish()

    async def _place(self) -> Place:
        """Where the containers will run; waits for volumes that are not there yet."""
        network = self._node.name if self._host_network else wiring.namespace_name(self.uid)
        warn_at = self._node.cluster.clock() + MOUNT_GRACE_SECONDS  # objects are often created in one go with their pod
        while True:
            try:
                made = volumes.prepare(self._node, self._obj, self._folder / "volumes")
                return Place(network, self._folder, made, self.state.address)
            except volumes.VolumeError as error:
                if self._node.cluster.clock() >= warn_at:
                    self.tell("Warning", "FailedMount", str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def _lifecycle(self, state: ContainerState, place: Place) -> Lifecycle:
        return Lifecycle(self._node, self._obj, state, place, self._logs, self)

    def grace_seconds(self) -> float:
        """How long a container may take to end."""
        if self._grace_seconds is not None:
            return self._grace_seconds
        return float(self._obj["spec"].get("terminationGracePeriodSeconds", 30))

    def runs(self, container: str, running: Running | None) -> None:
        """Keep the process of a container, so that others can be started beside it."""
        if running is None:
            self.running.pop(container, None)
        else:
            self.running[container] = running

    def tell(self, kind: str, reason: str, message: str) -> None:
        """Tell the user through an event on the pod."""
        with contextlib.suppress(ApiError):  # its namespace may be going
            record_event(self._node, self._obj, kind, reason, message)

    def publish(self) -> None:
        """Write what is known to the API."""
        metadata = self._obj["metadata"]

        def edit(stored: Json) -> None:
            if stored["metadata"]["uid"] == self.uid:
                stored["status"] = self.state.render(stored)
                self._obj["status"] = stored["status"]

        with contextlib.suppress(ApiError):
            self._node.cluster.storage.change("pods", metadata["namespace"], metadata["name"], edit)

    async def _clean_up(self) -> None:
        for state in (*self.state.init, *self.state.containers):
            state.ready = False
            if not isinstance(state.now, (Ended, Waiting)):
                now = self._node.cluster.clock()
                state.now = Ended(137, now, now)
        if not self._host_network and self.state.address:
            with contextlib.suppress(HostError):
                await wiring.disconnect(self._node, self.uid)
            self._node.addresses.give_back(self.state.address)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget(self) -> None:
        """The last act of a kubelet: without it a deleted pod would stay in the API."""
        storage, metadata = self._node.cluster.storage, self._obj["metadata"]
        with contextlib.suppress(ApiError):
            if storage.get("pods", metadata["namespace"], metadata["name"])["metadata"]["uid"] == self.uid:
                storage.delete("pods", metadata["namespace"], metadata["name"], grace_seconds=0)
