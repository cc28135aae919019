"""Kubernetes for bench/mic.py: the lab's API server in this process, or a real one with its etcd, on loopback.

Both have the definitions, report when an assigned identity becomes Assigned, and have no kubelet: pods only exist.
The real one has no controllers either, so nothing but MIC works beside it; `make cluster-ready` builds its program.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
import yaml

from daemons.mic import conftest as worlds
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding
from podidentity.core.model.snapshot import Node, Pod
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
from podidentity_lab.kubernetes import Kubernetes
from podidentity_lab.real import pki, plane, processes, program
from serving import unused_port
from waiting import eventually

ROOT = Path(__file__).parents[1]
ASSIGNED_RESOURCE = "azureassignedidentities.aadpodidentity.k8s.io"
WRITERS = 16
READY_SECONDS = 120.0
BOUND = ("setpriv", "--pdeathsig=KILL", "--")  # whoever kills the benchmark leaves no server behind
_KINDS: dict[str, Kind[Any]] = {
    "pods": PODS,
    "nodes": NODES,
    "azureidentities.aadpodidentity.k8s.io": IDENTITIES,
    "azureidentitybindings.aadpodidentity.k8s.io": BINDINGS,
}

ClusterObject = Pod | Node | AzureIdentity | AzureIdentityBinding
Report = Callable[[str, str], None]


class Cluster(Protocol):
    """What is measured against. `tell` is called with namespace and name of each pod that has become Assigned."""

    report: Report

    @property
    def calls(self) -> int | None:
        """Return how many requests there were; None when they are not counted."""
        ...

    async def create(self, objects: Iterable[ClusterObject], on_creation: Report = ...) -> None:
        """Create objects, and call `on_creation` with namespace and name of each."""
        ...


def definitions() -> list[dict[str, Any]]:
    """Return the definitions that we ship."""
    text = (ROOT / "deploy/infra/deployment-rbac.yaml").read_text()
    return [document for document in yaml.safe_load_all(text) if document["kind"] == "CustomResourceDefinition"]


def write_kubeconfig(folder: Path, server: str, ca_pem: bytes, token: str) -> str:
    """Write the administrator's kubeconfig; return its path."""
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


def _ignore(_namespace: str, _name: str) -> None:
    """Do nothing."""


class InProcess:
    """The lab's Kubernetes, in this process."""

    def __init__(self, world: worlds.World) -> None:
        self.report: Report = _ignore
        self._world = world

    @property
    def calls(self) -> int:
        """Return the number of all requests."""
        return len(self._world.requests)

    async def create(self, objects: Iterable[ClusterObject], on_creation: Report = _ignore) -> None:
        """Put the objects into the lab's storage."""
        for number, item in enumerate(objects):
            if isinstance(item, Pod):
                on_creation(*item.key)
            self._world.add(item)
            if number % 50 == 0:
                await asyncio.sleep(0)

    async def follow(self) -> None:
        """Watch the lab's storage until cancelled, and report what becomes Assigned."""
        storage = self._world.kubernetes.storage
        async for event in storage.watch(ASSIGNED_RESOURCE, None, storage.revision):
            spec, status = event.object["spec"], event.object.get("status") or {}
            if status.get("status") == "Assigned":
                self.report(spec["podNamespace"], spec["pod"])


@contextlib.asynccontextmanager
async def in_process(folder: Path) -> AsyncIterator[tuple[Cluster, str]]:
    """Serve the lab's API; yield the cluster and its kubeconfig."""
    world = worlds.World(Kubernetes(worlds.NoLogs()), worlds.Machines())
    async with worlds.serve_api(world) as http, asyncio.TaskGroup() as group:
        for definition in definitions():
            await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
        cluster = InProcess(world)
        following = group.create_task(cluster.follow())
        kubernetes = world.kubernetes
        yield cluster, write_kubeconfig(folder, str(http.base_url), kubernetes.ca_pem, kubernetes.admin_token)
        following.cancel()


class Real:
    """A real API server, with etcd."""

    calls = None

    def __init__(self, api: Api) -> None:
        self.report: Report = _ignore
        self._api = api
        self._store: Store[AzureAssignedIdentity] = Store()
        self._store.subscribe(self._note_assigned)
        self._namespaces: set[str] = {"default"}

    async def create(self, objects: Iterable[ClusterObject], on_creation: Report = _ignore) -> None:
        """Create the objects, several at a time, as controllers do."""
        rendered = [(item, *worlds.rendered(item)) for item in objects]
        for name in sorted(
            {body["metadata"].get("namespace", "default") for _, _, body in rendered} - self._namespaces
        ):
            self._namespaces.add(name)
            await self._api.create(NAMESPACES, {"metadata": {"name": name}})
        queue = iter(rendered)
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._create(queue, on_creation))

    async def _create(self, queue: Iterator[tuple[ClusterObject, str, dict[str, Any]]], on_creation: Report) -> None:
        for item, resource, body in queue:
            if isinstance(item, Pod):
                body["spec"]["containers"] = [{"name": "main", "image": "none"}]
                on_creation(*item.key)
            await self._api.create(_KINDS[resource], body)

    async def follow(self) -> None:
        """Watch until cancelled, and report what becomes Assigned."""
        await Reflector(self._api, ASSIGNED_IDENTITIES, self._store).run()

    def _note_assigned(self, change: Change[AzureAssignedIdentity]) -> None:
        if change.current is not None and change.current.state == AssignedState.ASSIGNED:
            self.report(*change.current.pod)


@contextlib.asynccontextmanager
async def real(folder: Path) -> AsyncIterator[tuple[Cluster, str]]:
    """Run a kube-apiserver and its etcd; yield the cluster and its kubeconfig. Raises LabError if never built."""
    kubernetes, keys = program.require(), pki.make(folder / "pki", [])
    etcd, port = f"http://127.0.0.1:{unused_port()}", unused_port()
    words = dict(plane.commands(kubernetes, keys, folder, folder))
    store = [*BOUND, kubernetes.component("etcd"), etcd, str(folder / "etcd")]
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
        await eventually(lambda: _answers(http, "/readyz"), "the API server is ready", READY_SECONDS)
        api = Api(http)
        for definition in definitions():
            await api.create(CRDS, definition)
        path = ASSIGNED_IDENTITIES.path("")
        await eventually(lambda: _answers(http, path), "the definitions are served", READY_SECONDS)
        cluster = Real(api)
        running.append(group.create_task(cluster.follow()))
        yield cluster, config
        for task in running:
            task.cancel()


async def _answers(http: httpx2.AsyncClient, path: str) -> bool:
    try:
        return (await http.get(path)).is_success
    except httpx2.HTTPError:
        return False
