"""The life of one pod on its node: network, volumes, init containers, containers, ephemeral ones, and its end.

One task per pod runs `Pod.run`. What it knows is in a `PodState`, and every change of that is written to the API at
once. The life of a single container is in `lifecycle`.
"""

import asyncio
import contextlib
import shutil

from podidentity.errors import HostError
from podidentity_lab.kubelet import processes, volumes, wiring
from podidentity_lab.kubelet.containers import ContainerProcess
from podidentity_lab.kubelet.environment import ContainerConfigError
from podidentity_lab.kubelet.lifecycle import Lifecycle, Place
from podidentity_lab.kubelet.logs import ContainerLogs
from podidentity_lab.kubelet.node import RUNTIME, Json, Node, record_event
from podidentity_lab.kubelet.object_files import ObjectFiles
from podidentity_lab.kubelet.statuses import ContainerState, PodState, Terminated, Waiting
from podidentity_lab.kubelet.tokens import ProjectedTokens
from podidentity_lab.kubernetes import ApiError

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
        self.running: dict[str, ContainerProcess] = {}
        self._processes: processes.Holder | None = None
        self._ephemeral: asyncio.Queue[ContainerState] = asyncio.Queue()
        waiting = "PodInitializing" if obj["spec"].get("initContainers") else "ContainerCreating"
        self.state = PodState(
            node.network.address,
            node.cluster.clock(),
            [
                ContainerState(container, Waiting("PodInitializing"))
                for container in obj["spec"].get("initContainers") or ()
            ],
            [ContainerState(container, Waiting(waiting)) for container in obj["spec"]["containers"]],
        )

    @property
    def uid(self) -> str:
        """The pod's UID: a pod that is created again under the same name has another one."""
        return str(self._obj["metadata"]["uid"])

    @property
    def network(self) -> str:
        """The network namespace of its containers."""
        return self._node.name if self._host_network else wiring.namespace_name(self.uid)

    def is_named(self, namespace: str, name: str) -> bool:
        """Whether the pod has this namespace and name."""
        metadata = self._obj["metadata"]
        return (metadata["namespace"], metadata["name"]) == (namespace, name)

    def stop(self, grace_seconds: float) -> None:
        """End the pod's containers; a later call can only shorten the time."""
        if self._grace_seconds is None or grace_seconds < self._grace_seconds:
            self._grace_seconds = grace_seconds
        self._stopping.set()

    def add_ephemeral_containers(self, obj: Json) -> None:
        """Start the ephemeral containers of the pod's object that are not there yet."""
        names = {state.spec["name"] for state in self.state.ephemeral}
        for container in obj["spec"].get("ephemeralContainers") or ():
            if container["name"] not in names:
                state = ContainerState(container, Waiting("ContainerCreating"))
                self.state.ephemeral.append(state)
                self._ephemeral.put_nowait(state)

    async def run(self) -> None:
        """Run the pod until it is deleted, then remove everything of it, the object in the API included."""
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
        """Run the containers to their end; never returns for a pod that restarts them for ever."""
        await self._join_network()
        if self._obj["spec"].get("shareProcessNamespace"):
            self._processes = await processes.hold(self._folder)
        place = await self._place()
        # Made at the same moment as the volumes, so that no later change is missed.
        tokens = ProjectedTokens(self._node, self._obj, place.volumes)
        objects = ObjectFiles(self._node, self._obj, place.volumes)
        coroutines = [_renew_files(tokens, objects), self._run_ephemeral_containers(place)]
        tasks = {asyncio.create_task(coroutine) for coroutine in coroutines}
        try:
            await self._run_containers(place)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _run_containers(self, place: Place) -> None:
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

    async def _run_ephemeral_containers(self, place: Place) -> None:
        """Run each of them once, whatever the pod's restart policy, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                state = await self._ephemeral.get()
                group.create_task(self._lifecycle(state, place).run_once())

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
        """Return where the containers will run, waiting for volumes that do not exist yet."""
        warn_at = self._node.cluster.clock() + MOUNT_GRACE_SECONDS  # objects are often created in one go with their pod
        while True:
            try:
                paths = volumes.prepare(self._node, self._obj, self._folder / "volumes")
                return Place(self.network, self._folder, paths, self.state.address)
            except volumes.VolumeError as error:
                if self._node.cluster.clock() >= warn_at:
                    self.tell("Warning", "FailedMount", str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def _lifecycle(self, state: ContainerState, place: Place) -> Lifecycle:
        return Lifecycle(self._node, self._obj, state, place, self._logs, self)

    def grace_seconds(self) -> float:
        """Return how long a container may take to end."""
        if self._grace_seconds is not None:
            return self._grace_seconds
        return float(self._obj["spec"].get("terminationGracePeriodSeconds", 30))

    def runs(self, container: str, running: ContainerProcess | None) -> None:
        """Note the process of a container, so that others can be started beside it; None when it has ended."""
        if running is None:
            self.running.pop(container, None)
        else:
            self.running[container] = running

    def process_namespace(self, container: Json) -> int:
        """Return a process whose PID namespace the container joins; 0: its own. Raises `ContainerConfigError`."""
        if self._processes is not None:
            return self._processes.first
        target = container.get("targetContainerName")
        if not target:
            return 0
        running = self.running.get(target)
        if running is None or not running.first:
            message = f"container {target!r}, whose processes it is to see, does not run"
            raise ContainerConfigError(f"container {container['name']}: {message}; it starts when that one does")
        return running.first

    def tell(self, kind: str, reason: str, message: str) -> None:
        """Report an event about the pod to the user; `kind` is Normal or Warning."""
        with contextlib.suppress(ApiError):  # its namespace may be going
            record_event(self._node, self._obj, kind, reason, message)

    def publish(self) -> None:
        """Write the pod's status to the API."""
        metadata = self._obj["metadata"]

        def edit(current: Json) -> None:
            if current["metadata"]["uid"] == self.uid:
                current["status"] = self.state.render(current)
                self._obj["status"] = current["status"]

        with contextlib.suppress(ApiError):
            self._node.cluster.storage.change("pods", metadata["namespace"], metadata["name"], edit)

    async def _clean_up(self) -> None:
        if self._processes is not None:
            await self._processes.end()
        for state in self.state.every_container():
            state.ready = False
            if not isinstance(state.now, (Terminated, Waiting)):
                now = self._node.cluster.clock()
                state.now = Terminated(137, now, now)
        if not self._host_network and self.state.address:
            with contextlib.suppress(HostError):
                await wiring.disconnect(self._node, self.uid)
            self._node.addresses.give_back(self.state.address)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget(self) -> None:
        """Remove the object from the API, as a kubelet does last: a deleted pod stays there until then."""
        storage, metadata = self._node.cluster.storage, self._obj["metadata"]
        with contextlib.suppress(ApiError):
            if storage.get("pods", metadata["namespace"], metadata["name"])["metadata"]["uid"] == self.uid:
                storage.delete("pods", metadata["namespace"], metadata["name"], grace_seconds=0)


async def _renew_files(tokens: ProjectedTokens, objects: ObjectFiles) -> None:
    while tokens or objects:
        await asyncio.sleep(RETRY_SECONDS)
        tokens.renew()
        objects.refresh()
