"""The same client against the lab's Kubernetes, over real TLS, with a service account's token."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from podidentity import errors
from podidentity.core.model import crd
from podidentity.core.model.identities import AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.kube.api import Api, Selection
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.election import Candidate, Election
from podidentity.kube.events import Recorder, Subject
from podidentity.kube.reflector import Reflector
from podidentity.kube.resources import ASSIGNED_IDENTITIES, BINDINGS, CRDS, ENDPOINTS, LEASES, NODES, PODS
from podidentity.kube.store import Store, addresses, pod_of
from podidentity.nmi.adapters.cluster import Cluster
from podidentity.nmi.settings import Settings
from podidentity_lab.kubernetes import Kubernetes
from serving import serving
from waiting import eventually

WEB = ObjectKey("default", "web")
IDENTITY = AzureIdentity(ObjectKey("default", "id"), client_id="c")
BINDING = AzureIdentityBinding(ObjectKey("default", "b"), "id", "sel")
ASSIGNED_IDENTITY = AzureAssignedIdentity(ObjectKey("default", "web-default-id"), IDENTITY, BINDING, WEB, "n1")


class _NoLogs:
    async def read(self, *_: object, **__: object) -> AsyncIterator[bytes]:
        """Return nothing: no containers here."""
        yield b""


@pytest.fixture
async def lab() -> AsyncIterator[tuple[Kubernetes, int]]:
    """Return the lab's Kubernetes and the port on which it is served."""
    kubernetes = Kubernetes(_NoLogs())
    async with serving(kubernetes.app, kubernetes.tls_context()) as port:
        yield kubernetes, port


@pytest.fixture
async def api(lab: tuple[Kubernetes, int], tmp_path: Path) -> AsyncIterator[Api]:
    """Return an Api with the lab admin's token."""
    kubernetes, port = lab
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(_kubeconfig(kubernetes.ca_pem, port, kubernetes.admin_token)))
    path.chmod(0o600)
    async with open_client(find_cluster(str(path))) as http:
        lab_api = Api(http)
        await lab_api.create(CRDS, _definition("azureassignedidentities", "AzureAssignedIdentity"))
        yield lab_api


def _kubeconfig(ca_pem: bytes, port: int, token: str) -> dict[str, Any]:
    cluster = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority-data": base64.b64encode(ca_pem).decode(),
    }
    return {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": token}}],
    }


def _definition(plural: str, kind: str) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    names = {"plural": plural, "kind": kind, "singular": kind.lower(), "listKind": f"{kind}List"}
    version = {"name": crd.VERSION, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "metadata": {"name": f"{plural}.{crd.GROUP}"},
        "spec": {"group": crd.GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _pod(name: str = "web") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "labels": {"aadpodidbinding": "sel"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}]},
    }


async def test_reflectors_follow_the_lab(api: Api, lab: tuple[Kubernetes, int]) -> None:
    """What NMI needs: pods of its node by address, assigned identities by pod, followed through changes."""
    storage = lab[0].storage
    pods, assigned_identities = Store[Pod](), Store[AzureAssignedIdentity]()
    by_address, by_pod = pods.index(addresses), assigned_identities.index(pod_of)
    reflectors = (
        Reflector(api, PODS, pods, selection=Selection(fields="spec.nodeName=n1")),
        Reflector(api, ASSIGNED_IDENTITIES, assigned_identities),
    )
    tasks = [asyncio.create_task(reflector.run()) for reflector in reflectors]
    await asyncio.gather(pods.wait_until_synced(), assigned_identities.wait_until_synced())
    storage.create("pods", _pod())
    await eventually(lambda: by_address.find("10.244.1.2"), "the pod")
    assert by_address.find("10.244.1.2")[0].selector == "sel"

    assigned_identity = await api.create(ASSIGNED_IDENTITIES, crd.render_assigned(ASSIGNED_IDENTITY))
    await eventually(lambda: by_pod.find(WEB), "the assigned identity")
    await api.patch(
        ASSIGNED_IDENTITIES, assigned_identity.key, [{"op": "replace", "path": "/status/status", "value": "Assigned"}]
    )
    await eventually(lambda: by_pod.find(WEB)[0].state == "Assigned", "the new state")
    await api.patch(ASSIGNED_IDENTITIES, assigned_identity.key, {"metadata": {"finalizers": None}})
    await api.delete(ASSIGNED_IDENTITIES, assigned_identity.key)
    await eventually(lambda: not by_pod.find(WEB), "the deletion")
    assert [reflector.lists for reflector in reflectors] == [1, 1]
    for task in tasks:
        task.cancel()


async def test_a_direct_look_by_address(api: Api, lab: tuple[Kubernetes, int]) -> None:
    """NMI's direct request by address finds a pod that its watch has not shown yet."""
    lab[0].storage.create("pods", _pod())
    response = await api.list(PODS, Selection(fields="status.podIP=10.244.1.2"))
    assert [item.key for item in response.values] == [WEB]
    assert (await api.list(PODS, Selection(fields="status.podIP=10.244.1.9"))).values == ()


async def test_errors_of_the_lab_are_typed(api: Api, lab: tuple[Kubernetes, int], tmp_path: Path) -> None:
    """404, 409 and 401 of the lab's API server raise the same errors as those of the scripted server."""
    with pytest.raises(errors.NotFoundError, match='"nobody" not found'):
        await api.get(PODS, ObjectKey("default", "nobody"))
    with pytest.raises(errors.NotFoundError, match="CustomResourceDefinition"):
        await api.list(BINDINGS)
    await api.create(NODES, {"metadata": {"name": "n1"}})
    with pytest.raises(errors.ConflictError):
        await api.create(NODES, {"metadata": {"name": "n1"}})
    path = tmp_path / "stranger"
    path.write_text(json.dumps(_kubeconfig(lab[0].ca_pem, lab[1], "stranger")))
    async with open_client(find_cluster(str(path))) as http:
        with pytest.raises(errors.ForbiddenError):
            await Api(http).list(PODS)


async def test_a_server_with_another_ca_is_not_trusted(lab: tuple[Kubernetes, int], tmp_path: Path) -> None:
    """A server with a certificate of another CA is not sent the token."""
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(_kubeconfig(Kubernetes(_NoLogs()).ca_pem, lab[1], "t")))
    async with open_client(find_cluster(str(path))) as http:
        with pytest.raises(errors.UnreachableError, match="certificate"):
            await Api(http).list(PODS)


async def test_election_and_events_on_the_lab(api: Api, lab: tuple[Kubernetes, int]) -> None:
    """Both locks and an event are accepted by a server that checks what it stores."""
    election = Election(api, Candidate("mic-0"))
    led = asyncio.Event()

    async def lead() -> None:
        led.set()
        await asyncio.Event().wait()

    recorder = Recorder(api)
    tasks = [asyncio.create_task(election.run(lead)), asyncio.create_task(recorder.run())]
    await led.wait()
    key = ObjectKey("default", "aad-pod-identity-mic")
    assert (await api.get(LEASES, key))["spec"]["holderIdentity"] == "mic-0"
    assert "annotations" in (await api.get(ENDPOINTS, key))["metadata"]
    subject = Subject.of_kind(ASSIGNED_IDENTITIES, ASSIGNED_IDENTITY.key)
    recorder.record(subject, "Warning", "status update error", "m")
    await eventually(lambda: lab[0].storage.list("events"), "the event")
    (event,) = lab[0].storage.list("events", "default")
    assert event["involvedObject"]["name"] == "web-default-id"
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    assert (await api.get(LEASES, key))["spec"]["holderIdentity"] == ""
    tasks[1].cancel()


async def test_finished_pods_are_nobodys(api: Api, lab: tuple[Kubernetes, int]) -> None:
    """NMI leaves them out: any number stays on a node, and their addresses are given to others."""
    storage = lab[0].storage
    cluster, ended_pods = Cluster(api, Settings("n1")), list[ObjectKey]()
    cluster.on_pods(lambda: ended_pods.extend(key for key in (WEB,) if cluster.by_name(key) is None))
    storage.create("pods", _pod("done") | {"status": {"phase": "Succeeded", "podIP": "10.244.1.2"}})
    storage.create("pods", _pod())
    task = asyncio.create_task(cluster.run())
    await eventually(lambda: cluster.by_name(WEB), "the pod")
    assert len(cluster._stores.pods) == 1
    assert [pod.key for pod in await cluster.look("10.244.1.2")] == [WEB]

    def fail(obj: dict[str, Any]) -> None:
        obj["status"]["phase"] = "Failed"

    storage.change("pods", *WEB, fail)
    await eventually(lambda: ended_pods == [WEB], "the end of the pod")
    assert len(cluster._stores.pods) == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
