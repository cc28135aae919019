"""MIC and NMI's watches on one API: NMI decides by itself what MIC writes, and goes on without MIC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import make
from clocks import JumpingClock
from daemons.mic.conftest import World, running_mic
from daemons.nmi.test_cluster import FollowerRecord
from podidentity.core.model import crd
from podidentity.core.model.allow_list import ANNOTATION
from podidentity.core.model.identities import AssignedState
from podidentity.core.model.snapshot import Pod
from podidentity.kube.api import Api
from podidentity.mic.settings import Settings as MicSettings
from podidentity.nmi.adapters.cluster import Cluster
from podidentity.nmi.settings import Settings
from waiting import eventually

Run = Callable[..., Awaitable[None]]
Play = Callable[..., Awaitable[None]]
CUSTOM = "aadpodidentity.k8s.io"


@asynccontextmanager
async def following(world: World, settings: Settings | None = None) -> AsyncIterator[Cluster]:
    """Follow the cluster as the NMI of node n1; wait for all its watches, since one that is being opened ends late."""
    assert world.api is not None
    settings = settings or Settings("n1")
    cluster, others = Cluster(world.api, settings), world.watches_begun
    task = asyncio.create_task(cluster.run())
    try:
        await cluster.wait_until_synced()
        watches = 5 + settings.namespace_allow_list if cluster.decides else 3
        await eventually(lambda: world.watches_begun - others >= watches, "all watches")
        yield cluster
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def decided(cluster: Cluster, pod: Pod) -> dict[str, AssignedState]:
    """Return the identities that NMI gives a pod."""
    return {item.identity.key.name: item.state for item in cluster.assigned_to(pod)}


def stored(world: World, pod: Pod) -> set[tuple[object, ...]]:
    """Return the identities, bindings, nodes and states in MIC's objects for a pod."""
    objects = world.kubernetes.storage.list(f"azureassignedidentities.{CUSTOM}")
    items = [crd.parse_assigned(obj) for obj in objects]
    return {(item.identity, item.binding, item.node, item.state) for item in items if item.pod == pod.key}


def own(cluster: Cluster, pod: Pod) -> set[tuple[object, ...]]:
    """Return the same values by NMI's own decision."""
    return {(item.identity, item.binding, item.node, item.state) for item in cluster.assigned_to(pod)}


async def test_nmi_says_what_mic_writes(run_in_world: Run) -> None:
    """NMI decides as MIC writes, in two namespaces, before the PATCH and after it, and when a binding is deleted."""

    async def story(world: World) -> None:
        pods = [make.pod("web"), make.pod("web", "team-b"), make.pod("other", selector="writer")]
        world.machines.slow[make.target()] = asyncio.Event()
        world.kubernetes.storage.create("namespaces", {"metadata": {"name": "team-b"}})
        world.add(make.node(), make.identity(client_id=""), make.binding(), make.identity("writer", namespaced=True))
        world.add(make.binding("w", azure_identity="writer", selector="writer"), *pods)
        await world.until(lambda: list(world.states().values()) == ["Created"] * 3, "the objects")
        async with following(world) as cluster:
            assert cluster.decides
            await eventually(lambda: all(own(cluster, pod) == stored(world, pod) for pod in pods), "the same")
            assert {state for pod in pods for state in decided(cluster, pod).values()} == {AssignedState.CREATED}
            assert cluster.there_since(make.identity_id("reader")) is None
            world.machines.client_ids = {make.identity_id("reader"): "client-of-reader"}
            world.machines.slow[make.target()].set()
            await world.until(lambda: list(world.states().values()) == ["Assigned"] * 3, "the PATCH")
            await eventually(lambda: all(own(cluster, pod) == stored(world, pod) for pod in pods), "the same again")
            assert cluster.there_since(make.identity_id("reader")) is not None
            world.kubernetes.storage.delete(f"azureidentitybindings.{CUSTOM}", "default", "reader-binding")
            await eventually(lambda: not decided(cluster, pods[0]) and not decided(cluster, pods[1]), "no binding")

    await run_in_world(story)


async def test_without_mic_a_new_pod_has_its_identity_at_once(play: Play) -> None:
    """After MIC has ended, its report of the machine stays, and NMI gives a new pod the identity by it."""

    async def story(world: World, api: Api) -> None:
        world.api = api
        world.add(make.node(), make.identity(), make.binding(), make.pod("first"))
        async with running_mic(world, _http(api), make.policy(), MicSettings()):
            await world.until(lambda: set(world.states().values()) == {"Assigned"}, "the first pod")
        async with following(world) as cluster:
            second = make.pod("second")
            world.add(second)
            await eventually(lambda: cluster.by_name(second.key), "the pod")
            assert decided(cluster, second) == {"reader": AssignedState.ASSIGNED}
            assert "second-default-reader" not in world.states()

    await play(story)


async def test_without_a_word_of_mic_no_namespace_uses_anothers(play: Play) -> None:
    """Without MIC's report NMI gives a pod only what its own namespace's bindings allow."""

    async def story(world: World, api: Api) -> None:
        world.api = api
        world.kubernetes.storage.create("namespaces", {"metadata": {"name": "team-b"}})
        world.add(make.node(), make.identity(), make.binding())
        async with following(world) as cluster:
            assert decided(cluster, make.pod()) == {"reader": AssignedState.ASSIGNED}
            assert decided(cluster, make.pod(namespace="team-b")) == {}

    await play(story)


async def test_the_stricter_rule_counts(run_in_world: Run) -> None:
    """If MIC keeps namespaces apart and says so in its report, an NMI without the flag does so, too."""

    async def story(world: World) -> None:
        world.kubernetes.storage.create("namespaces", {"metadata": {"name": "team-b"}})
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "the pod")
        async with following(world) as cluster:
            assert decided(cluster, make.pod(namespace="team-b")) == {}
            assert decided(cluster, make.pod()) == {"reader": AssignedState.ASSIGNED}

    await run_in_world(story, force_namespaced=True)


async def test_an_allow_list_that_nmi_does_not_read_allows_nothing(run_in_world: Run) -> None:
    """With its flag NMI goes by the namespace's annotation, as MIC does; without the flag NMI gives nothing."""

    async def story(world: World) -> None:
        world.annotate_namespace("default", {ANNOTATION: make.resource_id("reader")})
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        world.add(make.identity("writer"), make.binding("w", azure_identity="writer"))
        await world.until(lambda: world.states() == {"web-default-reader": "Assigned"}, "the one that is allowed")
        async with following(world) as cluster:
            assert decided(cluster, make.pod()) == {}
        async with following(world, Settings("n1", namespace_allow_list=True)) as cluster:
            assert decided(cluster, make.pod()) == {"reader": AssignedState.ASSIGNED}
            world.annotate_namespace("default", {})
            await eventually(lambda: decided(cluster, make.pod()) == {}, "the end of the permission")
        await world.until(lambda: not world.states() and not world.machines.carries[make.target()], "MIC is done")

    await run_in_world(story, allow_list=True)


async def test_a_role_without_the_rights_goes_by_mics_objects_until_it_has_them(play: Play) -> None:
    """With upstream's role NMI goes by MIC's objects; given the rights, it decides itself without a restart."""

    async def story(world: World, api: Api) -> None:
        world.api = Api(_http(api), JumpingClock())
        world.refuse, world.refusal_status = ("GET", "/leases"), 403
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        async with running_mic(world, _http(api), make.policy(), MicSettings()), following(world) as cluster:
            assert not cluster.decides
            await eventually(lambda: decided(cluster, make.pod()) == {"reader": AssignedState.ASSIGNED}, "by object")
            record = FollowerRecord()
            cluster.subscribe(record)
            world.refuse = None
            await eventually(lambda: cluster.decides, "the correction")
            await eventually(lambda: decided(cluster, make.pod()) == {"reader": AssignedState.ASSIGNED}, "by itself")
            assert not [delay for delay in cluster.delays() if "assigned" in delay]

    await play(story)


async def test_a_node_gets_its_provider_id_later(play: Play) -> None:
    """When the node that has just joined gets its provider ID, its NMI learns which machine it is."""

    async def story(world: World, api: Api) -> None:
        world.api = Api(_http(api), JumpingClock())
        world.machines.carries[make.target()] = {make.identity_id("reader")}
        world.add(make.node("n1", ""), make.node("n2"), make.identity(), make.binding(), make.pod(node="n2"))
        async with running_mic(world, _http(api), make.policy(), MicSettings()), following(world) as cluster:
            await world.until(lambda: set(world.states().values()) == {"Assigned"}, "the pod of the other node")
            assert not cluster.knows_machine

            def join(obj: dict[str, Any]) -> None:
                obj["spec"]["providerID"] = make.node("n2").provider_id

            world.kubernetes.storage.change("nodes", None, "n1", join)
            await eventually(lambda: cluster.knows_machine, "its machine")
            assert cluster.grants_confirmed_at() > 0

    await play(story)


async def test_conditions_wake_nobody(run_in_world: Run) -> None:
    """Conditions and annotations of an AzureIdentity change no decision, so they make no new revision."""

    async def story(world: World) -> None:
        world.add(make.node(), make.identity(), make.binding(), make.pod())
        await world.until(lambda: set(world.states().values()) == {"Assigned"}, "the pod")
        async with following(world) as cluster:
            await eventually(lambda: cluster.knows_machine, "its machine")
            revision = cluster.revisions.latest

            def annotate(obj: dict[str, Any]) -> None:
                obj.setdefault("status", {})["conditions"] = []
                obj["metadata"]["annotations"] = {"a": "b"}

            world.kubernetes.storage.change(f"azureidentities.{CUSTOM}", "default", "reader", annotate)
            world.add(make.identity("next"))
            await eventually(lambda: cluster.revisions.latest > revision, "a change that counts")
            assert cluster.revisions.latest == revision + 1

    await run_in_world(story)


def _http(api: Api) -> Any:
    return api._http
