"""MIC from pod to Assigned and back, through a real HTTP API."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import make

Run = Callable[..., Awaitable[None]]


async def test_a_pod_gets_its_identity_and_gives_it_back(run_in_world: Run) -> None:
    """A pod's identity is assigned to its scale set, and removed together with its object after the last pod."""

    async def story(world: Any) -> None:
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: world.states() == {"web-default-reader": "Assigned"}, "Assigned")
        assert world.machines.carries[make.target()] == {make.identity_id("reader")}
        world.remove_pod(pod)
        await world.until(lambda: not world.states() and not world.machines.carries[make.target()], "removal")
        await world.until(lambda: ("Normal", "binding removed") in world.events(), "the event")
        assert ("Normal", "binding applied") in world.events()

    await run_in_world(story)


async def test_what_mic_puts_is_recorded_before_it_is_put(run_in_world: Run) -> None:
    """The record names an identity before the PATCH that assigns it is done."""

    async def story(world: Any) -> None:
        world.machines.slow[make.target()] = asyncio.Event()
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: world.machines.patches, "the PATCH")
        config_map = world.kubernetes.storage.get("configmaps", "default", "aad-pod-identity-config")
        record = json.loads(config_map["data"]["assigned-by-mic"])
        assert record == {make.target().path: [make.resource_id("reader")]}

    await run_in_world(story)


async def test_an_identity_that_somebody_else_put_there_stays(run_in_world: Run) -> None:
    """MIC does not remove an identity that it did not assign."""

    async def story(world: Any) -> None:
        world.machines.carries[make.target()] = {make.identity_id("foreign"), make.identity_id("reader")}
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: world.states() == {"web-default-reader": "Assigned"}, "Assigned")
        world.remove_pod(pod)
        await world.until(lambda: not world.states(), "removal of the object")
        assert world.machines.patches == []

    await run_in_world(story)


async def test_a_slow_scale_set_delays_nobody_else(run_in_world: Run) -> None:
    """A pod is Assigned while the PATCH of another scale set hangs."""

    async def story(world: Any) -> None:
        world.machines.slow[make.target("slow")] = asyncio.Event()
        world.add(make.node("n1", "slow"), make.node("n2", "quick"), make.identity(), make.binding())
        world.add(make.pod("first", node="n1"))
        await world.until(lambda: world.machines.patches, "the hanging PATCH")
        world.add(make.pod("second", node="n2"))
        await world.until(lambda: world.states().get("second-default-reader") == "Assigned", "Assigned")
        assert world.states()["first-default-reader"] == "Created"

    await run_in_world(story)


async def test_one_bad_identity_does_not_hold_up_the_others(run_in_world: Run) -> None:
    """Only the bad identity stays Created, and an event on its binding says why."""

    async def story(world: Any) -> None:
        world.machines.names_the_culprit = False
        world.machines.refused_identities = {make.identity_id("bad")}
        names = ["a", "bad", "c"]
        world.add(make.node(), *(make.identity(name) for name in names))
        world.add(*(make.binding(name, azure_identity=name, selector="reader") for name in names), make.pod())
        states = {f"web-default-{name}": "Created" if name == "bad" else "Assigned" for name in names}
        await world.until(lambda: world.states() == states, "the good ones Assigned")
        await world.until(lambda: ("Warning", "binding apply error") in world.events(), "the event")

    await run_in_world(story)
