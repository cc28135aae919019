"""NMI's two doors through the broker, on real nodes and without MIC: the metadata address and the token file.

Runs before anything else is installed, and leaves nothing. The nodes have a metadata service, but no machine has an
identity until a test puts one there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from cluster import door_sdks
from cluster.brokers import BROKER, HOME, create, install_client
from cluster.door_sdks import DIRECT, TOKEN_FILE
from cluster.doors import (
    ACCOUNT,
    DOOR_PORT,
    LEGACY,
    NAMESPACES,
    NMI,
    NODES,
    ON_HOST,
    RESTRICTED,
    UNGRANTED,
    Doors,
    asking,
    asking_pod,
    is_answering,
    set_up,
)
from cluster.harness import GROUP, REPOSITORY, Cluster, client_id, until
from cluster.programs import DOOR_CLIENT
from cluster.test_federation import ISSUER
from cluster.test_helm import tables
from cluster.test_new import NEW, SYSTEM
from cluster.webhooks import KEY, migrate, podidentity, token_file_webhook
from interop.managed.programs import SDKS, Sdk
from podidentity.core.exchange.requests import NODE_PATH
from podidentity_lab.demo.admin import COMPUTE_VERSION, once_free
from system.lab.running import Json

SDK_DOORS = {"sdks": (TOKEN_FILE,), "sdks-on-host": (TOKEN_FILE, DIRECT)}
"""The doors by which SDKs ask in each of two pods: one with a network of its own, one on the node's.

No token of theirs has come by the metadata address: there SDKs do not ask who have the token file's variables, and no
machine has an identity.
"""


@pytest.fixture(scope="module")
def doors(cluster: Cluster) -> Iterator[Doors]:
    """Everything installed, and pods: two in a granted namespace, one on the node's network, one without a grant."""
    with asking(cluster, set_up(cluster)) as place:
        yield place
    cluster.kubectl("delete", "-n", SYSTEM, "daemonset", "nmi", "--cascade=foreground")
    cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "namespace", HOME, *NAMESPACES)
    cluster.kubectl("create", "-f", str(NEW / "uninstall.yaml"))
    cluster.roll_out("daemonset/nmi-uninstall", SYSTEM)
    cluster.kubectl("delete", "-f", str(NEW / "uninstall.yaml"))
    for node in NODES:
        assert "podidentity" not in tables(cluster, node)
    cluster.kubectl("delete", "clusterrole,clusterrolebinding", "identity-doors", f"{HOME}:{BROKER}")
    cluster.kubectl("delete", "--ignore-not-found", "-f", str(NEW / "broker.yaml"))


def test_a_legacy_pod_gets_its_token_by_the_metadata_address(doors: Doors) -> None:
    """A pod with nothing but a binding gets its token from the broker, though no machine carries the identity."""
    for pod in ("near", "far"):
        until(lambda pod=pod: doors.ask(pod, "/metadata")[0] == 200, f"a token for {pod}")  # type: ignore[misc]
        assert doors.owner(pod, "/metadata") == doors.identity


def test_without_a_grant_there_is_no_token_by_any_door(doors: Doors) -> None:
    """A binding is no grant.

    NMI answers 400 with IMDS's sentence by the metadata address, and 403 by the token file.
    """
    status, document = doors.ask("outside", "/metadata")
    assert status == 400
    assert document["error_description"].startswith("Identity not found")
    status, document = doors.ask("outside", "/token-file")
    assert status == 403
    assert f"{UNGRANTED}/{ACCOUNT}" in document["error_description"]


@pytest.mark.parametrize("pod", ["near", "far", "on-host"])
def test_a_pod_proves_itself_with_its_file(doors: Doors, pod: str) -> None:
    """The token in a pod's file proves which pod asks, also on the node's network, where its address is the node's."""
    assert doors.owner(pod, "/token-file") == doors.identity
    status, document = doors.ask(pod, "/token-file", more=f"&client_id={doors.identity}")
    assert (status, document["client_id"]) == (200, doors.identity)
    assert doors.ask(pod, "/token-file", more="&client_id=00000000-0000-0000-0000-000000000001")[0] == 400


def test_azures_own_sdk_gets_its_token_unmodified(doors: Doors) -> None:
    """Azure's SDK gets a token by the file and, without any variable, by the metadata address.

    It asks by the file under `restricted` and on the node's network.
    """
    program = (REPOSITORY / "tests/interop/managed/managed.py").read_text()
    as_on_a_vm = asking_pod(doors.identity, "sdk-metadata", RESTRICTED, NODES[1], program)
    as_on_a_vm["spec"]["containers"][0]["env"] = []
    create(
        doors.cluster,
        as_on_a_vm,
        asking_pod(doors.identity, "sdk-file", RESTRICTED, NODES[0], program),
        asking_pod(doors.identity, "sdk-on-host", ON_HOST, NODES[1], program, hostNetwork=True),
    )
    for name, namespace in {"sdk-metadata": RESTRICTED, "sdk-file": RESTRICTED, "sdk-on-host": ON_HOST}.items():
        answers = json.loads(doors.cluster.finished(name, namespace))
        assert all("token" in answer for answer in answers.values()), answers
        assert {client_id(answer["token"]) for answer in answers.values()} == {doors.identity}


@pytest.fixture(scope="module")
def sdks(doors: Doors) -> Sequence[str]:
    """The names of two pods in which SDKs of two ages ask, as far as they can be had here.

    By the metadata address they ask in `test_off_azure`. For the direct door, the identity trusts their service
    account as well.
    """
    cluster, subject = doors.cluster, f"system:serviceaccount:{ON_HOST}:{ACCOUNT}"
    cluster.admin.create_federated_credential(GROUP, "doors", "pods", ISSUER, subject)
    available = [sdk for sdk in SDKS if install_client(sdk.client)]
    for number, (name, ways) in enumerate(SDK_DOORS.items()):
        spec = {"hostNetwork": True} if DIRECT in ways else {}
        create(cluster, door_sdks.pod(cluster, doors.identity, name, NODES[number], available, *ways, **spec))
    return tuple(SDK_DOORS)


@pytest.fixture(scope="module")
def sdk_answers(doors: Doors, sdks: Sequence[str]) -> Mapping[tuple[str, str, str], Json | str]:
    """What each SDK was answered, by the pod, the SDK's client and the door."""
    logs = {name: doors.cluster.finished(name, ON_HOST) for name in sdks}
    return {(name, *words): content for name in logs for words, content in door_sdks.answers(logs[name]).items()}


@pytest.fixture(scope="module")
def webhook(doors: Doors) -> Iterator[None]:
    """The webhook, installed by kubectl from its manifest, with the port of the token-file door."""
    with token_file_webhook(doors.cluster, DOOR_PORT):
        yield


def plain_pod(name: str, namespace: str, node: str, program: str, **spec: Any) -> Json:
    """Return such a pod as a team writes it: without label, variables and volume of the door."""
    item = asking_pod("", name, namespace, node, program, **spec)
    item["metadata"]["labels"] = {}
    item["spec"]["volumes"] = []
    (container,) = item["spec"]["containers"]
    container["env"], container["volumeMounts"] = [{"name": "PORT", "value": "8080"}], []
    return item


@pytest.mark.usefixtures("sdks", "webhook")  # the SDKs ask while the webhook is being installed
def test_the_webhook_leads_an_unmodified_program_to_the_door(doors: Doors) -> None:
    """A pod with the label and the annotation of workload identity's proxy gets the door.

    The door also works on the node's network, where that proxy never did.
    """
    cluster, program = doors.cluster, (REPOSITORY / "tests/interop/managed/managed.py").read_text()
    pods = {"injected": (RESTRICTED, NODES[0], {}), "injected-on-host": (ON_HOST, NODES[1], {"hostNetwork": True})}
    for name, (namespace, node, spec) in pods.items():
        cluster.kubectl("annotate", "serviceaccount", ACCOUNT, "-n", namespace, f"{KEY}/client-id={doors.identity}")
        item = plain_pod(name, namespace, node, program, **spec)
        item["metadata"] |= {"labels": {f"{KEY}/use": "true"}, "annotations": {f"{KEY}/inject-proxy-sidecar": "true"}}
        create(cluster, item)
    for name, (namespace, _, _) in pods.items():
        answers = json.loads(cluster.finished(name, namespace))
        assert all("token" in answer for answer in answers.values()), answers
        assert {client_id(answer["token"]) for answer in answers.values()} == {doors.identity}
    findings = json.loads(podidentity(cluster, "doctor", "--no-azure", "-o", "json").stdout)["findings"]
    verdicts = {
        item["check"]: item["verdict"] for item in findings if "door" in item["check"] or "nmi" in item["check"]
    }
    assert verdicts == {"nmi": "ok", "token-file door": "ok", "nmi through the broker": "ok"}, findings


@pytest.mark.usefixtures("webhook")
def test_a_workload_of_aad_pod_identity_is_migrated_to_the_door(doors: Doors) -> None:
    """What `migrate --to token-file` writes and prints takes a workload to the door, and its pods get their token."""
    cluster, labels = doors.cluster, {"aadpodidbinding": "doors"}
    item = plain_pod("", LEGACY, NODES[0], DOOR_CLIENT, restartPolicy="Always")
    template = {"metadata": {"labels": labels}, "spec": item["spec"]}
    metadata = {"name": "legacy", "namespace": LEGACY}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    create(cluster, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    cluster.roll_out("deployment/legacy", LEGACY)
    manifests = migrate(cluster, "token-file", LEGACY)
    cluster.roll_out("deployment/legacy", LEGACY)
    (pod,) = cluster.get("pods", "-n", LEGACY, "-l", f"{KEY}/use=true")["items"]
    doors.pods["legacy"] = f"http://{pod['status']['podIP']}:8080"
    until(lambda: is_answering(doors, "legacy"), "an answer of the migrated pod")
    assert doors.owner("legacy", "/token-file") == doors.identity
    for manifest in manifests:
        if manifest["kind"].startswith("ClusterRole"):
            cluster.delete(manifest["kind"], manifest["metadata"]["name"])


def test_a_pod_on_the_nodes_network_gets_nothing_of_the_node(doors: Doors) -> None:
    """A pod on the node's network that sends another pod's token is judged as that pod.

    The other pod's service account has no grant, so that the answer is 403.
    """
    status, document = doors.ask("on-host", "/token-file", proof=doors.get("outside", "/proof"))
    assert status == 403, document


def test_another_pods_token_is_refused(doors: Doors) -> None:
    """A pod that sends another pod's token is refused, whether the other pod is on this node or not."""
    status, document = doors.ask("near", "/token-file", proof=doors.get("on-host", "/proof"))
    assert status == 403
    assert "another pod's address" in document["error_description"]
    status, document = doors.ask("near", "/token-file", proof=doors.get("far", "/proof"))
    assert status == 403
    assert "does not run on this node" in document["error_description"]


def test_a_compromised_node_gets_its_own_pods_identities_and_nothing_else(doors: Doors) -> None:
    """Whoever has NMI's token of node-0 gets what pods there may have, and never anything of node-1's pods."""
    stolen = nmi_token(doors, NODES[0])
    assert ask_as_nmi(doors, stolen, "near", RESTRICTED)[0] == 200
    status, document = ask_as_nmi(doors, stolen, "outside", UNGRANTED)
    assert (status, f"{UNGRANTED}/{ACCOUNT}" in document["error_description"]) == (403, True)
    status, document = ask_as_nmi(doors, stolen, "far", RESTRICTED)
    assert (status, f"node {NODES[0]}" in document["error_description"]) == (403, True)


def test_nobody_but_nmi_asks_in_a_pods_name(doors: Doors) -> None:
    """A pod's token proves that pod only: nobody but NMI may ask in another pod's name."""
    status, document = ask_as_nmi(doors, doors.get("near", "/proof"), "near", RESTRICTED)
    assert (status, "only NMI may" in document["error_description"]) == (403, True)


@pytest.mark.parametrize("account", [(SYSTEM, NMI), (HOME, BROKER)], ids=["nmi", "broker"])
def test_neither_daemon_may_make_tokens_or_read_secrets(doors: Doors, account: tuple[str, str]) -> None:
    """The API server says that neither may create tokens, nor read others' Secrets; the broker has one of its own."""
    user = f"--as=system:serviceaccount:{':'.join(account)}"
    for words in (("create", "serviceaccounts", "--subresource=token"), ("get", "secrets"), ("list", "secrets")):
        for namespace in (account[0], RESTRICTED, "kube-system"):
            process = doors.cluster.try_kubectl("auth", "can-i", *words, user, "-n", namespace)
            assert process.stdout.strip() == "no", (words, namespace)


@pytest.mark.parametrize(("pod", "door"), [(pod, door) for pod, ways in SDK_DOORS.items() for door in ways])
@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: f"{sdk.title}-{sdk.version}".replace(" ", "-"))
def test_an_sdk_of_either_age_gets_its_token_unmodified(
    doors: Doors, sdk_answers: Mapping[tuple[str, str, str], Json | str], sdk: Sdk, pod: str, door: str
) -> None:
    """`ManagedIdentityCredential` and `DefaultAzureCredential` get the pod's token by each door.

    Go's `ManagedIdentityCredential` alone does not know the direct door: it takes no token of a service account.
    """
    if not install_client(sdk.client):
        pytest.skip(f"{sdk.title} {sdk.version} cannot be had here")
    owners = door_sdks.owners(sdk_answers[pod, sdk.client, door])
    if (door, sdk.client.partition("-")[0]) == (DIRECT, "go"):
        assert owners.pop("managed")["error"] == "*azidentity.credentialUnavailableError"
        assert owners == {"default": doors.identity}
    else:
        assert owners == {"managed": doors.identity, "default": doors.identity}


def test_no_metadata_service_was_asked_for_any_of_it(doors: Doors) -> None:
    """None of the tests above had a metadata service asked for a token."""
    assert doors.metadata_requests() == 0
    assert doors.cluster.imds_packets() == doors.packets


def test_an_identity_moves_to_the_machine_and_back(doors: Doors) -> None:
    """The annotation alone moves an identity between machine and broker; objects, binding and pod stay the same."""
    cluster = doors.cluster
    provider = cluster.get("node", NODES[0])["spec"]["providerID"]
    scale_set = provider.removeprefix("azure://").partition("/virtualMachines/")[0]
    resource_id = cluster.admin.identity(GROUP, "doors")
    set_machine_identity(cluster, scale_set, {resource_id: {}})
    words = ("annotate", "azureidentity", "doors", "-n", RESTRICTED)
    cluster.kubectl(*words, "podidentity.io/token-source-")
    until(lambda: source_of_token(doors) == "adal_token_msi_userassignedid", "a token of the machine")
    cluster.kubectl(*words, "podidentity.io/token-source=broker")
    until(lambda: source_of_token(doors) == "broker_token", "a token of the broker")
    set_machine_identity(cluster, scale_set, {resource_id: None})


def set_machine_identity(cluster: Cluster, scale_set: str, identities: Json) -> None:
    """Put an identity on a scale set, or remove it with None."""
    body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": identities}}
    once_free(lambda: cluster.admin._arm("PATCH", scale_set, COMPUTE_VERSION, body))


def source_of_token(doors: Doors) -> str:
    """Request a token by the metadata address; return its source according to NMI's log, "" without a token."""
    status, document = doors.ask("near", "/metadata")
    if status != 200:
        return ""
    assert client_id(document["access_token"]) == doors.identity
    log = doors.cluster.kubectl("logs", "-n", SYSTEM, doors.nmi(NODES[0])["metadata"]["name"], "--tail=200")
    lines = [line for line in log.splitlines() if " pod=near " in line and " status=200 " in line]
    return lines[-1].partition(" source=")[2].split()[0] if lines else ""


def nmi_token(doors: Doors, node: str) -> str:
    """Return a token with which NMI asks the broker, as an attacker on its node would have it."""
    pod = doors.nmi(node)["metadata"]
    bound = {"apiVersion": "v1", "kind": "Pod", "name": pod["name"], "uid": pod["uid"]}
    request = {"spec": {"audiences": ["api://AKSIdentityBinding"], "boundObjectRef": bound}}
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{NMI}/token"
    result: str = doors.cluster.api.post(path, json=request).raise_for_status().json()["status"]["token"]
    return result


def ask_as_nmi(doors: Doors, assertion: str, pod: str, namespace: str) -> tuple[int, Json]:
    """Return what the broker answers to NMI's kind of request, in the name of `pod`."""
    uid = doors.cluster.get("pod", pod, "-n", namespace)["metadata"]["uid"]
    return doors.ask(
        "on-host",
        "/broker",
        url=f"https://{doors.cluster.get('service', BROKER, '-n', HOME)['spec']['clusterIP']}{NODE_PATH}",
        client_id=doors.identity,
        scope="https://vault.azure.net/.default",
        grant_type="client_credentials",
        client_assertion_type="urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        client_assertion=assertion,
        pod_namespace=namespace,
        pod_name=pod,
        pod_uid=uid,
    )
