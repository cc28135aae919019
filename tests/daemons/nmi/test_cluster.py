"""Kubernetes as NMI sees it, through a real client: which identities a pod may use, and which tokens are dropped."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import make
from daemons.kube.scripted import Reply, ScriptedServer
from podidentity.core.model import allow_list, crd
from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import AzureAssignedIdentity, AzureIdentity, ObjectKey, SecretReference
from podidentity.core.tokens.sources import Source, source_of
from podidentity.errors import ForbiddenError
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.nmi.adapters.cluster import Cluster
from podidentity.nmi.settings import Settings
from waiting import eventually

pytestmark = pytest.mark.anyio

MANAGED = Settings("n1", managed_mode=True, force_namespaced=True)


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, as the daemon does."""
    return "asyncio"


@dataclass
class FollowerRecord:
    """A follower that notes what the cluster reports to it."""

    pods: list[str] = field(default_factory=list)
    changes_for_all: int = 0
    unused: list[Source] = field(default_factory=list)
    uids_gone: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    identities_that_came: set[str] = field(default_factory=set)

    def pod_changed(self, pod: ObjectKey) -> None:
        """Note the pod's name."""
        self.pods.append(pod.name)

    def pod_at(self, address: str) -> None:
        """Note the address."""
        self.addresses.append(address)

    def pod_gone(self, uid: str) -> None:
        """Note the pod's UID."""
        self.uids_gone.append(uid)

    def source_unused(self, source: Source) -> None:
        """Note the source."""
        self.unused.append(source)

    def identities_came(self, identities: frozenset[IdentityId]) -> None:
        """Note the identities' names."""
        self.identities_that_came |= {identity.name for identity in identities}

    def anything_changed(self) -> None:
        """Count."""
        self.changes_for_all += 1


@dataclass
class Following:
    """A cluster that follows a scripted API server."""

    server: ScriptedServer
    cluster: Cluster
    record: FollowerRecord
    failures: list[str]

    def send(self, kind: str, plural: str, obj: dict[str, Any]) -> None:
        """Send a change to the watch."""
        self.server.version += 1
        obj["metadata"] |= {"resourceVersion": str(self.server.version), "uid": f"uid-{obj['metadata']['name']}"}
        for watch in self.server.watches:
            if watch.request.path.endswith(f"/{plural}"):
                watch.send(kind, obj)

    async def tell(self, kind: str, plural: str, obj: dict[str, Any]) -> None:
        """Send a change to the watch, and return when it has arrived."""
        revision = self.cluster.revisions.latest
        self.send(kind, plural, obj)
        await eventually(lambda: self.cluster.revisions.latest > revision, f"{kind} {plural}")


@asynccontextmanager
async def following(directory: Path, settings: Settings) -> AsyncIterator[Following]:
    """Follow an empty cluster."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ScriptedServer.listening())
        client = open_client(find_cluster(str(server.write_kubeconfig(directory))))
        failures: list[str] = []
        cluster = Cluster(Api(await stack.enter_async_context(client)), settings, on_error=failures.append)
        record = FollowerRecord()
        cluster.subscribe(record)
        task = asyncio.create_task(cluster.run())
        watch_count = 3 if not settings.managed_mode else 5 if settings.namespace_allow_list else 4
        try:
            await eventually(lambda: len(server.watches) == watch_count and not cluster.delays(), "in step")
            yield Following(server, cluster, record, failures)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def resource_ids(follow: Following, namespace: str = "default") -> list[str]:
    """Return the names of the identities that the test's usual pod may use."""
    return [match.identity.key.name for match in follow.cluster.bound_to(make.pod(namespace=namespace))]


def source(identity: AzureIdentity) -> Source:
    """Return the source of an identity's tokens."""
    key = source_of(identity)
    assert isinstance(key, tuple)
    return key


async def test_bindings_of_the_pods_own_namespace_count(tmp_path: Path) -> None:
    """In managed mode a binding counts if its selector is the pod's label and it is in the pod's namespace."""
    async with following(tmp_path, MANAGED) as follow:
        for namespace in ("default", "team-b"):
            await follow.tell("ADDED", "azureidentities", crd.render_identity(make.identity("reader", namespace)))
            await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(make.binding(namespace=namespace)))
        await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(make.binding("x", selector="other")))
        await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(make.binding("y", selector="")))
        assert [match.binding.key for match in follow.cluster.bound_to(make.pod())] == [
            ObjectKey("default", "reader-binding")
        ]
        assert resource_ids(follow, "team-c") == []


async def test_a_namespace_uses_what_it_is_allowed(tmp_path: Path) -> None:
    """With --namespace-allow-list a namespace uses what its annotation's globs cover; without one, nothing."""
    async with following(tmp_path, Settings("n1", managed_mode=True, namespace_allow_list=True)) as follow:
        await follow.tell("ADDED", "azureidentities", crd.render_identity(make.identity()))
        await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(make.binding()))
        assert resource_ids(follow) == []
        annotated = {allow_list.ANNOTATION: make.resource_id("*")}
        await follow.tell("ADDED", "namespaces", {"metadata": {"name": "default", "annotations": annotated}})
        assert resource_ids(follow) == ["reader"]
        await follow.tell("MODIFIED", "namespaces", {"metadata": {"name": "default"}})
        assert resource_ids(follow) == []


async def test_tokens_go_when_nothing_leads_to_their_source(tmp_path: Path) -> None:
    """In managed mode a source's tokens are dropped when no binding and identity lead to it any more."""
    reader, twin = make.identity(), make.identity("twin", resource_id=make.resource_id("reader"))
    async with following(tmp_path, MANAGED) as follow:
        for identity in (reader, twin):
            await follow.tell("ADDED", "azureidentities", crd.render_identity(identity))
        other = make.binding("twin-binding", azure_identity="twin")
        for binding in (make.binding(), other):
            await follow.tell("ADDED", "azureidentitybindings", crd.render_binding(binding))
        await follow.tell("DELETED", "azureidentitybindings", crd.render_binding(other))
        assert follow.record.unused == []
        writer = make.identity(resource_id=make.resource_id("writer"))
        await follow.tell("MODIFIED", "azureidentities", crd.render_identity(writer))
        assert follow.record.unused == [source(reader)]
        await follow.tell("DELETED", "azureidentitybindings", crd.render_binding(make.binding()))
        assert follow.record.unused == [source(reader), source(writer)]


async def test_tokens_go_with_the_last_assigned_identity(tmp_path: Path) -> None:
    """In standard mode a source's tokens are dropped when its last assigned identity on the node changes or goes."""

    def assignment_of(name: str, identity: AzureIdentity) -> dict[str, Any]:
        assignment: AzureAssignedIdentity = make.assigned(make.pod(name), identity)
        return crd.render_assigned(assignment)

    reader, writer = make.identity(), make.identity(resource_id=make.resource_id("writer"))
    async with following(tmp_path, Settings("n1")) as follow:
        for name in ("one", "two"):
            await follow.tell("ADDED", "azureassignedidentities", assignment_of(name, reader))
        await follow.tell("DELETED", "azureassignedidentities", assignment_of("one", reader))
        assert follow.record.unused == []
        await follow.tell("MODIFIED", "azureassignedidentities", assignment_of("two", writer))
        assert follow.record.unused == [source(reader)]
        await follow.tell("DELETED", "azureassignedidentities", assignment_of("two", writer))
        assert follow.record.unused == [source(reader), source(writer)]


async def test_a_secret_is_read_by_name(tmp_path: Path) -> None:
    """A Secret's values are decoded from base64; without the right to read it the error names the Secret."""
    async with following(tmp_path, Settings("n1")) as follow:
        path = "/api/v1/namespaces/team/secrets/sp"
        follow.server.put(path, {"metadata": {"name": "sp", "namespace": "team"}, "data": {"x": "c2VjcmV0"}})
        assert await follow.cluster.read_secret(SecretReference("team", "sp")) == {"x": b"secret"}
        follow.server.answer_next(Reply.refusal(403, "secrets is forbidden"), to=lambda request: request.path == path)
        with pytest.raises(ForbiddenError, match="get secrets team/sp"):
            await follow.cluster.read_secret(SecretReference("team", "sp"))
        assert follow.failures == ["get_secret"]


async def test_a_pod_is_found_by_each_of_its_addresses(tmp_path: Path) -> None:
    """A dual-stack pod is found by each of its addresses, not only the first, however they are written."""
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
        await eventually(lambda: follow.cluster.with_address("10.1.0.7"), "known by its second address")
        assert [pod.key.name for pod in follow.cluster.with_address("fd00::1")] == ["web"]
        assert follow.record.addresses == ["fd00::1", "10.1.0.7"]
        follow.server.put("/api/v1/namespaces/team/pods/web", obj)
        assert [pod.key.name for pod in await follow.cluster.look("10.1.0.7")] == ["web"]
        follow.server.answer_next(Reply.refusal(403, "no"), to=lambda request: request.path == "/api/v1/pods")
        with pytest.raises(ForbiddenError):
            await follow.cluster.look("10.1.0.7")
        assert follow.failures == ["get_pod_list"]


async def test_a_silent_watch_of_pods_leaves_the_grants_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch of pods and those of the grants are confirmed separately: only pods can be asked of the API server."""
    async with following(tmp_path, Settings("n1")) as follow:
        monkeypatch.setattr(follow.cluster, "_pods", SimpleNamespace(confirmed_at=0.0))
        assert follow.cluster.confirmed_at() == 0.0
        assert follow.cluster.grants_confirmed_at() > 0.0


async def test_a_change_concerns_the_pods_of_its_selector_alone(tmp_path: Path) -> None:
    """Bindings and the identities that they name wake the pods of their selector, exceptions those of a namespace.

    What one tenant changes all the time makes nobody else's decision void.
    """
    async with following(tmp_path, MANAGED) as follow:
        for name, namespace, selector in (("own", "default", "reader"), ("neighbour", "team-b", "hostile")):
            metadata = {"name": name, "namespace": namespace, "labels": {"aadpodidbinding": selector}}
            follow.send("ADDED", "pods", {"metadata": metadata, "spec": {"nodeName": "n1"}, "status": {}})
        await eventually(lambda: follow.record.pods == ["own", "neighbour"], "both pods")
        own, neighbour = make.pod(), make.pod("neighbour", "team-b", selector="hostile")
        binding = crd.render_binding(make.binding("b", "team-b", "i", "hostile"))
        identity = crd.render_identity(make.identity("i", "team-b"))
        exception = {"metadata": {"name": "e", "namespace": "team-b"}, "spec": {"podLabels": {"a": "b"}}}
        first = follow.cluster.revision_of(own)
        for kind, plural, obj in (
            ("ADDED", "azureidentitybindings", binding),
            ("ADDED", "azureidentities", identity),
            ("ADDED", "azurepodidentityexceptions", exception),
            ("DELETED", "azureidentities", identity),
            ("DELETED", "azureidentitybindings", binding),
            ("DELETED", "azurepodidentityexceptions", exception),
        ):
            before = follow.cluster.revision_of(neighbour)
            await follow.tell(kind, plural, obj)
            assert follow.cluster.revision_of(neighbour) > before, (kind, plural)
        assert follow.cluster.revision_of(own) == first
        assert follow.record.pods[2:] == ["neighbour"] * 6
        assert follow.record.changes_for_all == 0
