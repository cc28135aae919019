"""When MIC plans again: at once for what others do, once and a little later for what it has just done itself."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import make
from podidentity.core.cluster import Pod
from podidentity.core.identities import AzureAssignedIdentity
from podidentity.kube.clock import SYSTEM_CLOCK
from podidentity.kube.resources import Stored
from podidentity.mic.cluster import WatchedCluster

ASSIGNED = make.assigned(make.pod())


def play(story: Callable[[WatchedCluster, list[int]], Any]) -> None:
    """Run a story with a cluster whose watches the test is; each wake adds to the list."""

    async def run() -> None:
        cluster, wakes = WatchedCluster(cast("Any", SimpleNamespace(clock=SYSTEM_CLOCK))), list[int]()
        cluster.on_change(lambda: wakes.append(1))
        await story(cluster, wakes)

    asyncio.run(run())


def shown(cluster: WatchedCluster, version: str, assigned: AzureAssignedIdentity = ASSIGNED) -> None:
    """The watch shows a writing of the object."""
    stored = replace(assigned, resource_version=version)
    cluster.assigned.put(Stored(assigned.key, "uid", version, stored))


def test_what_a_watch_shows_of_our_own_writes_waits() -> None:
    """Before the answer and after it, and in the end there is one plan for all of them."""

    async def story(cluster: WatchedCluster, wakes: list[int]) -> None:
        with cluster.writing(ASSIGNED.key):
            shown(cluster, "7")
            cluster.wrote(ASSIGNED.key, replace(ASSIGNED, resource_version="7"))
        with cluster.writing(ASSIGNED.key):
            cluster.wrote(ASSIGNED.key, replace(ASSIGNED, resource_version="8"))
        shown(cluster, "8")
        assert wakes == []
        async with asyncio.timeout(60):
            while not wakes:  # noqa: ASYNC110  # a timer
                await asyncio.sleep(0.01)
        assert wakes == [1]

    play(story)


def test_what_others_write_wakes_at_once() -> None:
    """Also when it follows a write of ours, and a deletion always: its name is free again."""

    async def story(cluster: WatchedCluster, wakes: list[int]) -> None:
        cluster.wrote(ASSIGNED.key, replace(ASSIGNED, resource_version="7"))
        shown(cluster, "9")
        assert len(wakes) == 1
        shown(cluster, "10")
        assert len(wakes) == 2
        with cluster.writing(ASSIGNED.key):
            cluster.assigned.remove(ASSIGNED.key)
        assert len(wakes) == 3

    play(story)


def test_of_a_pod_only_what_a_plan_depends_on_wakes() -> None:
    """Its address and its being ready are nothing to MIC; its node, its label and its end are."""

    async def story(cluster: WatchedCluster, wakes: list[int]) -> None:
        pod = make.pod()
        versions = iter(range(1, 100))

        def put(one: Pod) -> int:
            cluster.pods.put(Stored(one.key, one.uid, str(next(versions)), one))
            return len(wakes)

        assert put(pod) == 1
        assert put(replace(pod, ips=("10.0.0.1",), phase="Running")) == 1
        assert put(replace(pod, node="elsewhere")) == 2
        assert put(replace(pod, phase="Succeeded")) == 3
        assert put(replace(pod, uid="another")) == 5  # one is gone, one has come

    play(story)
