"""Nothing hangs when things go: objects, namespaces, MIC itself. And what was there before MIC came."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import make
from daemons.kube.scripted import JumpingClock
from daemons.mic.conftest import World, played
from podidentity import __version__
from podidentity.core import crd
from podidentity.core.identities import AssignedState, ObjectKey
from podidentity.errors import KubernetesError
from podidentity.kube.api import Api
from podidentity.kube.election import Candidate, Election
from podidentity.kube.locks import EndpointsLock
from podidentity.mic import draining, upgrading

Run = Callable[..., None]
ASSIGNED = "azureassignedidentities.aadpodidentity.k8s.io"
LOCK = ObjectKey("default", "aad-pod-identity-mic")


def test_a_deletion_never_waits_for_azure(run_in_world: Run) -> None:
    """An object that is deleted by hand, or with its namespace, is let go while the PATCH hangs."""

    async def story(world: Any) -> None:
        world.machines.slow[make.target()] = asyncio.Event()
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: world.machines.patches, "the hanging PATCH")
        world.remove_pod(pod)
        world.kubernetes.storage.delete(ASSIGNED, "default", "web-default-reader")
        await world.until(lambda: not world.states(), "removal")

    run_in_world(story)


def test_a_namespace_that_terminates_is_never_held_up(run_in_world: Run) -> None:
    """Its objects are deleted in no order, nothing can be created in it, and the PATCH hangs: all finalizers go."""

    async def story(world: Any) -> None:
        world.kubernetes.storage.create("namespaces", {"metadata": {"name": "team"}})
        pods = [make.pod(name, "team") for name in ("a", "b", "c")]
        world.add(make.node(), make.identity("reader", "team", namespaced=True), make.binding("bind", "team"), *pods)
        await world.until(lambda: list(world.states().values()) == ["Assigned"] * 3, "Assigned")
        assert {one["metadata"]["namespace"] for one in listed(world)} == {"team"}
        world.machines.slow[make.target()] = asyncio.Event()
        world.refuse = ("POST", "/namespaces/team/")
        for one in listed(world):
            world.kubernetes.storage.delete(ASSIGNED, "team", one["metadata"]["name"])
        await world.until(lambda: not listed(world), "the assigned identities' end")
        world.kubernetes.storage.delete("azureidentities.aadpodidentity.k8s.io", "team", "reader")
        world.kubernetes.storage.delete("azureidentitybindings.aadpodidentity.k8s.io", "team", "bind")
        for pod in pods:
            world.remove_pod(pod)
        await world.until(lambda: world.machines.patches[-1][1].unassign, "the PATCH that takes it off")
        assert not listed(world)

    run_in_world(story)


def test_finalizers_of_others_stay(run_in_world: Run) -> None:
    """MIC lets go of its own; the object goes when the others do."""

    async def story(world: Any) -> None:
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")

        def hold(obj: Any) -> None:
            obj["metadata"]["finalizers"].append("somebody.else/holds")

        where = ASSIGNED, "default", "web-default-reader"
        world.kubernetes.storage.change(*where, hold)
        world.remove_pod(pod)

        def stored() -> dict[str, Any]:
            found: dict[str, Any] = world.kubernetes.storage.get(*where)["metadata"]
            return found

        await world.until(lambda: stored()["finalizers"] == ["somebody.else/holds"], "MIC lets go")
        await world.until(lambda: "deletionTimestamp" in stored(), "deletion")

    run_in_world(story)


def seed(world: World, *names: str, finalizers: tuple[str, ...] = (crd.FINALIZER,)) -> None:
    """Store assigned identities, as some MIC left them."""
    for name in names:
        one = replace(make.assigned(make.pod(name)), finalizers=finalizers)
        world.kubernetes.storage.create(ASSIGNED, crd.render_assigned(one))


def test_uninstall_takes_everything_away(definitions: list[dict[str, Any]]) -> None:
    """Without any MIC: also what is under deletion already, and what nobody can read."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a", "b", "c")
        world.kubernetes.storage.delete(ASSIGNED, "default", "b-default-reader")
        odd = crd.render_assigned(replace(make.assigned(make.pod("odd")), finalizers=(crd.FINALIZER,)))
        world.kubernetes.storage.create(ASSIGNED, {**odd, "status": {"status": "nonsense"}})
        assert await draining.drain(api, LOCK) == 4
        assert world.kubernetes.storage.list(ASSIGNED) == []

    played(definitions, story)


def test_uninstall_stops_a_mic_that_runs(definitions: list[dict[str, Any]]) -> None:
    """It steps down before anything is taken away, and may not lead again for a while."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a")
        led: list[str] = []

        async def lead() -> None:
            led.append("began")
            try:
                await asyncio.Event().wait()
            finally:
                led.append(f"ended with {len(world.kubernetes.storage.list(ASSIGNED))}")

        election = Election(api, Candidate("mic-1", duration_seconds=5.0))
        candidate = asyncio.create_task(election.run(lead))
        await world.until(lambda: led, "leading")
        assert await draining.drain(api, LOCK) == 1
        assert led == ["began", "ended with 1"]
        assert not election.leading
        candidate.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await candidate
        assert led == ["began", "ended with 1"]

    played(definitions, story)


def test_uninstall_gives_up_with_a_sentence(definitions: list[dict[str, Any]]) -> None:
    """It is bounded: what cannot be taken away is named."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a")
        world.refuse = ("PATCH", "a-default-reader")
        jumping = Api(api._http, JumpingClock())
        with pytest.raises(KubernetesError, match="1 assigned identities are still there: patch"):
            await draining.drain(jumping, LOCK)

    played(definitions, story)


def test_uninstall_holds_the_lock_as_long_as_it_takes(definitions: list[dict[str, Any]]) -> None:
    """Its promise lasts a minute, its work may last two: a MIC that still runs must not put anything back meanwhile."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a")
        world.refuse = ("PATCH", "a-default-reader")
        clock = JumpingClock()
        jumping, renewed = Api(api._http, clock), []

        def wall_clock() -> float:
            renewed.append(clock.now())
            return clock.now()

        with pytest.raises(KubernetesError, match="still there"):
            await draining.drain(jumping, LOCK, wall_clock)
        gaps = [after - before for before, after in itertools.pairwise([*renewed, clock.now()])]
        assert max(gaps) <= draining.PROMISE_SECONDS / 2
        world.refuse = None
        assert await draining.drain(jumping, LOCK, wall_clock) == 1
        held = await EndpointsLock(api, LOCK).read()
        assert held is not None
        assert held.record.holder == draining.HOLDER
        assert renewed[-1] == clock.now(), "the minute to delete MIC begins at the end"

    played(definitions, story)


def test_uninstall_without_definitions_has_nothing_to_do(definitions: list[dict[str, Any]]) -> None:
    """They are gone, and everything with them."""
    del definitions[:]

    async def story(_world: World, api: Api) -> None:
        assert await draining.drain(api, LOCK) == 0

    played(definitions, story)


OLD = {"ResourceID": make.resource_id("reader"), "ClientID": "client-of-reader"}


def test_old_spelling_is_rewritten_once_when_asked(definitions: list[dict[str, Any]]) -> None:
    """The record stands where upstream has it; what is right is left alone, and so are other keys of the record."""

    async def story(world: World, api: Api) -> None:
        identities = "azureidentities.aadpodidentity.k8s.io"
        stored = crd.render_identity(make.identity())
        world.kubernetes.storage.create(identities, {**stored, "spec": OLD})
        world.add(make.identity("right"))
        key = ObjectKey("default", "aad-pod-identity-config")
        config = {"metadata": {"name": key.name, "namespace": key.namespace}, "data": {"other": "stays"}}
        world.kubernetes.storage.create("configmaps", config)
        assert await upgrading.upgrade(api, key, "type-upgrade-status") == 1
        spec = world.kubernetes.storage.get(identities, "default", "reader")["spec"]
        assert spec == {"resourceID": make.resource_id("reader"), "clientID": "client-of-reader"}
        data = world.kubernetes.storage.get("configmaps", *key)["data"]
        assert data == {"other": "stays", "type-upgrade-status": __version__}
        before = len(world.requests)
        assert await upgrading.upgrade(api, key, "type-upgrade-status") == 0
        assert len(world.requests) == before + 1

    played(definitions, story)


def test_what_upstream_left_is_taken_over(run_in_world: Run) -> None:
    """With a state or without, in both spellings: nothing that is right is rewritten, and Azure is left alone."""

    async def story(world: Any) -> None:
        world.machines.carries[make.target()] = {make.identity_id("reader")}
        plain = crd.render_assigned(replace(make.assigned(make.pod("a")), finalizers=(crd.FINALIZER,)))
        stateless = crd.render_assigned(replace(make.assigned(make.pod("b")), finalizers=(crd.FINALIZER,)))
        del stateless["status"]
        old = crd.render_assigned(replace(make.assigned(make.pod("c")), finalizers=(crd.FINALIZER,)))
        old["spec"]["AzureIdentityRef"] = {**old["spec"].pop("azureIdentityRef"), "spec": {"Type": 0, **OLD}}
        old["spec"]["Pod"], old["status"] = old["spec"].pop("pod"), {"Status": str(AssignedState.ASSIGNED)}
        for obj in (plain, stateless, old):
            world.kubernetes.storage.create(ASSIGNED, obj)
        world.add(make.identity(), make.binding(), make.pod("a"), make.pod("b"), make.pod("c"), make.node())
        before = {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in listed(world)}
        world.add(make.pod("new"))
        await world.until(lambda: "new-default-reader" in names(world), "a new pod")
        after = {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in listed(world)}
        assert {name: after[name] for name in before} == before
        assert world.machines.patches == []

    run_in_world(story)


def listed(world: Any) -> list[dict[str, Any]]:
    """All assigned identities as they are stored."""
    found: list[dict[str, Any]] = world.kubernetes.storage.list(ASSIGNED)
    return found


def names(world: Any) -> list[str]:
    """Their names."""
    return [one["metadata"]["name"] for one in listed(world)]
