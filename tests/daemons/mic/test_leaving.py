"""Nothing hangs when objects, namespaces or MIC itself are deleted; and what upstream left behind is taken over."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

import make
from clocks import JumpingClock
from daemons.mic.conftest import World, played
from podidentity import __version__
from podidentity.core.model import crd
from podidentity.core.model.identities import AssignedState, ObjectKey
from podidentity.errors import KubernetesError
from podidentity.kube.api import Api
from podidentity.kube.election import Candidate, Election
from podidentity.kube.locks import EndpointsLock, LeaseLock
from podidentity.mic.adapters.records import ConfigMapRecords
from podidentity.mic.commands import type_upgrade, unassignment, uninstall

Run = Callable[..., Awaitable[None]]
RESOURCE = "azureassignedidentities.aadpodidentity.k8s.io"
LOCK = ObjectKey("default", "aad-pod-identity-mic")


async def test_a_deletion_never_waits_for_azure(run_in_world: Run) -> None:
    """An object deleted by hand loses its finalizer while a PATCH hangs."""

    async def story(world: Any) -> None:
        world.machines.slow[make.target()] = asyncio.Event()
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: world.machines.patches, "the hanging PATCH")
        world.remove_pod(pod)
        world.kubernetes.storage.delete(RESOURCE, "default", "web-default-reader")
        await world.until(lambda: not world.states(), "removal")

    await run_in_world(story)


async def test_a_namespace_that_terminates_is_never_held_up(run_in_world: Run) -> None:
    """All finalizers are removed, although nothing can be created in the namespace and a PATCH hangs."""

    async def story(world: Any) -> None:
        world.kubernetes.storage.create("namespaces", {"metadata": {"name": "team"}})
        pods = [make.pod(name, "team") for name in ("a", "b", "c")]
        world.add(make.node(), make.identity("reader", "team", namespaced=True), make.binding("bind", "team"), *pods)
        await world.until(lambda: list(world.states().values()) == ["Assigned"] * 3, "Assigned")
        assert {obj["metadata"]["namespace"] for obj in assigned_objects(world)} == {"team"}
        world.machines.slow[make.target()] = asyncio.Event()
        world.refuse = ("POST", "/namespaces/team/")
        for obj in assigned_objects(world):
            world.kubernetes.storage.delete(RESOURCE, "team", obj["metadata"]["name"])
        await world.until(lambda: not assigned_objects(world), "the assigned identities' end")
        world.kubernetes.storage.delete("azureidentities.aadpodidentity.k8s.io", "team", "reader")
        world.kubernetes.storage.delete("azureidentitybindings.aadpodidentity.k8s.io", "team", "bind")
        for pod in pods:
            world.remove_pod(pod)
        await world.until(lambda: world.machines.patches[-1][1].unassign, "the PATCH that takes it off")
        assert not assigned_objects(world)

    await run_in_world(story)


async def test_finalizers_of_others_stay(run_in_world: Run) -> None:
    """MIC removes only its own finalizer; the object exists until the others are removed."""

    async def story(world: Any) -> None:
        pod = make.pod()
        world.add(make.node(), make.identity(), make.binding(), pod)
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "Assigned")

        def hold(obj: Any) -> None:
            obj["metadata"]["finalizers"].append("somebody.else/holds")

        location = RESOURCE, "default", "web-default-reader"
        world.kubernetes.storage.change(*location, hold)
        world.remove_pod(pod)

        def metadata() -> dict[str, Any]:
            stored_metadata: dict[str, Any] = world.kubernetes.storage.get(*location)["metadata"]
            return stored_metadata

        await world.until(lambda: metadata()["finalizers"] == ["somebody.else/holds"], "MIC lets go")
        await world.until(lambda: "deletionTimestamp" in metadata(), "deletion")

    await run_in_world(story)


def seed(world: World, *names: str, finalizers: tuple[str, ...] = (crd.FINALIZER,)) -> None:
    """Store assigned identities as a former MIC left them."""
    for name in names:
        assigned_identity = replace(make.assigned(make.pod(name)), finalizers=finalizers)
        world.kubernetes.storage.create(RESOURCE, crd.render_assigned(assigned_identity))


async def test_uninstall_takes_everything_away(definitions: list[dict[str, Any]]) -> None:
    """Without any MIC, uninstall also removes objects under deletion and objects that cannot be read."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a", "b", "c")
        world.kubernetes.storage.delete(RESOURCE, "default", "b-default-reader")
        odd = crd.render_assigned(replace(make.assigned(make.pod("odd")), finalizers=(crd.FINALIZER,)))
        world.kubernetes.storage.create(RESOURCE, {**odd, "status": {"status": "nonsense"}})
        assert await uninstall.drain(api, LOCK) == 4
        assert world.kubernetes.storage.list(RESOURCE) == []

    await played(definitions, story)


async def test_uninstall_stops_a_mic_that_runs(definitions: list[dict[str, Any]]) -> None:
    """A running MIC steps down before anything is removed, and does not lead again for a while."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a")
        led: list[str] = []

        async def lead() -> None:
            led.append("began")
            try:
                await asyncio.Event().wait()
            finally:
                led.append(f"ended with {len(world.kubernetes.storage.list(RESOURCE))}")

        election = Election(api, Candidate("mic-1", duration_seconds=5.0))
        candidate = asyncio.create_task(election.run(lead))
        await world.until(lambda: led, "leading")
        assert await uninstall.drain(api, LOCK) == 1
        assert led == ["began", "ended with 1"]
        assert not election.leading
        candidate.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await candidate
        assert led == ["began", "ended with 1"]

    await played(definitions, story)


async def test_uninstall_gives_up_with_a_sentence(definitions: list[dict[str, Any]]) -> None:
    """After its time limit, uninstall fails and says what remains."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a")
        world.refuse = ("PATCH", "a-default-reader")
        jumping = Api(api._http, JumpingClock())
        with pytest.raises(KubernetesError, match="1 assigned identities are still there: patch"):
            await uninstall.drain(jumping, LOCK)

    await played(definitions, story)


async def test_uninstall_holds_the_lock_as_long_as_it_takes(definitions: list[dict[str, Any]]) -> None:
    """The lock is renewed while uninstall works, so that a running MIC restores nothing meanwhile."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a")
        world.refuse = ("PATCH", "a-default-reader")
        clock = JumpingClock()
        jumping, renewals = Api(api._http, clock), []

        def wall_clock() -> float:
            renewals.append(clock.steady())
            return clock.steady()

        with pytest.raises(KubernetesError, match="still there"):
            await uninstall.drain(jumping, LOCK, wall_clock)
        gaps = [end - start for start, end in itertools.pairwise([*renewals, clock.steady()])]
        assert max(gaps) <= uninstall.LEASE_SECONDS / 2
        world.refuse = None
        assert await uninstall.drain(jumping, LOCK, wall_clock) == 1
        assert (await holders(api)) == ("", "")

    await played(definitions, story)


async def holders(api: Api) -> tuple[str, str]:
    """Return who holds the Endpoints lock and the Lease."""
    locks = [await lock.read() for lock in (EndpointsLock(api, LOCK), LeaseLock(api, LOCK))]
    first, second = (lock.record.holder if lock else "nobody" for lock in locks)
    return first, second


def mic_pod(world: World, labels: dict[str, str]) -> None:
    """Store a pod of MIC, as manifests or the chart label it."""
    pod = {"metadata": {"name": "mic-0", "namespace": "elsewhere", "labels": labels}, "spec": {"containers": []}}
    world.kubernetes.storage.create("pods", pod | {"status": {"phase": "Running"}})


async def test_uninstall_gives_the_lock_up(definitions: list[dict[str, Any]]) -> None:
    """A MIC installed right afterwards leads at once, because nobody holds the lock."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a")
        assert await uninstall.drain(api, LOCK) == 1
        assert await holders(api) == ("", "")
        led = asyncio.Event()

        async def lead() -> None:
            led.set()
            await asyncio.Event().wait()

        clock = JumpingClock(hasty=False)
        candidate = asyncio.create_task(Election(Api(api._http, clock), Candidate("mic-1")).run(lead))
        await world.until(led.is_set, "leading")
        assert clock.steady() == JumpingClock().steady(), "no time passed"
        candidate.cancel()
        await asyncio.gather(candidate, return_exceptions=True)

    await played(definitions, story)


@pytest.mark.parametrize("labels", [{"component": "mic"}, {"app.kubernetes.io/component": "mic"}])
async def test_uninstall_keeps_the_lock_while_a_mic_is_there(
    definitions: list[dict[str, Any]], labels: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """While a MIC's pod exists, the lock stays held for a minute from the end, time to delete that MIC."""

    async def story(world: World, api: Api) -> None:
        seed(world, "a")
        mic_pod(world, labels)
        clock = JumpingClock()
        renewals: list[float] = []

        def wall_clock() -> float:
            renewals.append(clock.steady())
            return clock.steady()

        assert await uninstall.drain(Api(api._http, clock), LOCK, wall_clock) == 1
        assert await holders(api) == (uninstall.HOLDER, uninstall.HOLDER)
        assert renewals[-1] == clock.steady()
        assert "delete it within 60 s" in caplog.text

    await played(definitions, story)


async def test_uninstall_scales_mic_down_first(definitions: list[dict[str, Any]]) -> None:
    """The Deployment is scaled to no replicas and its pods have ended before the lock is taken."""

    async def story(world: World, api: Api) -> None:
        key = ObjectKey("elsewhere", "mic")
        deployment = {"metadata": {"name": "mic", "namespace": "elsewhere"}, "spec": {"replicas": 2}}
        world.kubernetes.storage.create("deployments.apps", deployment)
        mic_pod(world, {"component": "mic"})

        class Clock(JumpingClock):
            async def sleep(self, seconds: float) -> None:
                assert world.kubernetes.storage.get("deployments.apps", *key)["spec"]["replicas"] == 0
                world.kubernetes.storage.delete("pods", "elsewhere", "mic-0", grace_seconds=0)
                await super().sleep(seconds)

        await uninstall.scale_down(Api(api._http, Clock()), key)
        assert not await uninstall.is_mic_there(api)
        assert await holders(api) == ("nobody", "nobody")

    await played(definitions, story)


async def test_uninstall_takes_recorded_identities_off_machines(definitions: list[dict[str, Any]]) -> None:
    """Uninstall removes what MIC assigned, neither foreign nor immutable identities, and updates the record."""

    async def story(world: World, api: Api) -> None:
        own_identity, fixed, foreign_identity = (make.identity_id(name) for name in ("mine", "fixed", "theirs"))
        policy = make.policy(immutable_client_ids=frozenset({"client-of-fixed"}))
        world.machines.carries[make.target()] = {own_identity, fixed, foreign_identity}
        world.machines.client_ids = {fixed: "client-of-fixed"}
        records = ConfigMapRecords(api, ObjectKey("default", "aad-pod-identity-config"), policy)
        await records.store({make.target(): frozenset({own_identity, fixed})})
        assert await unassignment.unassign_all(world.machines, records, policy) == []
        assert world.machines.carries[make.target()] == {fixed, foreign_identity}
        assert await records.load() == {make.target(): frozenset({fixed})}

    await played(definitions, story)


async def test_uninstall_names_what_azure_keeps(definitions: list[dict[str, Any]]) -> None:
    """A machine that does not respond costs a limited time and is reported."""

    async def story(world: World, api: Api) -> None:
        own_identity = make.identity_id("mine")
        world.machines.carries[make.target()] = {own_identity}
        world.machines.slow[make.target()] = asyncio.Event()
        records = ConfigMapRecords(api, ObjectKey("default", "aad-pod-identity-config"), make.policy())
        await records.store({make.target(): frozenset({own_identity})})
        (line,) = await unassignment.unassign_all(world.machines, records, make.policy(), limit_seconds=0.5)
        assert str(make.target()) in line
        assert own_identity.text in line

    await played(definitions, story)


async def test_uninstall_without_definitions_has_nothing_to_do(definitions: list[dict[str, Any]]) -> None:
    """Without the definitions, uninstall succeeds and removes nothing."""
    del definitions[:]

    async def story(_world: World, api: Api) -> None:
        assert await uninstall.drain(api, LOCK) == 0

    await played(definitions, story)


OLD = {"ResourceID": make.resource_id("reader"), "ClientID": "client-of-reader"}


async def test_old_spelling_is_rewritten_once_when_asked(definitions: list[dict[str, Any]]) -> None:
    """The upgrade rewrites only old spellings, once, and records that in upstream's key beside others."""

    async def story(world: World, api: Api) -> None:
        identities = "azureidentities.aadpodidentity.k8s.io"
        rendered = crd.render_identity(make.identity())
        world.kubernetes.storage.create(identities, {**rendered, "spec": OLD})
        world.add(make.identity("right"))
        key = ObjectKey("default", "aad-pod-identity-config")
        config = {"metadata": {"name": key.name, "namespace": key.namespace}, "data": {"other": "stays"}}
        world.kubernetes.storage.create("configmaps", config)
        assert await type_upgrade.upgrade(api, key, "type-upgrade-status") == 1
        spec = world.kubernetes.storage.get(identities, "default", "reader")["spec"]
        assert spec == {"resourceID": make.resource_id("reader"), "clientID": "client-of-reader"}
        data = world.kubernetes.storage.get("configmaps", *key)["data"]
        assert data == {"other": "stays", "type-upgrade-status": __version__}
        requests_before = len(world.requests)
        assert await type_upgrade.upgrade(api, key, "type-upgrade-status") == 0
        assert len(world.requests) == requests_before + 1

    await played(definitions, story)


async def test_what_upstream_left_is_taken_over(run_in_world: Run) -> None:
    """Upstream's objects, with a state or without, in both spellings, cause no write and no PATCH."""

    async def story(world: Any) -> None:
        world.machines.carries[make.target()] = {make.identity_id("reader")}
        plain = crd.render_assigned(replace(make.assigned(make.pod("a")), finalizers=(crd.FINALIZER,)))
        stateless = crd.render_assigned(replace(make.assigned(make.pod("b")), finalizers=(crd.FINALIZER,)))
        del stateless["status"]
        old = crd.render_assigned(replace(make.assigned(make.pod("c")), finalizers=(crd.FINALIZER,)))
        old["spec"]["AzureIdentityRef"] = {**old["spec"].pop("azureIdentityRef"), "spec": {"Type": 0, **OLD}}
        old["spec"]["Pod"], old["status"] = old["spec"].pop("pod"), {"Status": str(AssignedState.ASSIGNED)}
        for obj in (plain, stateless, old):
            world.kubernetes.storage.create(RESOURCE, obj)
        world.add(make.identity(), make.binding(), make.pod("a"), make.pod("b"), make.pod("c"), make.node())
        old_versions = {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in assigned_objects(world)}
        world.add(make.pod("new"))
        await world.until(lambda: "new-default-reader" in names(world), "a new pod")
        new_versions = {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in assigned_objects(world)}
        assert {name: new_versions[name] for name in old_versions} == old_versions
        assert world.machines.patches == []

    await run_in_world(story)


def assigned_objects(world: Any) -> list[dict[str, Any]]:
    """Return all assigned identities as the API stores them."""
    objects: list[dict[str, Any]] = world.kubernetes.storage.list(RESOURCE)
    return objects


def names(world: Any) -> list[str]:
    """Return the names of all assigned identities."""
    return [obj["metadata"]["name"] for obj in assigned_objects(world)]
