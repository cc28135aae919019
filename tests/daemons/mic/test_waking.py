"""When MIC plans again: at once for the pods that others change, once and a little later after what it did itself."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import make
from podidentity.core.cluster import Pod
from podidentity.core.identities import AssignedState, AzureAssignedIdentity, ObjectKey
from podidentity.kube.clock import SYSTEM_CLOCK
from podidentity.kube.resources import Stored
from podidentity.mic.changes import PODS_REMEMBERED, Changes, Near
from podidentity.mic.cluster import WatchedCluster

ASSIGNED = make.assigned(make.pod())


def play(story: Callable[[WatchedCluster, Changes], Any]) -> None:
    """Run a story with a cluster whose watches the test is, and for which everything was planned."""

    async def run() -> None:
        cluster, changes = WatchedCluster(cast("Any", SimpleNamespace(clock=SYSTEM_CLOCK))), Changes()
        cluster.tell(changes)
        changes.all_done()
        await story(cluster, changes)

    asyncio.run(run())


def taken(changes: Changes) -> frozenset[object]:
    """The pods that changed; from now on, nothing did."""
    assert not changes.everything
    found = changes.near()
    changes.near_done()
    return found.pods


def shown(cluster: WatchedCluster, version: str, assigned: AzureAssignedIdentity = ASSIGNED) -> None:
    """The watch shows a writing of the object."""
    stored = replace(assigned, resource_version=version)
    cluster.assigned.put(Stored(assigned.key, "uid", version, stored))


def test_what_a_watch_shows_of_our_own_writes_waits() -> None:
    """Before the answer and after it, and in the end there is one plan for all of them."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        with cluster.writing(ASSIGNED.key):
            shown(cluster, "7")
            cluster.wrote(ASSIGNED.key, replace(ASSIGNED, resource_version="7"))
        with cluster.writing(ASSIGNED.key):
            cluster.wrote(ASSIGNED.key, replace(ASSIGNED, resource_version="8"))
        shown(cluster, "8")
        assert taken(changes) == frozenset()
        async with asyncio.timeout(60):
            await changes.wait(float("inf"))
        assert changes.everything
        assert not changes.near()

    play(story)


def test_what_others_write_concerns_its_pod_at_once() -> None:
    """Also when it follows a write of ours, and a deletion always."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        cluster.wrote(ASSIGNED.key, replace(ASSIGNED, resource_version="7"))
        shown(cluster, "9")
        assert taken(changes) == {ASSIGNED.pod}
        shown(cluster, "10")
        assert taken(changes) == {ASSIGNED.pod}
        with cluster.writing(ASSIGNED.key):
            cluster.assigned.remove(ASSIGNED.key)
        assert taken(changes) == {ASSIGNED.pod}

    play(story)


def test_of_a_pod_only_what_a_plan_depends_on_counts() -> None:
    """Its address and its being ready are nothing to MIC; its node, its label and its end are."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        pod = make.pod()
        versions = iter(range(1, 100))

        def counts(one: Pod) -> bool:
            cluster.pods.put(Stored(one.key, one.uid, str(next(versions)), one))
            return taken(changes) == {pod.key}

        assert counts(pod)
        assert not counts(replace(pod, ips=("10.0.0.1",), phase="Running"))
        assert counts(replace(pod, node="elsewhere"))
        assert counts(replace(pod, phase="Succeeded"))
        assert counts(replace(pod, uid="another"))
        cluster.pods.remove(pod.key)
        assert taken(changes) == {pod.key}

    play(story)


def test_what_any_pod_may_depend_on_concerns_everything() -> None:
    """A binding, an identity, a node; and more pods than are worth remembering."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        binding, identity, node = make.binding(), make.identity(), make.node()
        cluster.bindings.put(Stored(binding.key, "uid", "1", binding))
        assert changes.everything
        changes.all_done()
        cluster.identities.put(Stored(identity.key, "uid", "1", identity))
        assert changes.everything
        changes.all_done()
        cluster.nodes.put(Stored(ObjectKey("", node.name), "uid", "1", node))
        assert changes.everything
        changes.all_done()
        for number in range(PODS_REMEMBERED + 1):
            changes.pod(ObjectKey("default", f"p{number}"))
        assert changes.everything

    play(story)


def test_a_close_up_shows_what_the_whole_picture_shows() -> None:
    """Of the pods that are named and of those on a target: they, their nodes, and what MIC wrote for them just now."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        del changes
        pods = {name: make.pod(name, node=node) for name, node in (("a", "n1"), ("b", "n2"), ("c", "n3"))}
        for pod in pods.values():
            cluster.pods.put(Stored(pod.key, pod.uid, "1", pod))
            assigned = replace(make.assigned(pod), resource_version="5")
            cluster.assigned.put(Stored(assigned.key, "uid", "5", assigned))
        for name, scale_set in (("n1", "ss"), ("n2", "ss"), ("n3", "other")):
            node = make.node(name, scale_set)
            cluster.nodes.put(Stored(ObjectKey("", name), name, "1", node))
        marked = replace(make.assigned(pods["b"], state=AssignedState.ASSIGNED), resource_version="6")
        cluster.wrote(marked.key, marked)
        cluster.wrote(make.assigned(pods["a"]).key, None)
        near = cluster.close_up(Near(frozenset({pods["c"].key}), frozenset({make.target("ss")})), {}, make.policy())
        whole = cluster.snapshot({}, {})
        assert set(near.nodes) == set(whole.nodes) == {"n1", "n2", "n3"}
        assert sorted(one.key for one in near.pods) == sorted(one.key for one in whole.pods)
        assert {one.key for one in near.assigned} == {one.key for one in whole.assigned}
        assert len(near.assigned) == len(whole.assigned) == len(pods) - 1
        assert near.bindings is whole.bindings
        alone = cluster.close_up(Near(frozenset({pods["b"].key})), {}, make.policy())
        assert (alone.pods, set(alone.nodes), alone.assigned) == ((pods["b"],), {"n2"}, (marked,))
        gone = cluster.close_up(Near(frozenset({ObjectKey("default", "gone")})), {}, make.policy())
        assert (gone.pods, gone.nodes, gone.assigned) == ((), {}, ())

    play(story)
