"""When MIC plans again: at once for pods that others change, and once, a little later, after its own writes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

import make
from podidentity.core.model.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.core.model.snapshot import Node, Pod
from podidentity.kube.resources import StoredObject
from podidentity.mic import sync
from podidentity.mic.adapters.cluster import PODS_AT_ONCE, WatchedCluster
from podidentity.mic.changes import MAX_CHANGED_PODS, Changes
from podidentity.timing import SYSTEM_CLOCK

IDENTITY = make.assigned(make.pod())


async def play(story: Callable[[WatchedCluster, Changes], Any]) -> None:
    """Run a story with a cluster whose watches the test simulates, after a full plan."""
    cluster, changes = WatchedCluster(cast("Any", SimpleNamespace(clock=SYSTEM_CLOCK))), Changes()
    cluster.report_to(changes)
    changes.clear()
    await story(cluster, changes)


def take_changed_pods(changes: Changes) -> frozenset[object]:
    """Return the changed pods and forget them."""
    assert not changes.is_full_plan_due
    pods = changes.changed_pods.pods
    changes.clear_changed_pods()
    return pods


def show_write(cluster: WatchedCluster, version: str, assigned_identity: AzureAssignedIdentity = IDENTITY) -> None:
    """Let the watch show a version of an assigned identity."""
    updated = replace(assigned_identity, resource_version=version)
    cluster.assigned_identities.upsert(StoredObject(assigned_identity.key, "uid", version, updated))


async def test_what_a_watch_shows_of_our_own_writes_waits() -> None:
    """MIC's own writes only schedule a full plan, whether the watch shows them before the response or after it."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        with cluster.writing(IDENTITY.key):
            show_write(cluster, "7")
            cluster.note_write(IDENTITY.key, replace(IDENTITY, resource_version="7"))
        with cluster.writing(IDENTITY.key):
            cluster.note_write(IDENTITY.key, replace(IDENTITY, resource_version="8"))
        show_write(cluster, "8")
        assert take_changed_pods(changes) == frozenset()
        async with asyncio.timeout(60):
            await changes.wait(float("inf"))
        assert changes.is_full_plan_due
        assert not changes.changed_pods

    await play(story)


async def test_what_others_write_concerns_its_pod_at_once() -> None:
    """A write by others, or any deletion, marks its pod as changed, also after MIC's own write."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        cluster.note_write(IDENTITY.key, replace(IDENTITY, resource_version="7"))
        show_write(cluster, "9")
        assert take_changed_pods(changes) == {IDENTITY.pod}
        show_write(cluster, "10")
        assert take_changed_pods(changes) == {IDENTITY.pod}
        with cluster.writing(IDENTITY.key):
            cluster.assigned_identities.remove(IDENTITY.key)
        assert take_changed_pods(changes) == {IDENTITY.pod}

    await play(story)


async def test_of_a_pod_only_what_a_plan_depends_on_counts() -> None:
    """A pod is planned again when its node, phase or UID changes or it is deleted, not for its address."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        pod = make.pod()
        versions = iter(range(1, 100))

        def counts(candidate: Pod) -> bool:
            cluster.pods.upsert(StoredObject(candidate.key, candidate.uid, str(next(versions)), candidate))
            return take_changed_pods(changes) == {pod.key}

        assert counts(pod)
        assert not counts(replace(pod, ips=("10.0.0.1",), phase="Running"))
        assert counts(replace(pod, node="elsewhere"))
        assert counts(replace(pod, phase="Succeeded"))
        assert counts(replace(pod, uid="another"))
        cluster.pods.remove(pod.key)
        assert take_changed_pods(changes) == {pod.key}

    await play(story)


async def test_what_any_pod_may_depend_on_concerns_everything() -> None:
    """A changed binding, identity or node, or too many changed pods, make a full plan due."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        binding, identity, node = make.binding(), make.identity(), make.node()
        cluster.bindings.upsert(StoredObject(binding.key, "uid", "1", binding))
        assert changes.is_full_plan_due
        changes.clear()
        cluster.identities.upsert(StoredObject(identity.key, "uid", "1", identity))
        assert changes.is_full_plan_due
        changes.clear()
        cluster.nodes.upsert(StoredObject(ObjectKey("", node.name), "uid", "1", node))
        assert changes.is_full_plan_due
        changes.clear()
        for number in range(MAX_CHANGED_PODS + 1):
            changes.note_pod(ObjectKey("default", f"p{number}"))
        assert changes.is_full_plan_due

    await play(story)


async def test_a_partial_snapshot_shows_what_the_full_one_shows() -> None:
    """A partial snapshot has the same pods, nodes and assigned identities, unseen writes included."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        del changes
        pods = {name: make.pod(name, node=node) for name, node in (("a", "n1"), ("b", "n2"), ("c", "n3"))}
        for pod in pods.values():
            cluster.pods.upsert(StoredObject(pod.key, pod.uid, "1", pod))
            assigned_identity = replace(make.assigned(pod), resource_version="5")
            cluster.assigned_identities.upsert(StoredObject(assigned_identity.key, "uid", "5", assigned_identity))
        for name, scale_set in (("n1", "ss"), ("n2", "ss"), ("n3", "other")):
            node = make.node(name, scale_set)
            cluster.nodes.upsert(StoredObject(ObjectKey("", name), name, "1", node))
        marked = replace(make.assigned(pods["b"], state=AssignedState.ASSIGNED), resource_version="6")
        cluster.note_write(marked.key, marked)
        cluster.note_write(make.assigned(pods["a"]).key, None)
        pods_on = cluster.pods_on(frozenset({make.target("ss")}), make.policy())
        partial = cluster.partial_snapshot({pods["c"].key, *pods_on}, {})
        full = cluster.snapshot({}, {})
        assert set(partial.nodes) == set(full.nodes) == {"n1", "n2", "n3"}
        assert sorted(pod.key for pod in partial.pods) == sorted(pod.key for pod in full.pods)
        assert {value.key for value in partial.assigned_identities} == {value.key for value in full.assigned_identities}
        assert len(partial.assigned_identities) == len(full.assigned_identities) == len(pods) - 1
        assert partial.bindings is full.bindings
        alone = cluster.partial_snapshot({pods["b"].key}, {})
        assert (alone.pods, set(alone.nodes), alone.assigned_identities) == ((pods["b"],), {"n2"}, (marked,))
        missing = cluster.partial_snapshot({ObjectKey("default", "gone")}, {})
        assert (missing.pods, missing.nodes, missing.assigned_identities) == ((), {}, ())

    await play(story)


def put(
    cluster: WatchedCluster, *values: Pod | Node | AzureIdentity | AzureIdentityBinding, version: str = "1"
) -> None:
    """Let the watches show these objects."""
    for value in values:
        stores: dict[type, Any] = {
            Pod: cluster.pods,
            Node: cluster.nodes,
            AzureIdentity: cluster.identities,
            AzureIdentityBinding: cluster.bindings,
        }
        key = ObjectKey("", value.name) if isinstance(value, Node) else value.key
        stores[type(value)].upsert(StoredObject(key, "uid", version, value))


async def test_a_changed_rule_is_planned_for_the_pods_that_it_concerns() -> None:
    """Pods of a changed binding, identity or node are planned for at once; they do not wait for the next full plan."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        web, other = make.pod("web"), make.pod("other", selector="writer", node="n2")
        put(cluster, web, other, make.node("n1"), make.node("n2"), make.identity(), make.binding())
        late = make.binding("late", selector="writer")
        values: list[Node | AzureIdentity | AzureIdentityBinding] = [
            late,
            replace(late, azure_identity="next"),
            make.identity(client_id="changed"),
            replace(make.node("n2"), provider_id=""),
        ]
        for number, (value, concerned) in enumerate(zip(values, (other, other, web, other), strict=True)):
            changes.clear()
            put(cluster, value, version=f"{number + 2}")
            assert changes.is_full_plan_due
            assert changes.changed_pods.pods == {concerned.key}
        changes.clear()
        cluster.bindings.remove(make.binding().key)
        assert changes.changed_pods.pods == {web.key}

    await play(story)


async def test_a_rule_that_concerns_many_is_left_to_the_full_plan() -> None:
    """If a change concerns too many pods, a full plan is due and no partial one."""

    async def story(cluster: WatchedCluster, changes: Changes) -> None:
        put(cluster, *(make.pod(f"p{number}") for number in range(PODS_AT_ONCE + 1)))
        changes.clear()
        put(cluster, make.binding())
        assert changes.is_full_plan_due
        assert not changes.changed_pods

    await play(story)


async def test_a_binding_right_after_a_full_plan_waits_for_no_rest(
    run_in_world: Callable[..., Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though MIC may rest an hour after a full plan, a new binding's pod is Assigned before the rest ends."""
    monkeypatch.setattr(sync, "REST_SECONDS_PER_POD", 3600.0)
    monkeypatch.setattr(sync, "LONGEST_REST_SECONDS", 3600.0)

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod(), make.pod("other", selector="writer"))
        await world.until(lambda: world.states().get("web-default-reader") == "Assigned", "the first pod")
        world.add(make.identity("writer"), make.binding("w", azure_identity="writer", selector="writer"))
        await world.until(lambda: world.states().get("other-default-writer") == "Assigned", "the other pod")

    await run_in_world(story)
