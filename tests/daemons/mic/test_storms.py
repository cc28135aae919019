"""Many things at once, and things that go wrong on the way: in the end everything is as it should be."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import make
from podidentity.core.identities import POD_LABEL, ObjectKey

Run = Callable[..., None]
ASSIGNED = "azureassignedidentities.aadpodidentity.k8s.io"
NAMES = [f"id{number}" for number in range(5)]


def assigned(world: Any) -> set[tuple[str, str, str]]:
    """Pod, namespace and identity of each assigned identity that is Assigned."""
    return {
        (spec["pod"], spec["podNamespace"], spec["azureIdentityRef"]["metadata"]["name"])
        for one in world.kubernetes.storage.list(ASSIGNED)
        if one["status"]["status"] == "Assigned"
        for spec in [one["spec"]]
    }


def five_identities(world: Any) -> None:
    """Five identities with a binding each, two nodes of one scale set and a VM."""
    world.add(make.node("n1"), make.node("n2"), make.node("n3", ""))
    world.add(*(make.identity(name) for name in NAMES))
    world.add(*(make.binding(name, azure_identity=name, selector=name) for name in NAMES))


def test_forty_pods_come_at_once_and_some_go(run_in_world: Run) -> None:
    """40 pods with 5 identities, 5 removed at random while the others are being assigned, pods with another label."""

    async def story(world: Any) -> None:
        five_identities(world)
        chance = random.Random(7)  # noqa: S311  # a shuffle that fails the same way twice
        pods = [make.pod(f"p{n}", node=f"n{n % 3 + 1}", selector=NAMES[n % 5]) for n in range(40)]
        world.add(*pods)
        gone = chance.sample(pods, 5)
        for pod in gone:
            await asyncio.sleep(0)
            world.remove_pod(pod)
        left = [pod for pod in pods if pod not in gone]
        relabelled = chance.sample(left, 5)
        for pod in relabelled:
            relabel(world, pod.key, "id0")
        wanted = {(pod.key.name, "default", "id0" if pod in relabelled else pod.selector) for pod in left}
        await world.until(lambda: assigned(world) == wanted, "35 pods with their identities")
        used = {
            node: {name for pod, _, name in wanted if f"n{int(pod[1:]) % 3 + 1}" in nodes}
            for node, nodes in {"ss": {"n1", "n2"}, "vm": {"n3"}}.items()
        }
        await world.until(lambda: carried(world, make.target()) == used["ss"], "the scale set carries what is used")
        for pod in left:
            world.remove_pod(pod)
        await world.until(lambda: not world.states() and not any(world.machines.carries.values()), "nothing is left")

    run_in_world(story)


def relabel(world: Any, key: ObjectKey, selector: str) -> None:
    """Give a pod another label."""

    def edit(obj: dict[str, Any]) -> None:
        obj["metadata"]["labels"][POD_LABEL] = selector

    world.kubernetes.storage.change("pods", *key, edit)


def carried(world: Any, target: Any) -> set[str]:
    """Names of the identities on a target."""
    return {one.name for one in world.machines.carries.get(target, set())}


def test_the_same_names_in_two_namespaces_do_not_mix(run_in_world: Run) -> None:
    """Pods, bindings and namespaced identities of one name: each pod gets its own namespace's."""

    async def story(world: Any) -> None:
        world.kubernetes.storage.create(
            "namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team-b"}}
        )
        world.add(make.node())
        for namespace in ("default", "team-b"):
            own = make.resource_id(f"reader-of-{namespace}")
            world.add(make.identity("reader", namespace, resource_id=own, namespaced=True))
            world.add(make.binding(namespace=namespace), make.pod(namespace=namespace))
        both = {("web", "default", "reader"), ("web", "team-b", "reader")}
        await world.until(lambda: assigned(world) == both, "both")
        stored = world.kubernetes.storage.list(ASSIGNED)
        resources = {one["metadata"]["namespace"]: one["spec"]["azureIdentityRef"]["spec"] for one in stored}
        assert {namespace: spec["resourceID"] for namespace, spec in resources.items()} == {
            namespace: make.resource_id(f"reader-of-{namespace}") for namespace in ("default", "team-b")
        }

    run_in_world(story)


def test_what_others_write_in_between_is_not_overwritten(run_in_world: Run) -> None:
    """Conflicts all the time: each is planned again from what is there, and what others added stays."""

    async def story(world: Any) -> None:
        world.machines.slow[make.target()] = asyncio.Event()
        five_identities(world)
        world.add(*(make.pod(f"p{n}", selector=NAMES[n % 5]) for n in range(10)))
        await world.until(lambda: len(world.states()) == 10, "all created")

        def note(obj: dict[str, Any]) -> None:
            obj["metadata"].setdefault("annotations", {})["somebody"] = "was here"

        for name in world.states():
            world.kubernetes.storage.change(ASSIGNED, "default", name, note)
        world.machines.slow[make.target()].set()
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "all Assigned")
        annotations = [one["metadata"]["annotations"] for one in world.kubernetes.storage.list(ASSIGNED)]
        assert annotations == [{"somebody": "was here"}] * 10

    run_in_world(story)


def test_lost_watches_cost_time_and_nothing_else(run_in_world: Run) -> None:
    """All watches are cut in the middle of a storm, and what happened meanwhile is seen when they are back."""

    async def story(world: Any) -> None:
        five_identities(world)
        pods = [make.pod(f"p{n}", selector=NAMES[n % 5]) for n in range(20)]
        world.add(*pods[:10])
        await world.until(lambda: len(assigned(world)) == 10, "the first ten")
        world.cut_watches()
        for pod in pods[:5]:
            world.remove_pod(pod)
        world.add(*pods[10:])
        wanted = {(pod.key.name, "default", pod.selector) for pod in pods[5:]}
        await world.until(lambda: assigned(world) == wanted, "what is there now")

    run_in_world(story)


def test_what_was_unassigned_by_hand_does_not_stop_a_deletion(run_in_world: Run) -> None:
    """Somebody took the identity off the scale set; the pod goes, and so does its object."""

    async def story(world: Any) -> None:
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")
        world.machines.carries[make.target()].clear()
        world.remove_pod(pod)
        await world.until(lambda: not world.states(), "removal")

    run_in_world(story)


def test_a_pod_that_is_made_again_on_another_node_is_followed(run_in_world: Run) -> None:
    """A StatefulSet's pod keeps its name: its object names the new node."""

    async def story(world: Any) -> None:
        world.add(make.node("n1"), make.node("n2"), make.identity(), make.binding(), make.pod(node="n1"))
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")
        world.remove_pod(make.pod())
        world.add(replace(make.pod(node="n2"), uid="another"))

        def nodes() -> list[str]:
            stored = world.kubernetes.storage.list(ASSIGNED)
            return [one["spec"]["nodename"] for one in stored if one["status"]["status"] == "Assigned"]

        await world.until(lambda: nodes() == ["n2"], "the new node")

    run_in_world(story)
