"""What a kubelet reports of a pod: the states of its containers, and the status that follows from them. Pure.

The words are Kubernetes' own (kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle): clients compare them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from podidentity_lab.kubelet.node import Json, timestamp


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not started, or between two starts."""

    reason: str
    message: str = ""

    def render(self, _: str) -> Json:
        """As the API shows it."""
        return {"waiting": {"reason": self.reason, **({"message": self.message} if self.message else {})}}


@dataclass(frozen=True, slots=True)
class Running:
    """The process runs."""

    at_seconds: float

    def render(self, _: str) -> Json:
        """As the API shows it."""
        return {"running": {"startedAt": timestamp(self.at_seconds)}}


@dataclass(frozen=True, slots=True)
class Terminated:
    """The process is gone."""

    exit_code: int
    started_seconds: float
    ended_seconds: float
    reason: str = ""
    message: str = ""

    def render(self, container_id: str) -> Json:
        """As the API shows it."""
        terminated: Json = {
            "exitCode": self.exit_code,
            "reason": self.reason or ("Completed" if self.exit_code == 0 else "Error"),
            "startedAt": timestamp(self.started_seconds),
            "finishedAt": timestamp(self.ended_seconds),
            "containerID": container_id,
        }
        return {"terminated": {**terminated, **({"message": self.message} if self.message else {})}}


@dataclass(slots=True)
class ContainerState:
    """What is known of one container now."""

    spec: Json
    now: Waiting | Running | Terminated
    last: Terminated | None = None
    restarts: int = 0
    ready: bool = False
    has_started: bool = False

    def render(self, uid: str) -> Json:
        """Return the container's entry in `containerStatuses`."""
        identifier = f"lab://{uid}-{self.spec['name']}-{self.restarts}"
        status: Json = {
            "name": self.spec["name"],
            "image": self.spec["image"],
            "imageID": f"lab://{self.spec['image']}",
            "state": self.now.render(identifier),
            "lastState": self.last.render(identifier) if self.last else {},
            "ready": self.ready,
            "started": self.has_started,
            "restartCount": self.restarts,
        }
        return status if isinstance(self.now, Waiting) and not self.last else {**status, "containerID": identifier}


@dataclass(slots=True)
class PodState:
    """What is known of a pod now."""

    host_address: str
    start_seconds: float
    init: list[ContainerState] = field(default_factory=list)
    containers: list[ContainerState] = field(default_factory=list)
    ephemeral: list[ContainerState] = field(default_factory=list)
    address: str = ""
    initialized: bool = False

    def every_container(self) -> Iterator[ContainerState]:
        """Yield the states of containers of all three kinds."""
        return chain(self.init, self.containers, self.ephemeral)

    def phase(self, restart_policy: str) -> str:
        """Return the phase: Pending, Running, Succeeded or Failed."""
        if any(self._failed_for_good(state, restart_policy) for state in self.init):
            return "Failed"
        states = [state.now for state in self.containers]
        if restart_policy != "Always" and all(isinstance(state, Terminated) for state in states):
            terminated = [state for state in states if isinstance(state, Terminated)]
            return "Succeeded" if all(state.exit_code == 0 for state in terminated) else "Failed"
        if not self.initialized or all(
            isinstance(container.now, Waiting) and container.last is None for container in self.containers
        ):
            return "Pending"
        return "Running"

    def render(self, pod: Json) -> Json:
        """Return the pod's whole status; conditions that others have set stay."""
        policy = pod["spec"].get("restartPolicy", "Always")
        phase, uid = self.phase(policy), pod["metadata"]["uid"]
        status: Json = {
            "phase": phase,
            "conditions": self._conditions(pod, phase),
            "hostIP": self.host_address,
            "hostIPs": [{"ip": self.host_address}],
            "startTime": timestamp(self.start_seconds),
            "qosClass": "BestEffort",
            "containerStatuses": [state.render(uid) for state in self.containers],
        }
        if self.init:
            status["initContainerStatuses"] = [state.render(uid) for state in self.init]
        if self.ephemeral:  # they have no probes, and are never ready
            statuses = [{**state.render(uid), "ready": False} for state in self.ephemeral]
            status["ephemeralContainerStatuses"] = statuses
        if self.address:
            status |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        return status

    def _failed_for_good(self, state: ContainerState, restart_policy: str) -> bool:
        return restart_policy == "Never" and isinstance(state.now, Terminated) and state.now.exit_code != 0

    def _conditions(self, pod: Json, phase: str) -> list[Json]:
        ready = phase == "Running" and all(state.ready for state in self.containers)
        is_complete = phase == "Succeeded"
        unready = ", ".join(state.spec["name"] for state in self.containers if not state.ready)
        not_ready = {"reason": "ContainersNotReady", "message": f"containers with unready status: [{unready}]"}
        values: dict[str, tuple[bool, Json]] = {
            "PodReadyToStartContainers": (bool(self.address), {}),
            "Initialized": (self.initialized, {}),
            "ContainersReady": (ready, {"reason": "PodCompleted"} if is_complete else not_ready),
            "Ready": (ready, {"reason": "PodCompleted"} if is_complete else not_ready),
            "PodScheduled": (True, {}),
        }
        old = {condition["type"]: condition for condition in (pod.get("status") or {}).get("conditions") or ()}
        own_conditions = [_condition(name, old.get(name), value, details) for name, (value, details) in values.items()]
        return [*own_conditions, *(condition for name, condition in old.items() if name not in values)]


def _condition(name: str, old: Json | None, value: bool, details: dict[str, Any]) -> Json:  # noqa: FBT001  # a table's column
    condition: Json = {"type": name, "status": str(value), **({} if value else details)}
    if old and old["status"] == condition["status"] and "lastTransitionTime" in old:
        return {**condition, "lastTransitionTime": old["lastTransitionTime"]}
    return condition
