"""Objects nested as deeply as the API server stores them: read like any other, and never the end of a daemon."""

import asyncio
import json
import resource
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import make
from daemons.kube.scripted import ScriptedServer, Watch, pod
from podidentity.core.model.identities import ObjectKey
from podidentity.errors import MalformedObjectError
from podidentity.kube.api import Api
from podidentity.kube.reflector import Reflector, Watching
from podidentity.kube.resources import BINDINGS, IDENTITIES, PODS, SELECTED_PODS, Kind
from podidentity.kube.store import Store
from podidentity.mic.adapters.cluster import WatchedCluster
from podidentity.nmi.adapters.cluster import Cluster
from podidentity.nmi.settings import Settings
from podidentity.serving.nesting import allow_nested_objects
from waiting import LIMIT_SECONDS, eventually

GROUP = "/apis/aadpodidentity.k8s.io/v1/namespaces/team"
DEEP, NEIGHBOUR = ObjectKey("team", "deep"), ObjectKey("team", "neighbour")
LEVELS = (1_500, 9_990)


@pytest.fixture
def daemons_limit() -> Iterator[None]:
    """Allow what the daemons allow, for one test."""
    depth, stack, size = sys.getrecursionlimit(), resource.getrlimit(resource.RLIMIT_STACK), threading.stack_size()
    allow_nested_objects()
    yield
    sys.setrecursionlimit(depth)
    resource.setrlimit(resource.RLIMIT_STACK, stack)
    threading.stack_size(size)


def nested(levels: int) -> bytes:
    """Write a JSON value."""
    return b'{"f:a":' * levels + b"{}" + b"}" * levels


def deep_pod(levels: int, name: str = "deep", version: str = "900") -> bytes:
    """Write a pod whose managed fields are nested: the API server keeps there what a user sends."""
    document = pod(name, "10.0.0.9", labels={"aadpodidbinding": "reader"}, resourceVersion=version)
    document["metadata"]["managedFields"] = [{"fieldsV1": "NESTED"}]
    return json.dumps(document).encode().replace(b'"NESTED"', nested(levels))


def deep_custom(levels: int, spec: dict[str, Any], name: str = "deep", version: str = "900") -> bytes:
    """Write a custom resource whose spec keeps unknown fields."""
    document = {"metadata": {"namespace": "team", "name": name, "uid": name, "resourceVersion": version}}
    document["spec"] = {**spec, "metadata": "NESTED"}
    return json.dumps(document).encode().replace(b'"NESTED"', nested(levels))


IDENTITY = {"type": 0, "resourceID": make.identity().resource_id, "clientID": "c"}
BINDING = {"azureIdentity": "reader", "selector": "reader"}


def deep_identity(levels: int, name: str = "deep") -> bytes:
    """Write an AzureIdentity."""
    return deep_custom(levels, IDENTITY, name)


def deep_binding(levels: int, name: str = "deep") -> bytes:
    """Write an AzureIdentityBinding."""
    return deep_custom(levels, BINDING, name)


KINDS: list[Any] = [
    pytest.param(PODS, "/api/v1/namespaces/team/pods", deep_pod, id="pods"),
    pytest.param(SELECTED_PODS, "/api/v1/namespaces/team/pods", deep_pod, id="selected-pods"),
    pytest.param(IDENTITIES, f"{GROUP}/azureidentities", deep_identity, id="identities"),
    pytest.param(BINDINGS, f"{GROUP}/azureidentitybindings", deep_binding, id="bindings"),
]


@asynccontextmanager
async def following(api: Api, kind: Kind[Any]) -> AsyncIterator[Reflector[Any]]:
    """Run a reflector whose end, if it has one, is the test's failure."""
    reflector = Reflector(api, kind, Store[Any](), watching=Watching(jitter=lambda: 0.0))
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def open_watch(server: ScriptedServer, number: int = 1) -> Watch:
    """Return the last watch, as soon as there are so many."""
    await eventually(lambda: len(server.watches) >= number, "the watch")
    return server.watches[-1]


@pytest.mark.usefixtures("daemons_limit")
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(("kind", "path", "make_deep"), KINDS)
async def test_as_deep_as_the_api_server_stores_is_read(
    kind: Kind[Any], path: str, make_deep: Any, levels: int, api: Api, server: ScriptedServer
) -> None:
    """An object nested as deeply as the API server stores is read by list, by watch and by name."""
    server.put(f"{path}/deep", make_deep(levels))
    server.put(f"{path}/neighbour", make_deep(1, "neighbour"))
    async with following(api, kind) as reflector:
        await eventually(lambda: {DEEP, NEIGHBOUR} <= reflector.store.as_mapping().keys(), "both are listed")
        watch = await open_watch(server)
        watch.send_bytes(b'{"type":"ADDED","object":' + make_deep(levels, "later") + b"}\n")
        await eventually(lambda: ObjectKey("team", "later") in reflector.store, "the event")
        assert reflector.odd == {}
    assert await api.get(kind, DEEP)


@pytest.mark.parametrize("levels", [1_500, 9_999, 30_000])
@pytest.mark.parametrize(("kind", "path", "make_deep"), KINDS)
async def test_what_is_too_deep_for_a_process_is_read_without_its_depths(
    kind: Kind[Any], path: str, make_deep: Any, levels: int, api: Api, server: ScriptedServer
) -> None:
    """Where the limit could not be raised, or is the interpreter's own: what we read of it is shallow, and is there."""
    server.put(f"{path}/deep", make_deep(levels))
    server.put(f"{path}/neighbour", make_deep(1, "neighbour"))
    async with following(api, kind) as reflector:
        watch = await open_watch(server)
        watch.send_bytes(b'{"type":"ADDED","object":' + make_deep(levels, "later") + b"}\n")
        await eventually(lambda: ObjectKey("team", "later") in reflector.store, "the event")
        assert {DEEP, NEIGHBOUR} <= reflector.store.as_mapping().keys()
        assert (reflector.odd, reflector.lists, reflector.failures) == ({}, 1, 0)
    assert await api.get(kind, DEEP)


async def test_what_would_be_written_back_without_its_depths_is_odd(api: Api, server: ScriptedServer) -> None:
    """A whole object that had to be cut is named and left out; its neighbours are there, and nobody writes it."""
    path = f"{GROUP}/azureidentities"
    server.put(f"{path}/deep", deep_identity(30_000))
    server.put(f"{path}/neighbour", deep_identity(1, "neighbour"))
    kind = IDENTITIES.as_json()
    response = await api.list(kind)
    assert response.items.keys() == {NEIGHBOUR}
    assert response.odd.keys() == {DEEP}
    with pytest.raises(MalformedObjectError, match="team/deep: "):
        await api.get(kind, DEEP)


async def test_a_mistake_that_nobody_thought_of_is_an_odd_object(
    api: Api, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the reading of one object raises concerns that object: told of once, and its neighbours are there."""

    def parse(document: Any) -> str:
        if document["metadata"]["name"] == "deep":
            raise ZeroDivisionError("a bug")
        return "fine"

    from podidentity.kube.resources import _custom  # noqa: PLC0415  # the reader that every custom resource has

    kind = Kind("g", "v1", "things", "Thing", _custom(parse))
    path = "/apis/g/v1/namespaces/team/things"
    for name in ("deep", "neighbour"):
        server.put(f"{path}/{name}", {"metadata": {"namespace": "team", "name": name}})
    async with following(api, kind) as reflector:
        watch = await open_watch(server)
        for version in ("101", "102"):
            watch.send("MODIFIED", {"metadata": {"namespace": "team", "name": "deep", "resourceVersion": version}})
        server.forget_history()
        watch.end()
        await open_watch(server, 2)
        await eventually(lambda: reflector.lists == 2, "the second list")
        assert reflector.store.as_mapping().keys() == {NEIGHBOUR}
        assert reflector.odd.keys() == {DEEP}
    assert [item.levelname for item in caplog.records if "a bug" in item.message].count("WARNING") == 1


async def test_an_event_of_nobody_leads_to_a_fresh_list(api: Api, server: ScriptedServer) -> None:
    """An object that is so odd that it has no name may be any: what the store says of all is in doubt."""
    async with following(api, PODS) as reflector:
        watch = await open_watch(server)
        server.put("/api/v1/namespaces/team/pods/missed", pod("missed"))
        watch.send_bytes(b'{"type":"MODIFIED","object":{"metadata":"gone"}}\n')
        await eventually(lambda: ObjectKey("team", "missed") in reflector.store, "the fresh list")


@pytest.mark.usefixtures("daemons_limit")
@pytest.mark.parametrize("levels", LEVELS)
async def test_both_daemons_go_on(levels: int, api: Api, server: ScriptedServer) -> None:
    """The watches of a whole MIC and of an NMI in managed mode, with such an object of each kind of a tenant's."""
    server.put("/api/v1/namespaces/team/pods/deep", deep_pod(levels))
    server.put(f"{GROUP}/azureidentities/deep", deep_custom(levels, IDENTITY))
    server.put(f"{GROUP}/azureidentitybindings/deep", deep_custom(levels, BINDING))
    nmi = Cluster(api, Settings("n1", managed_mode=True, force_namespaced=True))
    mic = WatchedCluster(api)
    async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(nmi.run()), *(tasks.create_task(item.run()) for item in mic.reflectors)]
        await nmi.wait_until_synced()
        await mic.wait_until_synced()
        await eventually(lambda: len(server.watches) == len(mic.reflectors) + 4, "all watch")
        for watch in server.watches:
            if watch.request.path.endswith("/pods"):
                watch.send_bytes(b'{"type":"MODIFIED","object":' + deep_pod(levels, "later") + b"}\n")
        later = ObjectKey("team", "later")
        await eventually(lambda: nmi.by_name(later) and later in mic.pods, "the event")
        assert {pod.key for pod in nmi.with_address("10.0.0.9")} == {DEEP, later}
        assert DEEP in mic.identities
        assert DEEP in mic.bindings
        for task in running:
            task.cancel()
