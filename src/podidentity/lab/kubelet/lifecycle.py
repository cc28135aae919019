"""The life of one container: started, probed, started again after a growing pause, ended.

`Lifecycle` writes what happens into its `ContainerState` and tells its owner, the pod. Called by `pod`.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from podidentity.lab import images
from podidentity.lab.kubelet import containers, environment, rights, volumes
from podidentity.lab.kubelet.containers import Running, StartError
from podidentity.lab.kubelet.environment import ContainerConfigError
from podidentity.lab.kubelet.logs import ContainerLogs
from podidentity.lab.kubelet.node import Json, Node
from podidentity.lab.kubelet.probes import Asked, run_probe
from podidentity.lab.kubelet.statuses import ContainerState, Ended, Started, Waiting
from podidentity.lab.sandbox.root import Program, plan

RETRY_SECONDS = 1.0
BACK_OFF_SECONDS = (0.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # a kubelet begins at 10 and ends at 300: too long to watch
BACK_OFF_RESET_SECONDS = 120.0


class Owner(Protocol):
    """What a container asks of its pod."""

    def publish(self) -> None:
        """Something changed."""
        ...

    def tell(self, kind: str, reason: str, message: str) -> None:
        """An event for the user."""
        ...

    def grace_seconds(self) -> float:
        """How long the container may take to end."""
        ...

    def runs(self, container: str, running: Running | None) -> None:
        """The container's process began, or has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pod's containers run: network namespace, folder for their roots, volumes by name, the pod's address."""

    network: str
    folder: Path
    volumes: dict[str, Path]
    address: str


class Lifecycle:
    """One container of one pod."""

    def __init__(
        self, node: Node, pod: Json, state: ContainerState, place: Place, logs: ContainerLogs, owner: Owner
    ) -> None:
        self._node = node
        self._pod = pod
        self._state = state
        self._place = place
        self._logs = logs
        self._owner = owner
        self._clock = node.cluster.clock

    async def run_to_success(self, *, init: bool) -> bool:
        """Run as often as the restart policy says; whether the last run went well. Cancelled, it ends the process."""
        policy = self._pod["spec"].get("restartPolicy", "Always")
        pauses = 0
        while True:
            began = self._clock()
            ended = await self._once()
            well = ended.exit_code == 0
            if (well and (init or policy != "Always")) or (not well and policy == "Never"):
                return well
            pauses = 0 if self._clock() - began > BACK_OFF_RESET_SECONDS else pauses
            await self._pause(BACK_OFF_SECONDS[min(pauses, len(BACK_OFF_SECONDS) - 1)], ended)
            pauses += 1
            self._state.restarts += 1

    async def _pause(self, seconds: float, ended: Ended) -> None:
        self._state.last = ended
        if seconds:
            name = self._state.spec["name"]
            message = f"back-off {seconds:g}s restarting failed container={name} pod={self._pod['metadata']['name']}"
            self._become(Waiting("CrashLoopBackOff", message))
            self._owner.tell("Warning", "BackOff", f"Back-off restarting failed container {name}")
            await asyncio.sleep(seconds)

    async def _once(self) -> Ended:
        """One run, from the image to the exit code."""
        planned = await self._plan(await self._image())
        began = self._clock()
        try:
            running = await self._start(planned)
        except StartError as error:
            message = f"Error: failed to start container {self._state.spec['name']!r}: {error}"
            self._fail("RunContainerError", "Failed", message)
            return self._ended(Ended(128, began, began, "StartError", message))
        self._become(Started(began))
        self._owner.tell("Normal", "Started", f"Started container {self._state.spec['name']}")
        self._owner.runs(self._state.spec["name"], running)
        probes = asyncio.create_task(self._probe(running))
        try:
            code = await running.wait()
        except asyncio.CancelledError:
            # The pod is to go. Nobody but us knows the process: end it before we are gone.
            code = await asyncio.shield(asyncio.create_task(self._end(running)))
            self._ended(Ended(code, began, self._clock()))
            raise
        finally:
            self._owner.runs(self._state.spec["name"], None)
            probes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probes
        return self._ended(Ended(code, began, self._clock()))

    async def _end(self, running: Running) -> int:
        self._state.ready = False
        self._owner.tell("Normal", "Killing", f"Stopping container {self._state.spec['name']}")
        await running.stop(self._owner.grace_seconds)
        return await running.wait()

    def _ended(self, ended: Ended) -> Ended:
        self._state.ready = self._state.started = False
        self._become(ended)
        return ended

    def _become(self, now: Waiting | Started | Ended) -> None:
        self._state.now = now
        self._owner.publish()

    async def _plan(self, image: images.Image) -> dict[str, Any]:
        """What to start; waits for objects that can still appear."""
        while True:
            try:
                return self._planned(image)
            except (ContainerConfigError, volumes.VolumeError) as error:
                self._fail("CreateContainerConfigError", "Failed", f"Error: {error}")
                await asyncio.sleep(RETRY_SECONDS)

    async def _start(self, planned: dict[str, Any]) -> Running:
        """Start the process. Raises `StartError`."""
        metadata, spec = self._pod["metadata"], self._state.spec
        log = self._logs.begin(metadata["namespace"], metadata["name"], spec["name"])
        running = await containers.start(planned, self._place.network, self._folder, log)
        self._state.started = "startupProbe" not in spec
        self._state.ready = self._state.started and "readinessProbe" not in spec
        return running

    async def _image(self) -> images.Image:
        """The program behind the image's name; for an unknown one there is nothing to do but wait for the pod's end."""
        name = self._state.spec["image"]
        image = images.find(name)
        if image is not None:
            return image
        message = f'Failed to pull image "{name}": {images.unknown(name)}'
        self._fail("ErrImagePull", "Failed", message)
        await asyncio.sleep(RETRY_SECONDS)
        self._become(Waiting("ImagePullBackOff", message))
        await asyncio.Event().wait()
        raise AssertionError  # never set

    def _fail(self, waiting: str, reason: str, message: str) -> None:
        now = Waiting(waiting, message)
        if now != self._state.now:
            self._become(now)
            self._owner.tell("Warning", reason, message)

    @property
    def _folder(self) -> Path:
        return self._place.folder / "containers" / str(self._state.spec["name"])

    def _planned(self, image: images.Image) -> dict[str, Any]:
        """Raises `ContainerConfigError` and `VolumeError`."""
        spec, pod = self._state.spec, self._pod
        variables = environment.environment(self._node.cluster.storage, pod, spec, image)
        program = Program(environment.command(spec, image, variables), variables, spec.get("workingDir") or "/")
        binds = volumes.binds(spec, self._place.volumes, volumes.writable(pod))
        if image.directory is not None:
            binds = ((str(image.directory), str(image.directory), True), *binds)
        network = rights.private_files(self._node, pod, self._place.address)
        read_only = bool((spec.get("securityContext") or {}).get("readOnlyRootFilesystem"))
        allowed = rights.rights(pod, spec, rootless=self._node.cluster.rootless)
        return plan(self._folder / "root", program, allowed, network, binds, read_only=read_only)

    async def _probe(self, running: Running) -> None:
        spec = self._state.spec
        if "startupProbe" in spec:
            await self._started_up(running)
        async with asyncio.TaskGroup() as group:
            if "readinessProbe" in spec:
                asked = self._asked(spec["readinessProbe"], running)
                group.create_task(run_probe(asked, self._readiness, eager=True))
            if "livenessProbe" in spec:
                group.create_task(self._stay_alive(running))

    def _asked(self, probe: Json, running: Running) -> Asked:
        return Asked(probe, self._state.spec, running, self._place.address, self._node.name)

    async def _started_up(self, running: Running) -> None:
        if await self._until_told(self._state.spec["startupProbe"], running, wanted=True, what="Startup"):
            self._state.started = True
            self._state.ready = "readinessProbe" not in self._state.spec
            self._owner.publish()

    async def _stay_alive(self, running: Running) -> None:
        await self._until_told(self._state.spec["livenessProbe"], running, wanted=False, what="Liveness")

    async def _until_told(self, probe: Json, running: Running, *, wanted: bool, what: str) -> bool:
        """Wait for a probe's verdict `wanted`; a failure ends the container and False is given."""
        verdict: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()

        def tell(well: bool, why: str) -> None:  # noqa: FBT001  # the probes' callback
            if not verdict.done() and (well is wanted or not well):
                verdict.set_result((well, why))

        asking = asyncio.create_task(run_probe(self._asked(probe, running), tell, eager=False))
        try:
            well, why = await verdict
        finally:
            asking.cancel()
        if not well:
            self._owner.tell("Warning", "Unhealthy", f"{what} probe failed: {why}")
            name = self._state.spec["name"]
            self._owner.tell("Normal", "Killing", f"Container {name} failed {what.lower()} probe, will be restarted")
            await running.stop(self._owner.grace_seconds)
        return well

    def _readiness(self, well: bool, why: str) -> None:  # noqa: FBT001  # the probes' callback
        if not well:
            self._owner.tell("Warning", "Unhealthy", f"Readiness probe failed: {why}")
        if self._state.ready is not well:
            self._state.ready = well
            self._owner.publish()
