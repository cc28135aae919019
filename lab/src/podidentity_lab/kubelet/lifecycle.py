"""The life of one container: started, probed, started again after a growing pause, ended.

`Lifecycle` writes what happens into its `ContainerState` and tells its owner, the pod.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from podidentity_lab import images
from podidentity_lab.kubelet import containers, environment, pulling, rights, users, volumes
from podidentity_lab.kubelet.containers import Console, ContainerProcess, StartError
from podidentity_lab.kubelet.environment import ContainerConfigError
from podidentity_lab.kubelet.logs import ContainerLogs
from podidentity_lab.kubelet.node import Json, Node
from podidentity_lab.kubelet.probes import ProbeTarget, run_probe
from podidentity_lab.kubelet.statuses import ContainerState, Running, Terminated, Waiting
from podidentity_lab.sandbox.root import Program, plan

RETRY_SECONDS = 1.0
PULL_LIMIT_SECONDS = 4.0  # between looks for an image that is missing: whoever loads it is waiting
BACK_OFF_SECONDS = (0.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # a kubelet begins at 10 and ends at 300: too long to watch
BACK_OFF_RESET_SECONDS = 120.0


class Owner(Protocol):
    """What a container asks of its pod."""

    def publish(self) -> None:
        """Note that something has changed."""
        ...

    def tell(self, kind: str, reason: str, message: str) -> None:
        """Report an event to the user; `kind` is Normal or Warning."""
        ...

    def grace_seconds(self) -> float:
        """Return how long the container may take to end."""
        ...

    def runs(self, container: str, running: ContainerProcess | None) -> None:
        """Note the process of a container; None when it has ended."""
        ...

    def process_namespace(self, container: Json) -> int:
        """Return a process whose PID namespace the container joins; 0: its own. Raises `ContainerConfigError`."""
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
        """Run as often as the restart policy says; return whether the last run went well. Cancelling ends the run."""
        policy = self._pod["spec"].get("restartPolicy", "Always")
        pauses = 0
        while True:
            start = self._clock()
            end = await self.run_once()
            well = end.exit_code == 0
            if (well and (init or policy != "Always")) or (not well and policy == "Never"):
                return well
            pauses = 0 if self._clock() - start > BACK_OFF_RESET_SECONDS else pauses
            await self._pause(BACK_OFF_SECONDS[min(pauses, len(BACK_OFF_SECONDS) - 1)], end)
            pauses += 1
            self._state.restarts += 1

    async def _pause(self, seconds: float, end: Terminated) -> None:
        self._state.last = end
        if seconds:
            name = self._state.spec["name"]
            message = f"back-off {seconds:g}s restarting failed container={name} pod={self._pod['metadata']['name']}"
            self._set_state(Waiting("CrashLoopBackOff", message))
            self._owner.tell("Warning", "BackOff", f"Back-off restarting failed container {name}")
            await asyncio.sleep(seconds)

    async def run_once(self) -> Terminated:
        """Run once, from the image to the exit code. Cancelling ends the run."""
        container_plan = await self._plan(await self._image())
        start = self._clock()
        try:
            running = await self._start(container_plan)
        except StartError as error:
            message = f"Error: failed to start container {self._state.spec['name']!r}: {error}"
            self._fail("RunContainerError", "Failed", message)
            return self._note_end(Terminated(128, start, start, "StartError", message))
        self._set_state(Running(start))
        self._owner.tell("Normal", "Started", f"Started container {self._state.spec['name']}")
        self._owner.runs(self._state.spec["name"], running)
        probes = asyncio.create_task(self._probe(running))
        try:
            code = await running.wait()
        except asyncio.CancelledError:
            # The pod is being deleted, and nobody else knows this process: end it first.
            code = await asyncio.shield(asyncio.create_task(self._end(running)))
            self._note_end(Terminated(code, start, self._clock()))
            raise
        finally:
            self._owner.runs(self._state.spec["name"], None)
            probes.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probes
        return self._note_end(Terminated(code, start, self._clock()))

    async def _end(self, running: ContainerProcess) -> int:
        self._state.ready = False
        self._owner.tell("Normal", "Killing", f"Stopping container {self._state.spec['name']}")
        await running.stop(self._owner.grace_seconds)
        return await running.wait()

    def _note_end(self, end: Terminated) -> Terminated:
        self._state.ready = self._state.has_started = False
        self._set_state(end)
        return end

    def _set_state(self, now: Waiting | Running | Terminated) -> None:
        self._state.now = now
        self._owner.publish()

    async def _plan(self, image: images.Image) -> dict[str, Any]:
        """Return what to start, waiting for objects that do not exist yet."""
        while True:
            try:
                return self._container_plan(image)
            except (ContainerConfigError, volumes.VolumeError) as error:
                self._fail("CreateContainerConfigError", "Failed", f"Error: {error}")
                await asyncio.sleep(RETRY_SECONDS)

    async def _start(self, container_plan: dict[str, Any]) -> ContainerProcess:
        """Start the process. Raises `StartError`."""
        metadata, spec = self._pod["metadata"], self._state.spec
        log = self._logs.begin(metadata["namespace"], metadata["name"], spec["name"])
        stdin, tty, once = (bool(spec.get(field)) for field in ("stdin", "tty", "stdinOnce"))
        console = Console(log, stdin, once, tty, container_plan["processes"])
        running = await containers.start(container_plan, self._place.network, self._folder, console)
        self._state.has_started = "startupProbe" not in spec
        self._state.ready = self._state.has_started and "readinessProbe" not in spec
        return running

    async def _image(self) -> images.Image:
        """Return the program behind the image's name; wait for one that is not there yet."""
        pause = RETRY_SECONDS
        while True:
            try:
                return await pulling.find(self._node, self._state.spec)
            except pulling.PullError as error:
                self._fail(error.reason, "Failed", str(error))
                await asyncio.sleep(pause)
                if error.reason == "ErrImagePull":
                    self._set_state(Waiting("ImagePullBackOff", str(error)))
                pause = min(pause * 2, PULL_LIMIT_SECONDS)
                await asyncio.sleep(pause)

    def _fail(self, waiting: str, reason: str, message: str) -> None:
        now = Waiting(waiting, message)
        if now != self._state.now:
            self._set_state(now)
            self._owner.tell("Warning", reason, message)

    @property
    def _folder(self) -> Path:
        return self._place.folder / "containers" / str(self._state.spec["name"])

    def _container_plan(self, image: images.Image) -> dict[str, Any]:
        """Return what `launch` starts. Raises `ContainerConfigError` and `VolumeError`."""
        spec, pod = self._state.spec, self._pod
        variables = environment.environment(self._node.cluster.storage, pod, spec, image)
        user = users.user_of(image, rights.security_context(pod, spec))
        if image.root is not None:
            variables.setdefault("HOME", user.home)
        if spec.get("tty"):
            variables.setdefault("TERM", containers.DEFAULT_TERMINAL)
        command = environment.command(spec, image, variables)
        program = Program(command, variables, spec.get("workingDir") or image.working_directory)
        binds = volumes.binds(spec, self._place.volumes, volumes.writable(pod))
        if image.directory is not None:
            binds = ((str(image.directory), str(image.directory), True), *binds)
        network = rights.private_files(self._node, pod, self._place.address)
        read_only = bool((spec.get("securityContext") or {}).get("readOnlyRootFilesystem"))
        container_rights = rights.rights(pod, spec, user, rootless=self._node.cluster.rootless)
        root = self._folder / "root"
        processes = self._owner.process_namespace(spec)
        root_plan = plan(root, program, container_rights, network, binds, read_only=read_only, image=image.root)
        return {**root_plan, "processes": processes}

    async def _probe(self, running: ContainerProcess) -> None:
        spec = self._state.spec
        if "startupProbe" in spec:
            await self._note_start_up(running)
        async with asyncio.TaskGroup() as group:
            if "readinessProbe" in spec:
                target = self._probe_target(spec["readinessProbe"], running)
                group.create_task(run_probe(target, self._readiness, eager=True))
            if "livenessProbe" in spec:
                group.create_task(self._stay_alive(running))

    def _probe_target(self, probe: Json, running: ContainerProcess) -> ProbeTarget:
        return ProbeTarget(probe, self._state.spec, running, self._place.address, self._node.name)

    async def _note_start_up(self, running: ContainerProcess) -> None:
        if await self._first_verdict(self._state.spec["startupProbe"], running, goal=True, kind="Startup"):
            self._state.has_started = True
            self._state.ready = "readinessProbe" not in self._state.spec
            self._owner.publish()

    async def _stay_alive(self, running: ContainerProcess) -> None:
        await self._first_verdict(self._state.spec["livenessProbe"], running, goal=False, kind="Liveness")

    async def _first_verdict(self, probe: Json, running: ContainerProcess, *, goal: bool, kind: str) -> bool:
        """Wait for a probe's verdict `goal` or a failure, and return it; a failure ends the container."""
        verdict: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()

        def tell(well: bool, message: str) -> None:  # noqa: FBT001  # the probes' callback
            if not verdict.done() and (well is goal or not well):
                verdict.set_result((well, message))

        asking = asyncio.create_task(run_probe(self._probe_target(probe, running), tell, eager=False))
        try:
            well, message = await verdict
        finally:
            asking.cancel()
        if not well:
            self._owner.tell("Warning", "Unhealthy", f"{kind} probe failed: {message}")
            name = self._state.spec["name"]
            self._owner.tell("Normal", "Killing", f"Container {name} failed {kind.lower()} probe, will be restarted")
            await running.stop(self._owner.grace_seconds)
        return well

    def _readiness(self, well: bool, message: str) -> None:  # noqa: FBT001  # the probes' callback
        if not well:
            self._owner.tell("Warning", "Unhealthy", f"Readiness probe failed: {message}")
        if self._state.ready is not well:
            self._state.ready = well
            self._owner.publish()
