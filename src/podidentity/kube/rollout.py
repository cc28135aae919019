"""Waits until a DaemonSet has a ready pod on every node that should have one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podidentity.core.model.identities import ObjectKey
from podidentity.errors import KubernetesError
from podidentity.kube.api import Api
from podidentity.kube.resources import DAEMON_SETS

POLL_SECONDS = 1.0
"""The time between two requests: nodes take seconds, and there is no other load."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The nodes with a ready pod and those that should have one.

    `is_current` is false until the controller has observed the newest generation.
    """

    ready: int
    desired: int
    is_current: bool

    @property
    def complete(self) -> bool:
        """Whether every node has its pod; true on a cluster without nodes."""
        return self.is_current and self.ready >= self.desired


def progress(daemon_set: dict[str, Any]) -> Progress:
    """Return the progress in a DaemonSet's status, of which every field may be missing (`apps/v1` DaemonSetStatus)."""
    status = daemon_set.get("status") or {}
    generation = int(daemon_set["metadata"].get("generation") or 0)
    return Progress(
        ready=int(status.get("numberReady") or 0),
        desired=int(status.get("desiredNumberScheduled") or 0),
        is_current=int(status.get("observedGeneration") or 0) >= max(generation, 1),
    )


async def wait_until_everywhere(api: Api, key: ObjectKey, seconds: float, report: Callable[[Progress], None]) -> None:
    """Wait until every node has its pod; `report` each change. Raises KubernetesError, also after `seconds`."""
    deadline = api.clock.steady() + seconds
    previous: Progress | None = None
    while True:
        now = progress(await api.get(DAEMON_SETS, key))
        if now != previous:
            report(now)
            previous = now
        if now.complete:
            return
        if api.clock.steady() >= deadline:
            raise KubernetesError(
                f"daemonset {key} is ready on {now.ready} of {now.desired} nodes after {seconds:g} s; "
                f"see: kubectl -n {key.namespace} describe daemonset {key.name}"
            )
        await api.clock.sleep(POLL_SECONDS)
