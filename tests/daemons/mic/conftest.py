"""MIC against a real HTTP Kubernetes API (the lab's) and machines in memory."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
import yaml

import make
from podidentity.core import crd
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.cluster import Node, Pod
from podidentity.core.drift import Change
from podidentity.core.identities import AzureIdentity, AzureIdentityBinding, ObjectKey
from podidentity.errors import AzureError
from podidentity.kube.api import Api
from podidentity.kube.events import Recorder
from podidentity.lab.kubernetes import Kubernetes
from podidentity.mic.book import Book
from podidentity.mic.changes import Changes
from podidentity.mic.cluster import WatchedCluster
from podidentity.mic.objects import AssignedObjects
from podidentity.mic.records import ConfigMapRecords
from podidentity.mic.statuses import Statuses
from podidentity.mic.stories import BindingEvents
from podidentity.mic.sync import Pacing, Surroundings, Sync, first_record
from podidentity.mic.targets import Tools, Workers
from serving import serving, unused_port


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

    async def patch(self, target: Target, change: Change, state: TargetState) -> TargetState:
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
        return TargetState()


class World:
    """A cluster with MIC in it. `requests` is what was asked of its API: method and path."""

    def __init__(self, kubernetes: Kubernetes, machines: Machines) -> None:
        self.kubernetes = kubernetes
        self.machines = machines
        self.requests: list[tuple[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.refuse_creation_of = ""
        self.refuse: tuple[str, str] | None = None
        self._watches = asyncio.Event()

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

    def writes(self, plural: str = "azureassignedidentities") -> list[str]:
        """The methods of all writes of a kind, in their order."""
        return [method for method, path in self.requests if method != "GET" and plural in path]

    def annotate_namespace(self, name: str, annotations: dict[str, str]) -> None:
        """Give a namespace exactly these annotations."""

        def edit(obj: dict[str, Any]) -> None:
            obj["metadata"]["annotations"] = annotations

        self.kubernetes.storage.change("namespaces", None, name, edit)

    def cut_watches(self) -> None:
        """End every watch that is open now."""
        self._watches.set()
        self._watches = asyncio.Event()

    async def _until_cut(self, serving: Awaitable[None]) -> None:
        task, cut = asyncio.ensure_future(serving), asyncio.ensure_future(self._watches.wait())
        try:
            await asyncio.wait({task, cut}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for one in (task, cut):
                one.cancel()

    async def watched(self, scope: Any, receive: Any, send: Any) -> None:
        """The API, with a note of each request, and with faults."""
        self.requests.append((scope["method"], scope["path"]))
        counted = scope["method"] != "GET" and "azureassignedidentities" in scope["path"]
        self.under_way += counted
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.refuse and scope["method"] == self.refuse[0] and self.refuse[1] in scope["path"]:
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"{}"})
                return
            body = await receive() if counted and scope["method"] == "POST" else {}
            if self.refuse_creation_of and self.refuse_creation_of.encode() in body.get("body", b""):
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"{}"})
                return
            first = iter([body] if body else [])

            async def again() -> Any:
                return next(first, None) or await receive()

            await self._until_cut(self.kubernetes.app(scope, again, send))
        finally:
            self.under_way -= counted

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a change makes `condition` true."""
        try:
            async with asyncio.timeout(60):
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
async def served(world: World) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve the API on loopback; a client that is the admin."""
    kubernetes = world.kubernetes
    trust = ssl.create_default_context(cadata=kubernetes.ca_pem.decode())
    headers = {"Authorization": f"Bearer {kubernetes.admin_token}"}
    async with (
        serving(world.watched, kubernetes.tls_context()) as port,
        httpx2.AsyncClient(
            base_url=f"https://localhost:{port}", verify=trust, headers=headers, trust_env=False
        ) as http,
    ):
        yield http


@contextlib.asynccontextmanager
async def running_mic(world: World, http: httpx2.AsyncClient, policy: Policy, pacing: Pacing) -> AsyncIterator[None]:
    """Run a leader's term."""
    api, changes = Api(http), Changes()
    cluster, recorder = WatchedCluster(api, allow_list=policy.allow_list), Recorder(api)
    cluster.tell(changes)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one.run()) for one in cluster.reflectors]
        tasks.append(group.create_task(recorder.run()))
        await cluster.wait_until_synced()
        records = ConfigMapRecords(api, ObjectKey("default", "aad-pod-identity-config"), policy)
        book = Book(records, await first_record(records, cluster, policy))
        story = BindingEvents(recorder, cluster)
        tools = Tools(world.machines, book, story, policy, changes.target)
        board = Statuses(api, cluster)
        sync = Sync(Surroundings(cluster, AssignedObjects(api, cluster), story, board, changes), policy, pacing)
        async with asyncio.TaskGroup() as workers:
            term = workers.create_task(sync.run(Workers(tools, workers)))
            workers.create_task(board.run())
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


def played(definitions: list[dict[str, Any]], story: Callable[[World, Api], Any]) -> None:
    """Run an async story with a fresh cluster and nobody in it."""

    async def play() -> None:
        world = World(Kubernetes(NoLogs()), Machines())
        async with served(world) as http:
            for definition in definitions:
                answer = await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
                assert answer.status_code == 201, answer.text
            await story(world, Api(http))

    asyncio.run(play())


@pytest.fixture
def run_in_world(definitions: list[dict[str, Any]]) -> Callable[..., None]:
    """Run an async story with a fresh cluster and a running MIC."""

    def run(story: Callable[[World], Any], pacing: Pacing | None = None, **policy: object) -> None:
        async def play() -> None:
            world = World(Kubernetes(NoLogs()), Machines())
            async with served(world) as http:
                for definition in definitions:
                    answer = await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
                    assert answer.status_code == 201, answer.text
                async with running_mic(world, http, make.policy(**policy), pacing or Pacing()):
                    await story(world)

        asyncio.run(play())

    return run


@pytest.fixture
def unused_ports() -> tuple[int, int]:
    """Two ports that are free now."""
    return unused_port(), unused_port()
