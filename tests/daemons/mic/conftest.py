"""MIC against a real HTTP Kubernetes API (the lab's) and machines in memory."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
import uvicorn
import yaml

import make
from podidentity.core import crd
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.cluster import Node, Pod
from podidentity.core.drift import Change
from podidentity.core.identities import AzureIdentity, AzureIdentityBinding, ObjectKey
from podidentity.errors import AzureError
from podidentity.kube.api import Api
from podidentity.kube.events import Recorder
from podidentity.lab.kubernetes import Kubernetes
from podidentity.mic.cluster import AssignedObjects, BindingEvents, ConfigMapRecords, WatchedCluster
from podidentity.mic.sync import Sync, first_record
from podidentity.mic.targets import Book, Tools, Workers


class Machines:
    """ARM in memory: `refused` identities spoil a PATCH, targets in `slow` wait for their event."""

    def __init__(self) -> None:
        self.carries: dict[Target, set[IdentityId]] = {}
        self.refused: set[IdentityId] = set()
        self.names_the_culprit = True
        self.slow: dict[Target, asyncio.Event] = {}
        self.patches: list[tuple[Target, Change]] = []

    async def get(self, target: Target) -> TargetState:
        """Say what a target carries."""
        return TargetState(frozenset(self.carries.get(target, set())))

    async def patch(self, target: Target, change: Change, state: TargetState) -> None:
        """Change it, unless told otherwise."""
        del state
        self.patches.append((target, change))
        if target in self.slow:
            await self.slow[target].wait()
        bad = self.refused & {*change.assign}
        if bad:
            names = " ".join(one.text for one in bad) if self.names_the_culprit else "something"
            raise AzureError(f"ARM refused: {names}", status=403, code="LinkedAuthorizationFailed")
        self.carries[target] = (self.carries.get(target, set()) | {*change.assign}) - {*change.unassign}


class World:
    """A cluster with MIC in it."""

    def __init__(self, kubernetes: Kubernetes, machines: Machines) -> None:
        self.kubernetes = kubernetes
        self.machines = machines

    def add(self, *objects: Pod | Node | AzureIdentity | AzureIdentityBinding) -> None:
        """Create objects, as users and kubelets do."""
        for one in objects:
            resource, obj = rendered(one)
            self.kubernetes.storage.create(resource, obj)

    def remove_pod(self, pod: Pod) -> None:
        """Delete a pod at once."""
        self.kubernetes.storage.delete("pods", *pod.key, grace_seconds=0)

    def states(self) -> dict[str, str]:
        """The state of each assigned identity, by its name."""
        listed = self.kubernetes.storage.list("azureassignedidentities.aadpodidentity.k8s.io")
        return {one["metadata"]["name"]: one["status"]["status"] for one in listed}

    def events(self) -> list[tuple[str, str]]:
        """Type and reason of each event."""
        return [(one["type"], one["reason"]) for one in self.kubernetes.storage.list("events")]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a change makes `condition` true."""
        try:
            async with asyncio.timeout(20):
                while not condition():  # noqa: ASYNC110  # the condition is on the far side of a socket
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"never came true: {what}; states: {self.states()}") from None


def rendered(one: Pod | Node | AzureIdentity | AzureIdentityBinding) -> tuple[str, dict[str, Any]]:
    """A value as an API object, with the resource it is stored under."""
    if isinstance(one, AzureIdentity):
        return "azureidentities.aadpodidentity.k8s.io", crd.render_identity(one)
    if isinstance(one, AzureIdentityBinding):
        return "azureidentitybindings.aadpodidentity.k8s.io", crd.render_binding(one)
    if isinstance(one, Node):
        spec = {"providerID": one.provider_id}
        return "nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": one.name}, "spec": spec}
    metadata = {"name": one.key.name, "namespace": one.key.namespace, "labels": dict(one.labels)}
    status = {"phase": one.phase}
    return "pods", {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": one.node},
        "status": status,
    }


class NoLogs:
    """No container says anything."""

    async def read(
        self, namespace: str, pod: str, container: str, *, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Give nothing."""
        del namespace, pod, container, follow, tail_lines
        yield b""


@contextlib.asynccontextmanager
async def served(kubernetes: Kubernetes) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve the API on loopback; a client that is the admin."""
    config = uvicorn.Config(kubernetes.app, port=0, proxy_headers=False, log_level="error", lifespan="off", ws="none")
    config.load()
    config.ssl = kubernetes.tls_context()
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    trust = ssl.create_default_context(cadata=kubernetes.ca_pem.decode())
    headers = {"Authorization": f"Bearer {kubernetes.admin_token}"}
    async with httpx2.AsyncClient(
        base_url=f"https://localhost:{port}", verify=trust, headers=headers, trust_env=False
    ) as http:
        yield http
    server.force_exit = server.should_exit = True
    await serving


@contextlib.asynccontextmanager
async def running_mic(world: World, http: httpx2.AsyncClient) -> AsyncIterator[None]:
    """Run a leader's term."""
    api, changed, policy = Api(http), asyncio.Event(), make.policy()
    cluster, recorder = WatchedCluster(api), Recorder(api)
    for store in cluster.stores:
        store.subscribe(lambda _change: changed.set())
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.run()) for one in cluster.reflectors]
        tasks.append(group.create_task(recorder.run()))
        for store in cluster.stores:
            await store.wait_until_synced()
        records = ConfigMapRecords(api, ObjectKey("default", "aad-pod-identity-config"), policy)
        book = Book(records, await first_record(records, cluster, policy))
        tools = Tools(world.machines, book, BindingEvents(recorder, cluster), policy, changed.set)
        sync = Sync(cluster, AssignedObjects(api, cluster), policy, changed)
        async with asyncio.TaskGroup() as workers:
            term = workers.create_task(sync.run(Workers(tools, workers), 3600))
            yield
            term.cancel()
            raise_after = [*tasks]
            for task in workers._tasks:
                task.cancel()
        for task in raise_after:
            task.cancel()


@pytest.fixture
def definitions() -> list[dict[str, Any]]:
    """The definitions that we ship."""
    from pathlib import Path  # noqa: PLC0415  # only here

    text = (Path(__file__).parents[3] / "deploy/infra/deployment-rbac.yaml").read_text()
    return [one for one in yaml.safe_load_all(text) if one and one["kind"] == "CustomResourceDefinition"]


@pytest.fixture
def run_in_world(definitions: list[dict[str, Any]]) -> Callable[..., None]:
    """Run an async story with a fresh cluster and a running MIC."""

    def run(story: Callable[[World], Any]) -> None:
        async def play() -> None:
            world = World(Kubernetes(NoLogs()), Machines())
            async with served(world.kubernetes) as http:
                for definition in definitions:
                    answer = await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
                    assert answer.status_code == 201, answer.text
                async with running_mic(world, http):
                    await story(world)

        asyncio.run(play())

    return run
