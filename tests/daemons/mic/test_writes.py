"""What MIC writes to Kubernetes and how much at a time, and how long it keeps identities."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import make
from podidentity.core.model import crd
from podidentity.core.model.allow_list import ANNOTATION
from podidentity.kube.resources import ASSIGNED_IDENTITIES
from podidentity.mic.settings import Settings

Run = Callable[..., Awaitable[None]]


async def test_an_identity_that_is_there_costs_one_write(run_in_world: Run) -> None:
    """The second pod of a scale set is created as Assigned by one POST, and Azure has nothing to do."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod("first"))
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "the first pod")
        writes_before, patches = len(world.writes()), len(world.machines.patches)
        world.add(make.pod("second"))
        await world.until(lambda: world.states().get("second-default-reader") == "Assigned", "the second pod")
        assert world.writes()[writes_before:] == ["POST"]
        assert len(world.machines.patches) == patches

    await run_in_world(story)


async def test_independent_writes_are_under_way_together(run_in_world: Run) -> None:
    """Several writes are under way at a time, and never more than `--createDeleteBatch`."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), *(make.pod(f"p{number}") for number in range(60)))
        await world.until(lambda: list(world.states().values()) == ["Assigned"] * 60, "all of them")
        assert 1 < world.most_under_way <= 7

    await run_in_world(story, Settings(batch=7))


async def test_one_failing_write_keeps_no_other_from_being_written(run_in_world: Run) -> None:
    """A failed write is reported on its binding and retried; the others succeed."""

    async def story(world: Any) -> None:
        world.refuse_creation_of = "p3-default-reader"
        world.add(make.node(), make.identity(), make.binding(), *(make.pod(f"p{number}") for number in range(6)))
        await world.until(lambda: list(world.states().values()) == ["Assigned"] * 5, "the others")
        await world.until(lambda: ("Warning", "binding apply error") in world.events(), "the event")
        world.refuse_creation_of = ""
        world.add(make.pod("p6"))
        await world.until(lambda: list(world.states().values()) == ["Assigned"] * 7, "all of them")

    await run_in_world(story)


async def test_an_object_that_nobody_can_read_keeps_no_pod_from_its_identity(run_in_world: Run) -> None:
    """A damaged object under the pod's name stays as it is, one event reports it, and the pod gets another."""

    async def story(world: Any) -> None:
        odd = crd.render_assigned(make.assigned())
        odd["spec"]["azureIdentityRef"]["spec"]["clientID"] = 7
        damaged = world.kubernetes.storage.create(str(ASSIGNED_IDENTITIES), odd)
        world.add(make.node(), make.identity(), make.binding(), make.pod())

        def names() -> list[str]:
            return [name for name in world.states() if name.startswith("web-default-reader-")]

        await world.until(lambda: [world.states()[name] for name in names()] == ["Assigned"], "the pod's own")
        await world.until(lambda: ("Warning", "unreadable") in world.events(), "the event")
        world.add(make.pod("second"))
        await world.until(lambda: world.states().get("second-default-reader") == "Assigned", "another plan")
        assert world.events().count(("Warning", "unreadable")) == 1
        assert world.kubernetes.storage.get(str(ASSIGNED_IDENTITIES), "default", "web-default-reader") == damaged

    await run_in_world(story)


async def test_a_namespace_names_only_what_it_is_allowed(run_in_world: Run) -> None:
    """A binding has an effect only while its namespace's annotation allows it; otherwise an event says so."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: ("Warning", "binding apply error") in world.events(), "the event")
        assert world.states() == {}
        assert world.machines.patches == []
        world.annotate_namespace("default", {ANNOTATION: make.resource_id("read*")})
        await world.until(lambda: world.states() == {"web-default-reader": "Assigned"}, "Assigned")
        world.annotate_namespace("default", {ANNOTATION: make.resource_id("write*")})
        await world.until(lambda: not world.states() and not world.machines.carries[make.target()], "removal")

    await run_in_world(story, allow_list=True)


async def test_a_delay_keeps_the_identity_and_not_the_access(run_in_world: Run) -> None:
    """With a delay, the object is deleted with its pod, the identity stays, and the next pod needs no PATCH."""

    async def story(world: Any) -> None:
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")
        world.remove_pod(pod)
        await world.until(lambda: not world.states(), "removal of the object")
        world.add(make.pod("next"))
        await world.until(lambda: world.states() == {"next-default-reader": "Assigned"}, "the next pod")
        assert len(world.machines.patches) == 1

    await run_in_world(story, Settings(unassign_delay_seconds=3600))


async def test_the_delay_ends(run_in_world: Run) -> None:
    """The identity is removed after the delay without a further change in the cluster."""

    async def story(world: Any) -> None:
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")
        world.remove_pod(pod)
        await world.until(lambda: not world.machines.carries[make.target()], "removal")

    await run_in_world(story, Settings(unassign_delay_seconds=0.2))


async def test_with_assign_on_binding_the_identity_is_there_first(run_in_world: Run) -> None:
    """The identity is assigned to every scale set as soon as its binding exists, and removed with the binding."""

    async def story(world: Any) -> None:
        world.add(make.node("n1", "ss1"), make.node("n2", "ss2"), make.identity(), make.binding())
        both = {make.target("ss1"), make.target("ss2")}
        await world.until(
            lambda: {target for target, identities in world.machines.carries.items() if identities} == both, "both"
        )
        world.add(make.pod())
        await world.until(lambda: world.states() == {"web-default-reader": "Assigned"}, "Assigned")
        assert world.writes() == ["POST"]
        world.kubernetes.storage.delete("azureidentitybindings.aadpodidentity.k8s.io", *make.binding().key)
        await world.until(lambda: not any(world.machines.carries.values()), "removal")

    await run_in_world(story, assign_on_binding=True)


async def test_a_name_that_is_leaving_is_given_again(run_in_world: Run) -> None:
    """An object deleted by hand is created again under the same name."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")
        location = "azureassignedidentities.aadpodidentity.k8s.io", "default", "web-default-reader"
        uid = world.kubernetes.storage.get(*location)["metadata"]["uid"]
        world.kubernetes.storage.delete(*location)
        is_new = lambda: world.states() and world.kubernetes.storage.get(*location)["metadata"]["uid"] != uid  # noqa: E731
        await world.until(is_new, "a new object")
        await asyncio.sleep(0)
        assert list(world.states()) == ["web-default-reader"]

    await run_in_world(story)
