"""Waits until a DaemonSet has a ready pod on every node that it wants one on. Called by the command `rollout`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podidentity.core.identities import ObjectKey
from podidentity.errors import KubernetesError
from podidentity.kube.api import Api
from podidentity.kube.resources import DAEMON_SETS

POLL_SECONDS = 1.0
"""Between two looks: nodes take seconds, and this one wait is all the load there is."""


@dataclass(frozen=True, slots=True)
class Progress:
    """On how many nodes a DaemonSet stands, of how many. `seen` is false until its controller has looked at it."""

    ready: int
    wanted: int
    seen: bool

    @property
    def complete(self) -> bool:
        """Nothing is left to wait for; so it is, too, on a cluster without nodes."""
        return self.seen and self.ready >= self.wanted


def progress(daemon_set: dict[str, Any]) -> Progress:
    """Read a DaemonSet's status; every field of it may be missing (`apps/v1` DaemonSetStatus)."""
    status = daemon_set.get("status") or {}
    generation = int(daemon_set["metadata"].get("generation") or 0)
    return Progress(
        ready=int(status.get("numberReady") or 0),
        wanted=int(status.get("desiredNumberScheduled") or 0),
        seen=int(status.get("observedGeneration") or 0) >= max(generation, 1),
    )


async def wait_until_everywhere(api: Api, key: ObjectKey, seconds: float, tell: Callable[[Progress], None]) -> None:
    """Return when the DaemonSet stands everywhere; tells each change. Raises KubernetesError, also after `seconds`."""
    ends = api.clock.now() + seconds
    told: Progress | None = None
    while True:
        now = progress(await api.get(DAEMON_SETS, key))
        if now != told:
            tell(now)
            told = now
        if now.complete:
            return
        if api.clock.now() >= ends:
            raise KubernetesError(
                f"daemonset {key} is ready on {now.ready} of {now.wanted} nodes after {seconds:g} s; "
                f"see: kubectl -n {key.namespace} describe daemonset {key.name}"
            )
        await api.clock.sleep(POLL_SECONDS)
