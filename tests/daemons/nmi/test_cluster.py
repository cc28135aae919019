"""Kubernetes as NMI sees it, through a real client: what bindings and namespaces give, and which tokens must go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import make
from daemons.kube.scripted import Reply, ScriptedServer, eventually
from podidentity.core import allowing, crd
from podidentity.core.identities import AzureAssignedIdentity, AzureIdentity, ObjectKey, SecretReference
from podidentity.core.sources import Source, source_of
from podidentity.errors import ForbiddenError
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.nmi.cluster import Cluster
from podidentity.nmi.settings import Settings

pytestmark = pytest.mark.anyio

MANAGED = Settings("n1", managed_mode=True, force_namespaced=True)


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, as the daemon does."""
    return "asyncio"


@dataclass
class Heard:
    """A follower that writes down what it is told."""

    unused: list[Source] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)

    def pod_changed(self, pod: ObjectKey) -> None:
        """Nothing to note."""

    def pod_at(self, address: str) -> None:
        """Note it."""
        self.known.append(address)

    def pod_gone(self, uid: str) -> None:
        """Note it."""
        self.gone.append(uid)

    def source_unused(self, source: Source) -> None:
        """Note it."""
        self.unused.append(source)

    def anything_changed(self) -> None:
        """Nothing to note."""


@dataclass
class Following:
    """A cluster that follows a scripted API server."""

    server: ScriptedServer
    cluster: Cluster
    heard: Heard
    failed: list[str]

    def send(self, kind: str, plural: str, obj: dict[str, Any]) -> None:
        """Tell of a change."""
        self.server.version += 1
        obj["metadata"] |= {"resourceVersion": str(self.server.version), "uid": f"uid-{obj['metadata']['name']}"}
        for watch in self.server.watches:
            if watch.request.path.endswith(f"/{plural}"):
                watch.send(kind, obj)

    async def tell(self, kind: str, plural: str, obj: dict[str, Any]) -> None:
        """Tell of a change, and return when it has arrived."""
        before = self.cluster.revision
        self.send(kind, plural, obj)
        await eventually(lambda: self.cluster.revision > before, f"{kind} {plural}")


@asynccontextmanager
async def following(directory: Path, settings: Settings) -> AsyncIterator[Following]:
    """Follow an empty cluster."""
    async with AsyncExitStack() as opened:
        server = await opened.enter_async_context(ScriptedServer.listening())
        client = open_client(find_cluster(str(server.write_kubeconfig(directory))))
        failed: list[str] = []
        cluster = Cluster(Api(await opened.enter_async_context(client)), settings, on_error=failed.append)
        heard = Heard()
        cluster.tell(heard)
        task = asyncio.create_task(cluster.run())
        expected = 3 if not settings.managed_mode else 5 if settings.namespace_allow_list else 4
        try:
            await eventually(lambda: len(server.watches) == expected and not cluster.behind(), "in step")
            yield Following(server, cluster, heard, failed)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def chosen(follow: Following, namespace: str = "default") -> list[str]:
    """Name the identities that the usual pod may use."""
    return [match.identity.key.name for match in follow.cluster.bound_to(make.pod(namespace=namespace))]


def source(identity: AzureIdentity) -> Source:
    """Where its token comes from."""
    found = source_of(identity)
    assert isinstance(found, tuple)
    return found


async def test_bindings_of_the_pods_own_namespace_count(tmp_path: Path) -> None:
    """Managed mode: selector and label, binding and identity in the pod's namespace."""
    async with following(tmp_path, MANAGED) as follow:
        for namespace in ("default", "team-b"):
            await follow.tell("ADDED", "azureidentities", crd.render_identity(make.identity("reader", namespace)))
            await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(make.binding(namespace=namespace)))
        await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(make.binding("x", selector="other")))
        await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(make.binding("y", selector="")))
        assert [match.binding.key for match in follow.cluster.bound_to(make.pod())] == [
            ObjectKey("default", "reader-binding")
        ]
        assert chosen(follow, "team-c") == []


async def test_a_namespace_uses_what_it_is_allowed(tmp_path: Path) -> None:
    """--namespace-allow-list: without the annotation nothing, with it what its globs cover, at once."""
    async with following(tmp_path, Settings("n1", managed_mode=True, namespace_allow_list=True)) as follow:
        await follow.tell("ADDED", "azureidentities", crd.render_identity(make.identity()))
        await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(make.binding()))
        assert chosen(follow) == []
        annotated = {allowing.ANNOTATION: make.resource_id("*")}
        await follow.tell("ADDED", "namespaces", {"metadata": {"name": "default", "annotations": annotated}})
        assert chosen(follow) == ["reader"]
        await follow.tell("MODIFIED", "namespaces", {"metadata": {"name": "default"}})
        assert chosen(follow) == []


async def test_tokens_go_when_nothing_leads_to_their_source(tmp_path: Path) -> None:
    """Managed mode: an identity that is changed or gone, a binding that is gone; not while another leads there too."""
    reader, twin = make.identity(), make.identity("twin", resource_id=make.resource_id("reader"))
    async with following(tmp_path, MANAGED) as follow:
        for identity in (reader, twin):
            await follow.tell("ADDED", "azureidentities", crd.render_identity(identity))
        other = make.binding("twin-binding", azure_identity="twin")
        for binding in (make.binding(), other):
            await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(binding))
        await follow.tell("DELETED", "azureidentitybindings", crd.render_binding(other))
        assert follow.heard.unused == []
        changed = make.identity(resource_id=make.resource_id("writer"))
        await follow.tell("MODIFIED", "azureidentities", crd.render_identity(changed))
        assert follow.heard.unused == [source(reader)]
        await follow.tell("DELETED", "azureidentitybindings", crd.render_binding(make.binding()))
        assert follow.heard.unused == [source(reader), source(changed)]


async def test_tokens_go_with_the_last_assigned_identity(tmp_path: Path) -> None:
    """Standard mode: changed or deleted; not while another pod of this node is assigned the same."""

    def of(name: str, identity: AzureIdentity) -> dict[str, Any]:
        assigned: AzureAssignedIdentity = make.assigned(make.pod(name), identity)
        return crd.render_assigned(assigned)

    reader, changed = make.identity(), make.identity(resource_id=make.resource_id("writer"))
    async with following(tmp_path, Settings("n1")) as follow:
        for name in ("one", "two"):
            await follow.tell("ADDED", "azureassignedidentities", of(name, reader))
        await follow.tell("DELETED", "azureassignedidentities", of("one", reader))
        assert follow.heard.unused == []
        await follow.tell("MODIFIED", "azureassignedidentities", of("two", changed))
        assert follow.heard.unused == [source(reader)]
        await follow.tell("DELETED", "azureassignedidentities", of("two", changed))
        assert follow.heard.unused == [source(reader), source(changed)]


async def test_a_secret_is_read_by_name(tmp_path: Path) -> None:
    """Decoded from base64; a role that may not read it is an error that says so."""
    async with following(tmp_path, Settings("n1")) as follow:
        path = "/api/v1/namespaces/team/secrets/sp"
        follow.server.put(path, {"metadata": {"name": "sp", "namespace": "team"}, "data": {"x": "c2VjcmV0"}})
        assert await follow.cluster.read_secret(SecretReference("team", "sp")) == {"x": b"secret"}
        follow.server.answer_next(Reply.refusal(403, "secrets is forbidden"), to=lambda asked: asked.path == path)
        with pytest.raises(ForbiddenError, match="get secrets team/sp"):
            await follow.cluster.read_secret(SecretReference("team", "sp"))
        assert follow.failed == ["get_secret"]


async def test_a_pod_is_found_by_each_of_its_addresses(tmp_path: Path) -> None:
    """Dual-stack pods: also by the one that is not first, however it is written."""
    async with following(tmp_path, Settings("n1")) as follow:
        obj = {
            "metadata": {"name": "web", "namespace": "team"},
            "spec": {"nodeName": "n1"},
            "status": {
                "phase": "Running",
                "podIP": "FD00::1",
                "podIPs": [{"ip": "FD00:0::1"}, {"ip": "::ffff:10.1.0.7"}],
            },
        }
        follow.send("ADDED", "pods", obj)
        await eventually(lambda: follow.cluster.at("10.1.0.7"), "known by its second address")
        assert [pod.key.name for pod in follow.cluster.at("fd00::1")] == ["web"]
        assert follow.heard.known == ["fd00::1", "10.1.0.7"]
        follow.server.put("/api/v1/namespaces/team/pods/web", obj)
        assert [pod.key.name for pod in await follow.cluster.look("10.1.0.7")] == ["web"]
        follow.server.answer_next(Reply.refusal(403, "no"), to=lambda asked: asked.path == "/api/v1/pods")
        with pytest.raises(ForbiddenError):
            await follow.cluster.look("10.1.0.7")
        assert follow.failed == ["get_pod_list"]


async def test_a_silent_watch_of_pods_leaves_the_grants_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has an address can be asked of the API server; only then the watches of the grants must be in step."""
    async with following(tmp_path, Settings("n1")) as follow:
        monkeypatch.setattr(follow.cluster, "_pods", SimpleNamespace(confirmed_at=0.0))
        assert follow.cluster.confirmed() == 0.0
        assert follow.cluster.granted_as_of() > 0.0
