"""What MIC reports to NMI of machines: one object for each, written when it changes and not with each pod."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import make
from podidentity.core.model import machine_state
from podidentity.core.model.arm import Target
from podidentity.core.model.machine_state import LABEL, MachineState
from podidentity.mic.adapters.machine_states import remove_all
from podidentity.mic.settings import Settings

Run = Callable[..., Awaitable[None]]


def told(world: Any, target: Target | None = None) -> MachineState | None:
    """Return what MIC reports of a target; None when there is no object."""
    name = machine_state.object_name(target or make.target())
    found = [
        obj for obj in world.kubernetes.storage.list("leases.coordination.k8s.io") if obj["metadata"]["name"] == name
    ]
    return machine_state.parse_annotations(found[0]["metadata"]["annotations"]) if found else None


def identities(world: Any, target: Target | None = None) -> set[str] | None:
    """Return the names of the identities that MIC reports of a target."""
    state = told(world, target)
    return None if state is None else {identity.name for identity in state.client_ids}


async def until_assigned(world: Any) -> None:
    """Wait until MIC has done its work: a test that ends while it opens a connection ends late."""
    await world.until(lambda: set(world.states().values()) == {"Assigned"}, "all pods")


async def test_it_is_written_with_the_identity_and_not_with_each_pod(run_in_world: Run) -> None:
    """The first pod brings the identity and a machine's object; a hundred more cause no write to the object."""

    async def story(world: Any) -> None:
        world.machines.carries[make.target()] = {make.identity_id("by-hand")}
        world.add(make.node(), make.identity(), make.binding(), make.pod("first"))
        await world.until(lambda: identities(world) == {"by-hand", "reader"}, "both identities")
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "the first pod")
        writes = world.writes("leases/podidentity-")
        world.add(*(make.pod(f"p{number}") for number in range(100)))
        await world.until(lambda: list(world.states().values()) == ["Assigned"] * 101, "all pods")
        assert world.writes("leases/podidentity-") == writes

    await run_in_world(story)


async def test_it_says_by_which_rules_mic_assigns(run_in_world: Run) -> None:
    """The object says that MIC keeps namespaces apart, so that an NMI without the flag does so, too."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: (state := told(world)) is not None and state.force_namespaced, "the object")
        await until_assigned(world)

    await run_in_world(story, force_namespaced=True)


async def test_it_goes_when_nobody_follows_the_machine_any_more(run_in_world: Run) -> None:
    """The object is deleted with the machine's last pod: nobody would update it any more, and NMI would rely on it."""

    async def story(world: Any) -> None:
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: identities(world) == {"reader"}, "the object")
        world.remove_pod(pod)
        await world.until(lambda: identities(world) is None and not world.states(), "the end of the object")

    await run_in_world(story)


async def test_what_somebody_else_wrote_is_written_anew(run_in_world: Run) -> None:
    """When somebody else has edited the object, MIC reads it again and writes the right content."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: identities(world) == {"reader"}, "the object")

        def edit(obj: dict[str, Any]) -> None:
            obj["metadata"]["annotations"] = machine_state.render_annotations(MachineState(), "by hand")

        name = machine_state.object_name(make.target())
        world.kubernetes.storage.change("leases.coordination.k8s.io", "default", name, edit)
        world.add(make.identity("writer"), make.binding("w", azure_identity="writer", selector="writer"))
        world.add(make.pod("second", selector="writer"))
        await world.until(lambda: world.states().get("second-default-writer") == "Assigned", "the second pod")
        await world.until(lambda: identities(world) == {"reader", "writer"}, "the object again")

    await run_in_world(story)


async def test_a_node_without_provider_id_goes_by_its_own_name(run_in_world: Run) -> None:
    """Such a node's object is named for the node: its NMI does not know the Azure ID, which azure.json completes."""

    async def story(world: Any) -> None:
        world.add(make.node("n1", ""), make.identity(), make.binding(), make.pod())
        await world.until(lambda: identities(world, machine_state.published_target("n1", "")) == {"reader"}, "it")
        await until_assigned(world)

    await run_in_world(story)


@pytest.mark.parametrize("status", [403, 500])
async def test_pods_do_not_wait_for_it(run_in_world: Run, status: int) -> None:
    """A role that forbids the object, or an API server that fails, costs no pod its assigned identity."""

    async def story(world: Any) -> None:
        world.refuse, world.refusal_status = ("GET", "/leases"), status
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "the pod")
        assert told(world) is None
        if status == 500:
            world.refuse = None
            await world.until(lambda: identities(world) == {"reader"}, "the object in the end")

    await run_in_world(story)


async def test_uninstalled_it_is_gone(run_in_world: Run) -> None:
    """Uninstalling removes MIC's Leases for machines, and no Lease without their label."""

    async def story(world: Any) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: identities(world) == {"reader"}, "the object")
        lock = {"metadata": {"namespace": "default", "name": "lock"}}
        world.kubernetes.storage.create("leases.coordination.k8s.io", lock)
        await until_assigned(world)
        await remove_all(world.api, "default")
        remaining = world.kubernetes.storage.list("leases.coordination.k8s.io")
        assert [obj["metadata"]["name"] for obj in remaining if LABEL in obj["metadata"].get("labels", {})] == []
        assert "lock" in {obj["metadata"]["name"] for obj in remaining}

    await run_in_world(story, Settings())


async def test_assigned_identities_may_be_off(run_in_world: Run) -> None:
    """No such object is written and old ones are deleted; identities are assigned and reported to NMI all the same."""

    async def story(world: Any) -> None:
        first = make.pod("first")
        world.add(make.node(), make.identity(), make.binding(), first)
        await world.until(lambda: identities(world) == {"reader"}, "the identity")
        await world.until(lambda: not world.states(), "the end of what was written before")
        assert world.writes()
        assert set(world.writes()) <= {"PATCH", "DELETE"}
        world.add(make.identity("writer"), make.binding("w", azure_identity="writer", selector="writer"))
        world.add(make.pod("second", selector="writer"))
        await world.until(lambda: identities(world) == {"reader", "writer"}, "the second identity")
        world.remove_pod(first)
        await world.until(lambda: identities(world) == {"writer"}, "the end of the first")
        await world.until(lambda: world.under_way == 0, "MIC is done")
        assert not world.states()

    await run_in_world(story, Settings(assigned_identities=False), before=[make.assigned()])
