"""Kubernetes for bench/mic.py: the lab's API server in this process, or a real one with its etcd, on loopback.

Either has the definitions, tells when an assigned identity became Assigned, and has no kubelet: pods are objects alone.
The real one has no controllers either, so nothing but MIC works beside it; `make cluster-ready` builds its program.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import yaml

from daemons.mic import conftest as worlds
from podidentity.core.cluster import Node, Pod
from podidentity.core.identities import AssignedState, AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.reflector import Reflector
from podidentity.kube.resources import (
    ASSIGNED_IDENTITIES,
    BINDINGS,
    CRDS,
    IDENTITIES,
    NAMESPACES,
    NODES,
    PODS,
    Kind,
)
from podidentity.kube.store import Change, Store
from podidentity.lab.kubernetes import Kubernetes
from podidentity.lab.real import pki, plane, processes, program
from serving import unused_port

ROOT = Path(__file__).parents[1]
ASSIGNED = "azureassignedidentities.aadpodidentity.k8s.io"
WRITERS = 16
READY_SECONDS = 120.0
BOUND = ("setpriv", "--pdeathsig=KILL", "--")  # whoever kills the benchmark leaves no server behind
_KINDS: dict[str, Kind[Any]] = {
    "pods": PODS,
    "nodes": NODES,
    "azureidentities.aadpodidentity.k8s.io": IDENTITIES,
    "azureidentitybindings.aadpodidentity.k8s.io": BINDINGS,
}

Made = Pod | Node | AzureIdentity | AzureIdentityBinding
Tell = Callable[[str, str], None]


class Cluster(Protocol):
    """What is measured against. `tell` is called with namespace and name of each pod that has become Assigned."""

    tell: Tell

    @property
    def calls(self) -> int | None:
        """How many requests there were, when that is counted."""
        ...

    async def create(self, objects: Iterable[Made], created: Tell = ...) -> None:
        """Create them; `created` is told of each."""
        ...


def definitions() -> list[dict[str, Any]]:
    """Those that we ship."""
    text = (ROOT / "deploy/infra/deployment-rbac.yaml").read_text()
    return [one for one in yaml.safe_load_all(text) if one["kind"] == "CustomResourceDefinition"]


def write_kubeconfig(folder: Path, server: str, ca_pem: bytes, token: str) -> str:
    """Write the administrator's kubeconfig; its path."""
    (folder / "ca.pem").write_bytes(ca_pem)
    cluster = {"server": server, "certificate-authority": str(folder / "ca.pem")}
    kubeconfig = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    return str(folder / "kubeconfig")


def _untold(_namespace: str, _name: str) -> None:
    """Nobody wants to know."""


class InProcess:
    """The lab's."""

    def __init__(self, world: worlds.World) -> None:
        self.tell: Tell = _untold
        self._world = world

    @property
    def calls(self) -> int:
        """All requests."""
        return len(self._world.requests)

    async def create(self, objects: Iterable[Made], created: Tell = _untold) -> None:
        """Put them into its storage."""
        for number, one in enumerate(objects):
            if isinstance(one, Pod):
                created(*one.key)
            self._world.add(one)
            if number % 50 == 0:
                await asyncio.sleep(0)

    async def follow(self) -> None:
        """Look at its storage, until cancelled."""
        storage = self._world.kubernetes.storage
        async for event in storage.watch(ASSIGNED, None, storage.revision):
            spec, status = event.object["spec"], event.object.get("status") or {}
            if status.get("status") == "Assigned":
                self.tell(spec["podNamespace"], spec["pod"])


@contextlib.asynccontextmanager
async def in_process(folder: Path) -> AsyncIterator[tuple[Cluster, str]]:
    """Serve the lab's API; the cluster, and its kubeconfig."""
    world = worlds.World(Kubernetes(worlds.NoLogs()), worlds.Machines())
    async with worlds.served(world) as http, asyncio.TaskGroup() as group:
        for definition in definitions():
            await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
        cluster = InProcess(world)
        following = group.create_task(cluster.follow())
        kubernetes = world.kubernetes
        yield cluster, write_kubeconfig(folder, str(http.base_url), kubernetes.ca_pem, kubernetes.admin_token)
        following.cancel()


class Real:
    """A real API server."""

    calls = None

    def __init__(self, api: Api) -> None:
        self.tell: Tell = _untold
        self._api = api
        self._store: Store[AzureAssignedIdentity] = Store()
        self._store.subscribe(self._changed)
        self._namespaces: set[str] = {"default"}

    async def create(self, objects: Iterable[Made], created: Tell = _untold) -> None:
        """Create them, several at a time, as controllers do."""
        made = [(one, *worlds.rendered(one)) for one in objects]
        for name in sorted({body["metadata"].get("namespace", "default") for _, _, body in made} - self._namespaces):
            self._namespaces.add(name)
            await self._api.create(NAMESPACES, {"metadata": {"name": name}})
        queue = iter(made)
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._create(queue, created))

    async def _create(self, queue: Iterator[tuple[Made, str, dict[str, Any]]], created: Tell) -> None:
        for one, resource, body in queue:
            if isinstance(one, Pod):
                body["spec"]["containers"] = [{"name": "main", "image": "none"}]
                created(*one.key)
            await self._api.create(_KINDS[resource], body)

    async def follow(self) -> None:
        """Watch, until cancelled."""
        await Reflector(self._api, ASSIGNED_IDENTITIES, self._store).run()

    def _changed(self, change: Change[AzureAssignedIdentity]) -> None:
        if change.after is not None and change.after.state == AssignedState.ASSIGNED:
            self.tell(*change.after.pod)


@contextlib.asynccontextmanager
async def real(folder: Path) -> AsyncIterator[tuple[Cluster, str]]:
    """Run a kube-apiserver and its etcd; the cluster, and its kubeconfig. Raises LabError when it was never built."""
    built, keys = program.built(), pki.make(folder / "pki", [])
    etcd, port = f"http://127.0.0.1:{unused_port()}", unused_port()
    words = dict(plane.commands(built, keys, folder, folder))
    store = [*BOUND, built.component("etcd"), etcd, str(folder / "etcd")]
    server = [
        *BOUND,
        *words["kube-apiserver"],
        f"--etcd-servers={etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--endpoint-reconciler-type=none",
        "--disable-admission-plugins=ServiceAccount",  # no controller makes any
    ]
    config = write_kubeconfig(folder, f"https://127.0.0.1:{port}", keys.ca_pem, keys.tokens[pki.ADMIN])
    async with open_client(find_cluster(config)) as http, asyncio.TaskGroup() as group:
        running = [
            group.create_task(processes.keep("etcd", store, folder / "etcd.log")),
            group.create_task(processes.keep("kube-apiserver", server, folder / "kube-apiserver.log")),
        ]
        await _until(lambda: _answers(http, "/readyz"))
        api = Api(http)
        for definition in definitions():
            await api.create(CRDS, definition)
        await _until(lambda: _answers(http, ASSIGNED_IDENTITIES.path("")))
        cluster = Real(api)
        running.append(group.create_task(cluster.follow()))
        yield cluster, config
        for one in running:
            one.cancel()


async def _answers(http: httpx2.AsyncClient, path: str) -> bool:
    try:
        return (await http.get(path)).is_success
    except httpx2.HTTPError:
        return False


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while not await holds():  # noqa: ASYNC110  # it becomes true in another process
            await asyncio.sleep(0.1)
