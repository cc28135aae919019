"""2,000 pods on nodes that exist as objects only: there are no kubelets, but MIC must assign all identities."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from cluster.harness import LOCATION, Cluster, Identity, until
from podidentity_lab.nodes import SCALE_SET
from processes import cpu_seconds, peak_mib
from system.lab.running import Json

SCALE_SETS, NODES_EACH, PODS_EACH = 10, 10, 20
PODS = SCALE_SETS * NODES_EACH * PODS_EACH
NAMESPACE = "many"
NODES_PATH = "/api/v1/nodes"
PODS_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods"
ASSIGNED_PATH = "/apis/aadpodidentity.k8s.io/v1/azureassignedidentities"
WRITERS = 8
PATIENCE_SECONDS = 400.0  # 25 s when the machine has nothing else to do


@pytest.fixture(scope="module")
def nodes(installed: Cluster) -> Iterator[list[str]]:
    """Nodes of ten scale sets, as objects only."""
    like = installed.get("node", "node-0")["spec"]["providerID"]
    made = []
    for number in range(SCALE_SETS):
        scale_set = f"many-{number}"
        installed.admin.create_scale_set(like.split("/")[6], scale_set, LOCATION)
        provider_id = like.replace(f"/{SCALE_SET}/", f"/{scale_set}/").rpartition("/")[0]
        made += [_node(f"many-{number}-{at}", f"{provider_id}/{at}") for at in range(NODES_EACH)]
    _create(installed.api, NODES_PATH, made)
    names = [one["metadata"]["name"] for one in made]
    yield names
    _delete(installed.api, [f"{NODES_PATH}/{name}" for name in names])


@pytest.fixture(scope="module")
def identities(installed: Cluster) -> Iterator[list[Identity]]:
    """Five identities, bound in a namespace of their own."""
    installed.kubectl("create", "namespace", NAMESPACE)
    made = [installed.identity(f"many-{number}") for number in range(5)]
    for one in made:
        installed.bind(one, namespace=NAMESPACE)
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    until(lambda: installed.api.get(account).is_success, "the service account")
    yield made
    installed.delete("--wait=false", f"namespace/{NAMESPACE}")


def test_two_thousand_pods_are_assigned(
    installed: Cluster,
    nodes: list[str],
    identities: list[Identity],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each pod has its assigned identity in the state Assigned; when the pods are gone, so are these objects."""
    api, before, began = installed.api, _cpu_seconds(installed), time.monotonic()
    pods = [_pod(number, nodes[number % len(nodes)], identities[number % 5].name) for number in range(PODS)]
    _create(api, PODS_PATH, pods)
    created = time.monotonic() - began
    until(lambda: _states(api).count("Assigned") == PODS, f"{PODS} assigned identities", PATIENCE_SECONDS)
    assigned, used = time.monotonic() - began, _cpu_seconds(installed) - before
    assert len(_states(api)) == PODS
    _delete(api, [f"{PODS_PATH}/{one['metadata']['name']}" for one in pods])
    until(lambda: not _states(api), "the assigned identities to go", PATIENCE_SECONDS)
    gone = time.monotonic() - began - assigned
    with capsys.disabled():
        print(  # noqa: T201  # numbers to read, not to judge by: the machine does other things too
            f"\n{PODS} pods on {len(nodes)} nodes: created in {created:.1f} s, Assigned after {assigned:.1f} s, all "
            f"gone {gone:.1f} s later; MICs: {used:.1f} s of CPU until Assigned, at most {_rss_mib(installed):.0f} MiB"
        )


def _node(name: str, provider_id: str) -> Json:
    taint = {"key": "tests/no-kubelet", "effect": "NoSchedule"}
    spec = {"providerID": provider_id, "unschedulable": True, "taints": [taint]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec}


def _pod(number: int, node: str, binding: str) -> Json:
    spec = {
        "nodeName": node,
        "containers": [{"name": "main", "image": "none"}],
        "tolerations": [{"operator": "Exists"}],  # otherwise a silent node loses its pods
        "automountServiceAccountToken": False,
    }
    metadata = {"name": f"pod-{number}", "labels": {"aadpodidbinding": binding}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _create(api: httpx2.Client, path: str, objects: Iterable[Json]) -> None:
    with ThreadPoolExecutor(WRITERS) as writers:
        for answer in writers.map(lambda one: api.post(path, json=one), objects):
            assert answer.status_code == 201, answer.text


def _delete(api: httpx2.Client, paths: Iterable[str]) -> None:
    """Delete objects one by one.

    For all of them at once the API server might need more than the minute that it allows.
    """
    with ThreadPoolExecutor(WRITERS) as writers:
        for answer in writers.map(lambda path: api.delete(path, params={"gracePeriodSeconds": 0}), paths):
            assert answer.is_success, answer.text


def _states(api: httpx2.Client) -> list[str]:
    """Return the states of all assigned identities of the pods."""
    found = api.get(ASSIGNED_PATH).raise_for_status().json()["items"]
    ours = (one for one in found if one["spec"]["podNamespace"] == NAMESPACE)
    return [(one.get("status") or {}).get("status", "") for one in ours]


def _cpu_seconds(installed: Cluster) -> float:
    """Return the processor time that both MICs have used so far."""
    return sum(map(cpu_seconds, installed.processes("mic")))


def _rss_mib(installed: Cluster) -> float:
    """Return the most that either MIC has ever had in RAM."""
    return max(map(peak_mib, installed.processes("mic")))
