"""What a kubelet tells of a pod: the states of its containers, and the pod's status that follows from them. Pure.

The words are Kubernetes' own (kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle): clients compare them.
"""

from dataclasses import dataclass, field
from typing import Any

from podidentity.lab.kubelet.node import Json, timestamp


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not started, or between two starts."""

    reason: str
    message: str = ""

    def render(self, _: str) -> Json:
        """As the API shows it."""
        return {"waiting": {"reason": self.reason, **({"message": self.message} if self.message else {})}}


@dataclass(frozen=True, slots=True)
class Started:
    """The process runs."""

    at_seconds: float

    def render(self, _: str) -> Json:
        """As the API shows it."""
        return {"running": {"startedAt": timestamp(self.at_seconds)}}


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone."""

    exit_code: int
    started_seconds: float
    ended_seconds: float
    reason: str = ""
    message: str = ""

    def render(self, container_id: str) -> Json:
        """As the API shows it."""
        shown: Json = {
            "exitCode": self.exit_code,
            "reason": self.reason or ("Completed" if self.exit_code == 0 else "Error"),
            "startedAt": timestamp(self.started_seconds),
            "finishedAt": timestamp(self.ended_seconds),
            "containerID": container_id,
        }
        return {"terminated": {**shown, **({"message": self.message} if self.message else {})}}


@dataclass(slots=True)
class ContainerState:
    """What is known of one container now."""

    spec: Json
    now: Waiting | Started | Ended
    last: Ended | None = None
    restarts: int = 0
    ready: bool = False
    started: bool = False

    def render(self, uid: str) -> Json:
        """One entry of `containerStatuses`."""
        identifier = f"lab://{uid}-{self.spec['name']}-{self.restarts}"
        shown: Json = {
            "name": self.spec["name"],
            "image": self.spec["image"],
            "imageID": f"lab://{self.spec['image']}",
            "state": self.now.render(identifier),
            "lastState": self.last.render(identifier) if self.last else {},
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }
        return shown if isinstance(self.now, Waiting) and not self.last else {**shown, "containerID": identifier}


@dataclass(slots=True)
class PodState:
    """What is known of a pod now."""

    host_address: str
    start_seconds: float
    init: list[ContainerState] = field(default_factory=list)
    containers: list[ContainerState] = field(default_factory=list)
    address: str = ""
    initialized: bool = False

    def phase(self, restart_policy: str) -> str:
        """Pending, Running, Succeeded or Failed."""
        if any(self._failed_for_good(state, restart_policy) for state in self.init):
            return "Failed"
        states = [state.now for state in self.containers]
        if restart_policy != "Always" and all(isinstance(state, Ended) for state in states):
            ended = [state for state in states if isinstance(state, Ended)]
            return "Succeeded" if all(state.exit_code == 0 for state in ended) else "Failed"
        if not self.initialized or all(isinstance(one.now, Waiting) and one.last is None for one in self.containers):
            return "Pending"
        return "Running"

    def render(self, pod: Json) -> Json:
        """The pod's whole status; conditions that others set stay."""
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
        if self.address:
            status |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        return status

    def _failed_for_good(self, state: ContainerState, restart_policy: str) -> bool:
        return restart_policy == "Never" and isinstance(state.now, Ended) and state.now.exit_code != 0

    def _conditions(self, pod: Json, phase: str) -> list[Json]:
        ready = phase == "Running" and all(state.ready for state in self.containers)
        done = phase == "Succeeded"
        unready = ", ".join(state.spec["name"] for state in self.containers if not state.ready)
        lacking = {"reason": "ContainersNotReady", "message": f"containers with unready status: [{unready}]"}
        wanted: dict[str, tuple[bool, Json]] = {
            "PodReadyToStartContainers": (bool(self.address), {}),
            "Initialized": (self.initialized, {}),
            "ContainersReady": (ready, {"reason": "PodCompleted"} if done else lacking),
            "Ready": (ready, {"reason": "PodCompleted"} if done else lacking),
            "PodScheduled": (True, {}),
        }
        before = {one["type"]: one for one in (pod.get("status") or {}).get("conditions") or ()}
        mine = [_condition(name, before.get(name), value, why) for name, (value, why) in wanted.items()]
        return [*mine, *(one for name, one in before.items() if name not in wanted)]


def _condition(name: str, before: Json | None, value: bool, why: dict[str, Any]) -> Json:  # noqa: FBT001  # a table's column
    shown: Json = {"type": name, "status": str(value), **({} if value else why)}
    if before and before["status"] == shown["status"] and "lastTransitionTime" in before:
        return {**shown, "lastTransitionTime": before["lastTransitionTime"]}
    return shown
