"""Waiting for a DaemonSet, as the chart's uninstall hook does."""

from typing import Any

import pytest

from clocks import JumpingClock
from daemons.kube.scripted import ScriptedServer
from podidentity import errors
from podidentity.core.model.identities import ObjectKey
from podidentity.kube.api import Api
from podidentity.kube.rollout import Progress, progress, wait_until_everywhere
from waiting import eventually

KEY = ObjectKey("default", "nmi-uninstall")
PATH = "/apis/apps/v1/namespaces/default/daemonsets/nmi-uninstall"


def daemon_set(ready: int, desired: int, *, observed: int = 2) -> dict[str, Any]:
    """Return a DaemonSet of generation 2."""
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"namespace": "default", "name": "nmi-uninstall", "generation": 2},
        "status": {"numberReady": ready, "desiredNumberScheduled": desired, "observedGeneration": observed},
    }


async def test_it_ends_when_every_node_is_ready(api: Api, server: ScriptedServer) -> None:
    """Each step is told once; nothing is over before the controller has seen the newest generation."""
    server.put(PATH, daemon_set(3, 3, observed=1))
    reports: list[Progress] = []

    def tell(now: Progress) -> None:
        reports.append(now)
        server.put(PATH, daemon_set(1, 3) if len(reports) == 1 else daemon_set(3, 3))

    await wait_until_everywhere(api, KEY, 60, tell)
    assert [(now.ready, now.is_current) for now in reports] == [(3, False), (1, True), (3, True)]


async def test_after_its_time_it_says_how_far_it_came(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """The sentence names the DaemonSet, the nodes, and where to look."""
    server.put(PATH, daemon_set(1, 3))
    with pytest.raises(errors.KubernetesError, match=r"default/nmi-uninstall is ready on 1 of 3 nodes after 60 s; see"):
        await wait_until_everywhere(api, KEY, 60, lambda _: None)
    await eventually(lambda: clock.steady() >= 60, "a minute on the clock")


async def test_one_that_is_not_there_is_an_error(api: Api) -> None:
    """A DaemonSet that does not exist is an error at once, because there is nothing to wait for."""
    with pytest.raises(errors.NotFoundError, match="nmi-uninstall"):
        await wait_until_everywhere(api, KEY, 60, lambda _: None)


def test_a_status_that_is_not_written_yet_is_not_complete() -> None:
    """A DaemonSet without status was just created."""
    assert not progress({"metadata": {}}).complete
