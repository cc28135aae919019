"""Many changes at once, and failures on the way: in the end each pod has exactly its identities."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import make
from podidentity.core.model.identities import POD_LABEL, ObjectKey

Run = Callable[..., Awaitable[None]]
RESOURCE = "azureassignedidentities.aadpodidentity.k8s.io"
NAMES = [f"id{number}" for number in range(5)]


def assignments(world: Any) -> set[tuple[str, str, str]]:
    """Return pod, namespace and identity of each assigned identity that is Assigned."""
    return {
        (spec["pod"], spec["podNamespace"], spec["azureIdentityRef"]["metadata"]["name"])
        for obj in world.kubernetes.storage.list(RESOURCE)
        if obj["status"]["status"] == "Assigned"
        for spec in [obj["spec"]]
    }


def five_identities(world: Any) -> None:
    """Create five identities with a binding each, two nodes of one scale set and a VM."""
    world.add(make.node("n1"), make.node("n2"), make.node("n3", ""))
    world.add(*(make.identity(name) for name in NAMES))
    world.add(*(make.binding(name, azure_identity=name, selector=name) for name in NAMES))


async def test_forty_pods_come_at_once_and_some_go(run_in_world: Run) -> None:
    """Of 40 pods with 5 identities some are removed or relabelled meanwhile; the rest have exactly their identities."""

    async def story(world: Any) -> None:
        five_identities(world)
        chance = random.Random(7)  # noqa: S311  # a shuffle that fails the same way twice
        pods = [make.pod(f"p{n}", node=f"n{n % 3 + 1}", selector=NAMES[n % 5]) for n in range(40)]
        world.add(*pods)
        removed_pods = chance.sample(pods, 5)
        for pod in removed_pods:
            await asyncio.sleep(0)
            world.remove_pod(pod)
        remaining = [pod for pod in pods if pod not in removed_pods]
        relabelled = chance.sample(remaining, 5)
        for pod in relabelled:
            relabel(world, pod.key, "id0")
        result = {(pod.key.name, "default", "id0" if pod in relabelled else pod.selector) for pod in remaining}
        await world.until(lambda: assignments(world) == result, "35 pods with their identities")
        in_use = {
            node: {name for pod, _, name in result if f"n{int(pod[1:]) % 3 + 1}" in nodes}
            for node, nodes in {"ss": {"n1", "n2"}, "vm": {"n3"}}.items()
        }
        await world.until(lambda: names_on(world, make.target()) == in_use["ss"], "the scale set carries what is used")
        for pod in remaining:
            world.remove_pod(pod)
        await world.until(lambda: not world.states() and not any(world.machines.carries.values()), "nothing is left")

    await run_in_world(story)


def relabel(world: Any, key: ObjectKey, selector: str) -> None:
    """Give a pod another label."""

    def edit(obj: dict[str, Any]) -> None:
        obj["metadata"]["labels"][POD_LABEL] = selector

    world.kubernetes.storage.change("pods", *key, edit)


def names_on(world: Any, target: Any) -> set[str]:
    """Return the names of the identities on a target."""
    return {identity.name for identity in world.machines.carries.get(target, set())}


async def test_the_same_names_in_two_namespaces_do_not_mix(run_in_world: Run) -> None:
    """With equal names of pods, bindings and identities, each pod gets the identity of its own namespace."""

    async def story(world: Any) -> None:
        world.kubernetes.storage.create(
            "namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-b"}}
        )
        world.add(make.node())
        for namespace in ("default", "team-b"):
            resource_id = make.resource_id(f"reader-of-{namespace}")
            world.add(make.identity("reader", namespace, resource_id=resource_id, namespaced=True))
            world.add(make.binding(namespace=namespace), make.pod(namespace=namespace))
        both = {("web", "default", "reader"), ("web", "team-b", "reader")}
        await world.until(lambda: assignments(world) == both, "both")
        objects = world.kubernetes.storage.list(RESOURCE)
        resources = {obj["metadata"]["namespace"]: obj["spec"]["azureIdentityRef"]["spec"] for obj in objects}
        assert {namespace: spec["resourceID"] for namespace, spec in resources.items()} == {
            namespace: make.resource_id(f"reader-of-{namespace}") for namespace in ("default", "team-b")
        }

    await run_in_world(story)


async def test_what_others_write_in_between_is_not_overwritten(run_in_world: Run) -> None:
    """After a conflict MIC plans again from the stored object, and keeps what others added."""

    async def story(world: Any) -> None:
        world.machines.slow[make.target()] = asyncio.Event()
        five_identities(world)
        world.add(*(make.pod(f"p{n}", selector=NAMES[n % 5]) for n in range(10)))
        await world.until(lambda: len(world.states()) == 10, "all created")

        def note(obj: dict[str, Any]) -> None:
            obj["metadata"].setdefault("annotations", {})["somebody"] = "was here"

        for name in world.states():
            world.kubernetes.storage.change(RESOURCE, "default", name, note)
        world.machines.slow[make.target()].set()
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "all Assigned")
        annotations = [obj["metadata"]["annotations"] for obj in world.kubernetes.storage.list(RESOURCE)]
        assert annotations == [{"somebody": "was here"}] * 10

    await run_in_world(story)


async def test_lost_watches_cost_time_and_nothing_else(run_in_world: Run) -> None:
    """Changes during an interruption of all watches are seen afterwards."""

    async def story(world: Any) -> None:
        five_identities(world)
        pods = [make.pod(f"p{n}", selector=NAMES[n % 5]) for n in range(20)]
        world.add(*pods[:10])
        await world.until(lambda: len(assignments(world)) == 10, "the first ten")
        world.cut_watches()
        for pod in pods[:5]:
            world.remove_pod(pod)
        world.add(*pods[10:])
        result = {(pod.key.name, "default", pod.selector) for pod in pods[5:]}
        await world.until(lambda: assignments(world) == result, "what is there now")

    await run_in_world(story)


async def test_what_was_unassigned_by_hand_does_not_stop_a_deletion(run_in_world: Run) -> None:
    """A pod's object is deleted although its identity was removed from the scale set by hand."""

    async def story(world: Any) -> None:
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")
        world.machines.carries[make.target()].clear()
        world.remove_pod(pod)
        await world.until(lambda: not world.states(), "removal")

    await run_in_world(story)


async def test_a_pod_that_is_made_again_on_another_node_is_followed(run_in_world: Run) -> None:
    """When a pod of the same name appears on another node, its object names the new node."""

    async def story(world: Any) -> None:
        world.add(make.node("n1"), make.node("n2"), make.identity(), make.binding(), make.pod(node="n1"))
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")
        world.remove_pod(make.pod())
        world.add(replace(make.pod(node="n2"), uid="another"))

        def nodes() -> list[str]:
            objects = world.kubernetes.storage.list(RESOURCE)
            return [obj["spec"]["nodename"] for obj in objects if obj["status"]["status"] == "Assigned"]

        await world.until(lambda: nodes() == ["n2"], "the new node")

    await run_in_world(story)
