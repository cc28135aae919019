"""MIC against a real HTTP Kubernetes API (the lab's) and machines in memory."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import yaml

import make
from podidentity.core.model import crd
from podidentity.core.model.arm import ArmState, IdentityId, Target
from podidentity.core.model.identities import AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding
from podidentity.core.model.policy import ConditionLevel, Policy
from podidentity.core.model.snapshot import Node, Pod
from podidentity.core.target.drift import TargetChange
from podidentity.errors import AzureError
from podidentity.kube.api import Api
from podidentity.kube.connection import direct_client
from podidentity.mic.lifecycle import follow_cluster
from podidentity.mic.settings import Settings
from podidentity.mic.wiring import assemble
from podidentity_lab.kubernetes import Kubernetes
from serving import serving, unused_port
from waiting import eventually


class Machines:
    """ARM in memory: `refused_identities` spoil a PATCH, targets in `slow` wait for their event."""

    def __init__(self) -> None:
        self.carries: dict[Target, set[IdentityId]] = {}
        self.refused_identities: set[IdentityId] = set()
        self.names_the_culprit = True
        self.slow: dict[Target, asyncio.Event] = {}
        self.patches: list[tuple[Target, TargetChange]] = []
        self.client_ids: dict[IdentityId, str] = {}

    async def get(self, target: Target) -> ArmState:
        """Return which identities a target carries."""
        identities = self.carries.get(target, set())
        return ArmState(frozenset(identities), tuple(self.client_ids.items()))

    async def client_id(self, identity: IdentityId) -> str:
        """Return the client ID of an identity."""
        return self.client_ids.get(identity, "")

    async def patch(self, target: Target, change: TargetChange, state: ArmState) -> ArmState:
        """Change a target's identities, unless one of them is to be refused."""
        del state
        self.patches.append((target, change))
        if target in self.slow:
            await self.slow[target].wait()
        bad = self.refused_identities & {*change.assign}
        if bad:
            names = " ".join(identity.text for identity in bad) if self.names_the_culprit else "something"
            raise AzureError(f"ARM refused: {names}", status=403, code="LinkedAuthorizationFailed")
        self.carries[target] = (self.carries.get(target, set()) | {*change.assign}) - {*change.unassign}
        return ArmState()


class World:
    """A cluster with MIC in it. `requests` has the method and path of each request to its API."""

    def __init__(self, kubernetes: Kubernetes, machines: Machines) -> None:
        self.kubernetes = kubernetes
        self.machines = machines
        self.requests: list[tuple[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.refuse_creation_of = ""
        self.refuse: tuple[str, str] | None = None
        self.refusal_status = 500
        self.watches_begun = 0
        self.api: Api | None = None
        self._watches = asyncio.Event()

    def add(self, *objects: Pod | Node | AzureIdentity | AzureIdentityBinding) -> None:
        """Create objects, as users and kubelets do."""
        for value in objects:
            resource, obj = rendered(value)
            self.kubernetes.storage.create(resource, obj)

    def remove_pod(self, pod: Pod) -> None:
        """Delete a pod at once."""
        self.kubernetes.storage.delete("pods", *pod.key, grace_seconds=0)

    def states(self) -> dict[str, str]:
        """Return the state of each assigned identity by its name."""
        objects = self.kubernetes.storage.list("azureassignedidentities.aadpodidentity.k8s.io")
        return {obj["metadata"]["name"]: obj["status"]["status"] for obj in objects}

    def events(self) -> list[tuple[str, str]]:
        """Return the type and reason of each event."""
        return [(event["type"], event["reason"]) for event in self.kubernetes.storage.list("events")]

    def writes(self, plural: str = "azureassignedidentities") -> list[str]:
        """Return the methods of all writes of a kind, in their order."""
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
        task, end = asyncio.ensure_future(serving), asyncio.ensure_future(self._watches.wait())
        try:
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for future in (task, end):
                future.cancel()

    async def watched(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the API, note each request, and inject the faults that are set."""
        self.requests.append((scope["method"], scope["path"]))
        self.watches_begun += b"watch=true" in scope["query_string"]
        is_write = scope["method"] != "GET" and "azureassignedidentities" in scope["path"]
        self.under_way += is_write
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.refuse and scope["method"] == self.refuse[0] and self.refuse[1] in scope["path"]:
                await send({"type": "http.response.start", "status": self.refusal_status, "headers": []})
                await send({"type": "http.response.body", "body": b"{}"})
                return
            body = await receive() if is_write and scope["method"] == "POST" else {}
            if self.refuse_creation_of and self.refuse_creation_of.encode() in body.get("body", b""):
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b"{}"})
                return
            first = iter([body] if body else [])

            async def receive_again() -> Any:
                return next(first, None) or await receive()

            await self._until_cut(self.kubernetes.app(scope, receive_again, send))
        finally:
            self.under_way -= is_write

    async def until(self, condition: Callable[[], object], description: str) -> None:
        """Wait until a change makes `condition` true."""
        await eventually(condition, lambda: f"{description}; states: {self.states()}")


def rendered(value: Pod | Node | AzureIdentity | AzureIdentityBinding) -> tuple[str, dict[str, Any]]:
    """Return the resource of a value, and the value as an API object."""
    if isinstance(value, AzureIdentity):
        return "azureidentities.aadpodidentity.k8s.io", crd.render_identity(value)
    if isinstance(value, AzureIdentityBinding):
        return "azureidentitybindings.aadpodidentity.k8s.io", crd.render_binding(value)
    if isinstance(value, Node):
        spec = {"providerID": value.provider_id}
        return "nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": value.name}, "spec": spec}
    metadata = {"name": value.key.name, "namespace": value.key.namespace, "labels": dict(value.labels)}
    status = {"phase": value.phase}
    return "pods", {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": value.node},
        "status": status,
    }


class NoLogs:
    """Logs of containers that write none."""

    async def read(
        self, namespace: str, pod: str, container: str, *, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Yield nothing."""
        del namespace, pod, container, follow, tail_lines
        yield b""


@contextlib.asynccontextmanager
async def serve_api(world: World) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve the API on loopback; yield a client with the admin's rights."""
    kubernetes = world.kubernetes
    trust = ssl.create_default_context(cadata=kubernetes.ca_pem.decode())
    async with (
        serving(world.watched, kubernetes.tls_context()) as port,
        # MIC's own transport: httpx2's leaves a connection open whose TLS handshake a cancelled task was waiting for.
        direct_client(f"https://localhost:{port}", trust, httpx2.Timeout(60.0)) as http,
    ):
        http.headers["Authorization"] = f"Bearer {kubernetes.admin_token}"
        yield http


@contextlib.asynccontextmanager
async def running_mic(
    world: World, http: httpx2.AsyncClient, policy: Policy, settings: Settings
) -> AsyncIterator[None]:
    """Run a leader's term as `wiring` assembles it, with the world's machines in place of ARM."""
    settings = replace(settings, conditions=ConditionLevel.ALL, allow_list=policy.allow_list)
    mic = assemble(settings, Api(http), Api(http))
    async with asyncio.TaskGroup() as group:
        watches = group.create_task(follow_cluster(mic))
        await mic.cluster.wait_until_synced()
        term = group.create_task(mic.new_term(policy, world.machines).run())
        yield
        term.cancel()
        watches.cancel()


@pytest.fixture
def definitions() -> list[dict[str, Any]]:
    """Return the definitions that the manifests contain."""
    from pathlib import Path  # noqa: PLC0415  # only here

    text = (Path(__file__).parents[3] / "deploy/infra/deployment-rbac.yaml").read_text()
    return [
        document for document in yaml.safe_load_all(text) if document and document["kind"] == "CustomResourceDefinition"
    ]


async def played(definitions: list[dict[str, Any]], story: Callable[[World, Api], Any]) -> None:
    """Run an async story with a fresh cluster in which nothing runs."""
    world = World(Kubernetes(NoLogs()), Machines())
    async with serve_api(world) as http:
        for definition in definitions:
            answer = await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
            assert answer.status_code == 201, answer.text
        await story(world, Api(http))


@pytest.fixture
def play(definitions: list[dict[str, Any]]) -> Callable[..., Awaitable[None]]:
    """Return a function that runs an async story with a fresh cluster in which nothing runs."""
    return lambda story: played(definitions, story)


@pytest.fixture
def run_in_world(definitions: list[dict[str, Any]]) -> Callable[..., Awaitable[None]]:
    """Return a function that runs an async story with a fresh cluster and a running MIC."""

    async def run(
        story: Callable[[World], Any],
        settings: Settings | None = None,
        before: Iterable[AzureAssignedIdentity] = (),
        **policy: object,
    ) -> None:
        world = World(Kubernetes(NoLogs()), Machines())
        async with serve_api(world) as http:
            for definition in definitions:
                answer = await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
                assert answer.status_code == 201, answer.text
            world.api = Api(http)
            for item in before:
                finalized = replace(item, finalizers=(crd.FINALIZER,))
                world.kubernetes.storage.create(
                    "azureassignedidentities.aadpodidentity.k8s.io", crd.render_assigned(finalized)
                )
            async with running_mic(world, http, make.policy(**policy), settings or Settings()):
                await story(world)

    return run


@pytest.fixture
def unused_ports() -> tuple[int, int]:
    """Return two ports that are free now."""
    return unused_port(), unused_port()
