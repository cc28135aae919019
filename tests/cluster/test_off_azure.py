"""A cluster of which no node is an Azure machine, as on kind: NMI with the broker alone, without MIC.

It has a cluster of its own: nodes are Azure machines, or not, from their start.
"""

import json
from collections.abc import Iterator, Mapping

import pytest

from cluster import door_sdks
from cluster.brokers import create, install_client
from cluster.door_sdks import METADATA
from cluster.doors import NODES, ON_HOST, Doors, asking, asking_pod, set_up
from cluster.harness import start, until
from cluster.programs import BRIEFLY
from cluster.webhooks import podidentity
from interop.managed.programs import SDKS, Sdk
from podidentity_lab import control
from podidentity_lab.directory import Directory
from system.lab.running import Json


@pytest.fixture(scope="module")
def doors(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:  # noqa: ARG001  # or none
    """A cluster that is not on Azure, with NMI, the broker, and pods that ask."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with start(home, "--nodes", str(len(NODES)), "--off-azure") as cluster, asking(cluster, set_up(cluster)) as one:
        yield one


@pytest.fixture(scope="module")
def sdks(doors: Doors) -> str:
    """The name of a pod in which SDKs of two ages ask by the metadata address, as far as they can be had here."""
    available = [sdk for sdk in SDKS if install_client(sdk.client)]
    create(doors.cluster, door_sdks.pod(doors.cluster, doors.identity, "sdks", NODES[1], available, METADATA))
    return "sdks"


@pytest.fixture(scope="module")
def sdk_answers(doors: Doors, sdks: str) -> Mapping[tuple[str, str], Json | str]:
    """What each SDK was answered, by the SDK's client and the door."""
    return door_sdks.answers(doors.cluster.finished(sdks, ON_HOST))


@pytest.mark.usefixtures("sdks")  # they ask while other tests run
def test_no_node_is_an_azure_machine_and_none_has_the_metadata_address(doors: Doors) -> None:
    """No node has a provider, and what runs on a node's own network finds no way to the metadata address."""
    assert [node["spec"].get("providerID") for node in doors.cluster.get("nodes")["items"]] == [None] * len(NODES)
    pods = {f"lost-{node}": node for node in NODES}
    create(doors.cluster, *(asking_pod("", name, ON_HOST, pods[name], BRIEFLY, hostNetwork=True) for name in pods))
    for name in pods:
        assert json.loads(doors.cluster.finished(name, ON_HOST)) == ["OSError", ""]  # no route: nobody even refuses


@pytest.mark.parametrize("pod", ["near", "far"])
def test_a_pod_gets_its_token_by_the_metadata_address(doors: Doors, pod: str) -> None:
    """On each node a pod with nothing but a binding is answered at the address that no node has."""
    until(lambda: doors.ask(pod, "/metadata")[0] == 200, f"a token for {pod}")
    assert doors.owner(pod, "/metadata") == doors.identity


def test_a_pod_on_the_nodes_network_has_the_token_file(doors: Doors) -> None:
    """A pod on the node's network, which has no metadata address, gets its token by its file."""
    assert doors.owner("on-host", "/token-file") == doors.identity


def test_without_a_grant_a_pod_is_told_so_at_once(doors: Doors) -> None:
    """NMI does not wait for MIC, which is not there: the answer is IMDS's own refusal."""
    status, document = doors.ask("outside", "/metadata")
    assert status == 400
    assert document["error_description"].startswith("Identity not found")


@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: f"{sdk.title}-{sdk.version}".replace(" ", "-"))
def test_an_sdk_of_either_age_gets_its_token_unmodified(
    doors: Doors, sdk_answers: Mapping[tuple[str, str], Json | str], sdk: Sdk
) -> None:
    """`ManagedIdentityCredential` and `DefaultAzureCredential` take the node for an Azure machine and get tokens."""
    if not install_client(sdk.client):
        pytest.skip(f"{sdk.title} {sdk.version} cannot be had here")
    owners = door_sdks.owners(sdk_answers[sdk.client, METADATA])
    assert owners == {"managed": doors.identity, "default": doors.identity}


def test_nobody_was_missed(doors: Doors) -> None:
    """There is no MIC, nothing was put on a machine, no metadata service was asked, and `doctor` finds all well."""
    cluster = doors.cluster
    assert [item["metadata"]["name"] for item in cluster.get("pods", "-A", "-l", "component=mic")["items"]] == []
    kinds = {item["spec"]["names"]["plural"] for item in cluster.get("customresourcedefinitions")["items"]}
    assert "azureidentities" in kinds
    assert "azureassignedidentities" not in kinds
    entries = control.ask(Directory(cluster.lab.directory), "GET", "/azure/log")
    assert [entry for entry in entries if entry["service"] == "imds" or "virtualMachine" in json.dumps(entry)] == []
    assert cluster.imds_packets() == doors.packets == 0
    findings = json.loads(podidentity(cluster, "doctor", "--no-azure", "-o", "json").stdout)["findings"]
    # The issuer of a cluster of the lab is public for the lab's Azure alone.
    assert [item for item in findings if item["verdict"] != "ok" and item["check"] != "issuer"] == []
