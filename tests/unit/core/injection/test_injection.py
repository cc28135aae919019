"""What a labelled pod gets from the webhook."""

import copy
import json
from base64 import b64decode
from dataclasses import replace
from typing import Any

import jsonpatch
import pytest

from podidentity.core.injection import mutation, reviews
from podidentity.core.injection.rules import Door, Rules, TokenFileDoor, TokenProxy, TrustBundle
from podidentity.core.injection.wishes import Denial, Wish, read_wish

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
W = "azure.workload.identity/"
PROXY = TokenProxy("https://broker.example", TrustBundle(config_map="broker-ca"), "broker.svc")
RULES = Rules(TENANT, proxy=PROXY, token_file=TokenFileDoor(2580))
ACCOUNT = {f"{W}client-id": CLIENT}
POD: dict[str, Any] = {
    "metadata": {"name": "app", "labels": {f"{W}use": "true"}},
    "spec": {
        "initContainers": [{"name": "init"}],
        "containers": [
            {"name": "a", "env": [{"name": "AZURE_CLIENT_ID", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]},
            {"name": "b", "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        ],
        "volumes": [{"name": "data", "emptyDir": {}}],
    },
}


def wish(pod: dict[str, str] | None = None, account: dict[str, str] | None = None, rules: Rules = RULES) -> Wish:
    """Return what the webhook decides for a pod with these annotations."""
    result = read_wish(pod or {}, ACCOUNT if account is None else account, "shop/cart", rules)
    assert isinstance(result, Wish)
    return result


def denial(pod: dict[str, str], rules: Rules = RULES) -> str:
    """Return the reason for which a pod is refused."""
    result = read_wish(pod, ACCOUNT, "shop/cart", rules)
    assert isinstance(result, Denial)
    return result.message


def inject(pod: dict[str, Any], wanted: Wish, rules: Rules = RULES) -> dict[str, Any]:
    """Return the pod with its changes."""
    result: dict[str, Any] = jsonpatch.apply_patch(copy.deepcopy(pod), mutation.patch(pod, wanted, rules))
    return result


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Return a container's variables by name; "" for those with another source."""
    return {variable["name"]: variable.get("value", "") for variable in container.get("env", ())}


def test_direct_federation() -> None:
    """For Entra ID a pod gets four variables, one volume, and its mount in every container and init container."""
    pod = inject(POD, wish())
    spec = pod["spec"]
    name = mutation.volume_name(POD)
    assert name.startswith("azure-workload-identity-reserved-")
    assert len(name) == len("azure-workload-identity-reserved-") + 30
    source = {"audience": "api://AzureADTokenExchange", "expirationSeconds": 3600, "path": "token/azure-identity-token"}
    assert spec["volumes"] == [
        {"name": "data", "emptyDir": {}},
        {"name": name, "projected": {"defaultMode": 0o644, "sources": [{"serviceAccountToken": source}]}},
    ]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert {"name": name, "mountPath": "/var/run/secrets/azure/wi", "readOnly": True} in container["volumeMounts"]
        assert variables(container) == {
            "AZURE_CLIENT_ID": "" if container["name"] == "a" else CLIENT,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/wi/token/azure-identity-token",
            "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
        }
    assert "valueFrom" in spec["containers"][0]["env"][0]
    assert spec["containers"][1]["volumeMounts"][0] == {"name": "data", "mountPath": "/data"}


@pytest.mark.parametrize("door", list(Door))
@pytest.mark.parametrize("old_path", [False, True])
def test_twice_is_as_once(door: Door, *, old_path: bool) -> None:
    """A second invocation, which Kubernetes allows, changes nothing."""
    wanted = replace(wish(), door=door, old_path=old_path)
    once = inject(POD, wanted)
    assert inject(once, wanted) == once


def test_a_name_that_is_generated() -> None:
    """For a pod whose name is generated, the volume's name is derived from the name's beginning."""
    generated = {"metadata": {"generateName": "app-"}, "spec": {"containers": [{"name": "a"}]}}
    pod = inject(generated, wish())
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == [mutation.volume_name(generated)]
    assert mutation.volume_name(generated) != mutation.volume_name({"metadata": {"name": "app-"}})
    assert "initContainers" not in pod["spec"]


def test_the_token_proxy() -> None:
    """For the proxy a pod gets a token for its audience and exactly one variable for its CA."""
    wanted = wish({f"{W}use-identity-binding": "TRUE"})
    assert wanted.door is Door.PROXY
    container = inject(POD, wanted)["spec"]["containers"][1]
    values = variables(container)
    assert values["AZURE_KUBERNETES_TOKEN_PROXY"] == "https://broker.example"
    assert values["AZURE_KUBERNETES_SNI_NAME"] == "broker.svc"
    assert values["AZURE_KUBERNETES_CA_FILE"] == "/var/run/secrets/azure/wi/ca-cert/ca.crt"
    assert "AZURE_KUBERNETES_CA_DATA" not in values
    sources = inject(POD, wanted)["spec"]["volumes"][1]["projected"]["sources"]
    assert sources[0]["serviceAccountToken"]["audience"] == "api://AKSIdentityBinding"
    assert sources[1] == {"configMap": {"name": "broker-ca", "items": [{"key": "ca.crt", "path": "ca-cert/ca.crt"}]}}


def test_other_sources_of_its_ca() -> None:
    """The proxy's CA may be a text in a variable, or come from ClusterTrustBundles."""
    wanted = wish({f"{W}use-identity-binding": "true"})
    by_text = replace(RULES, proxy=replace(PROXY, trust=TrustBundle(text="PEM"), server_name=""))
    pod = inject(POD, wanted, by_text)
    values = variables(pod["spec"]["containers"][1])
    assert values["AZURE_KUBERNETES_CA_DATA"] == "PEM"
    assert not {"AZURE_KUBERNETES_CA_FILE", "AZURE_KUBERNETES_SNI_NAME"} & set(values)
    assert len(pod["spec"]["volumes"][1]["projected"]["sources"]) == 1
    labels = {"matchLabels": {"a": "b"}}
    for trust, bundle in (
        (TrustBundle(signer="s/x"), {"signerName": "s/x", "path": "ca-cert/ca.crt"}),
        (
            TrustBundle(signer="s/x", labels=labels),
            {"signerName": "s/x", "path": "ca-cert/ca.crt", "labelSelector": labels},
        ),
    ):
        by_bundle = replace(RULES, proxy=replace(PROXY, trust=trust))
        sources = inject(POD, wanted, by_bundle)["spec"]["volumes"][1]["projected"]["sources"]
        assert sources[1] == {"clusterTrustBundle": bundle}


@pytest.mark.parametrize("annotations", [{f"{W}inject-proxy-sidecar": ""}, {"podidentity.io/door": "token-file"}])
def test_the_token_file_door(annotations: dict[str, str]) -> None:
    """Instead of a privileged sidecar a pod gets Azure Arc's variables with the node's address.

    Its token is mounted where clients of Azure Arc accept a file.
    """
    wanted = wish(annotations)
    assert wanted.door is Door.TOKEN_FILE
    pod = inject(POD, wanted)
    container = pod["spec"]["containers"][1]
    assert container["env"][0] == {
        "name": "PODIDENTITY_HOST_IP",
        "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}},
    }
    assert variables(container)["IDENTITY_ENDPOINT"] == f"http://$(PODIDENTITY_HOST_IP):2580/token-file/{CLIENT}"
    assert variables(container)["IMDS_ENDPOINT"] == "http://$(PODIDENTITY_HOST_IP):2580"
    assert "AZURE_CLIENT_ID" not in variables(container)
    assert container["volumeMounts"][1]["mountPath"] == "/var/opt/azcmagent/tokens"
    (source,) = pod["spec"]["volumes"][1]["projected"]["sources"]
    assert source["serviceAccountToken"]["path"] == "podidentity.key"
    assert [container["name"] for container in pod["spec"]["containers"]] == ["a", "b"]
    unnamed = inject(POD, replace(wanted, client_id=""))["spec"]["containers"][1]
    assert variables(unnamed)["IDENTITY_ENDPOINT"].endswith(":2580/token-file")


def test_a_nodes_ipv6_address_stands_in_brackets() -> None:
    """A kubelet puts the address into the text as it is, and a URL wants brackets around an IPv6 address."""
    on_ipv6 = replace(RULES, token_file=TokenFileDoor(2580, is_ipv6=True))
    container = inject(POD, wish({"podidentity.io/door": "token-file"}), on_ipv6)["spec"]["containers"][1]
    assert variables(container)["IDENTITY_ENDPOINT"] == f"http://[$(PODIDENTITY_HOST_IP)]:2580/token-file/{CLIENT}"
    assert variables(container)["IMDS_ENDPOINT"] == "http://[$(PODIDENTITY_HOST_IP)]:2580"


def test_both_at_once_is_one_door() -> None:
    """A pod with the annotations of both doors gets the token-file door, and a warning."""
    wanted = wish({f"{W}inject-proxy-sidecar": "true", f"{W}use-identity-binding": "true"})
    assert wanted.door is Door.TOKEN_FILE
    assert "needs no switch" in wanted.warnings[0]


def test_an_explicit_door_wins() -> None:
    """The annotation of podidentity wins over azure-workload-identity's; an unknown door is refused."""
    assert wish({f"{W}inject-proxy-sidecar": "", "podidentity.io/door": " direct "}).door is Door.DIRECT
    assert "unknown" in denial({"podidentity.io/door": "window"})


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ({f"{W}use-identity-binding": "true"}, "knows none"),
        ({f"{W}inject-proxy-sidecar": ""}, "token-file-port"),
    ],
)
def test_a_door_that_is_not_offered(annotations: dict[str, str], words: str) -> None:
    """A pod that asks for a door without its settings in the webhook is refused."""
    assert words in denial(annotations, Rules(TENANT))


def test_containers_that_are_left_out() -> None:
    """Containers and init containers in the annotation's list are not changed.

    The pod's volume is there all the same.
    """
    pod = inject(POD, wish({f"{W}skip-containers": " a ; init ;"}))
    assert pod["spec"]["containers"][0] == POD["spec"]["containers"][0]
    assert pod["spec"]["initContainers"] == POD["spec"]["initContainers"]
    assert len(pod["spec"]["volumes"]) == 2


@pytest.mark.parametrize("text", ["3599", "86401", "1h", "", "-1", "٣٦٠٠", "9" * 5000])
def test_an_expiration_out_of_its_limits(text: str) -> None:
    """An expiration outside the limits is refused with a sentence that names them."""
    message = denial({f"{W}service-account-token-expiration": text})
    assert "3600" in message
    assert "86400" in message


def test_the_pods_expiration_wins() -> None:
    """The pod's annotation wins over its service account's, which wins over the default."""
    key = f"{W}service-account-token-expiration"
    assert wish({key: "7200"}, {key: "3600"}).expiration_seconds == 7200
    assert wish({}, {key: "86400"}).expiration_seconds == 86400


@pytest.mark.parametrize("text", ["x", "0", "65536", "", "9" * 5000])
def test_a_sidecars_port_must_be_one(text: str) -> None:
    """The annotation's port must be a valid one, as in upstream, although nothing listens there."""
    assert "port" in denial({f"{W}inject-proxy-sidecar": "", f"{W}proxy-sidecar-port": text})
    assert wish({f"{W}inject-proxy-sidecar": "", f"{W}proxy-sidecar-port": "8000"}).door is Door.TOKEN_FILE


def test_an_account_without_a_client_id() -> None:
    """A pod of such a service account gets no AZURE_CLIENT_ID, and a warning."""
    wanted = wish(account={})
    assert "shop/cart" in wanted.warnings[0]
    assert "AZURE_CLIENT_ID" not in variables(inject(POD, wanted)["spec"]["initContainers"][0])


def test_the_tenant_of_the_account_wins() -> None:
    """The service account's tenant wins over the cluster's."""
    assert wish(account=ACCOUNT | {f"{W}tenant-id": "other"}).tenant_id == "other"
    assert wish().tenant_id == TENANT


def test_the_old_path_on_request() -> None:
    """An annotation selects the token's path of version 1.5, which some programs contain."""
    pod = inject(POD, wish({"podidentity.io/token-path": "v1.5"}))
    container = pod["spec"]["containers"][1]
    assert container["volumeMounts"][1]["name"] == "azure-identity-token"
    path = "/var/run/secrets/azure/tokens/azure-identity-token"
    assert variables(container)["AZURE_FEDERATED_TOKEN_FILE"] == path


def question(kind: str, content: dict[str, Any], version: str = "admission.k8s.io/v1") -> bytes:
    """Return an AdmissionReview."""
    request = {"uid": "1", "kind": {"kind": kind}, "namespace": "shop", "object": content}
    return json.dumps({"apiVersion": version, "kind": "AdmissionReview", "request": request}).encode()


@pytest.mark.parametrize("version", ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"])
def test_a_review(version: str) -> None:
    """A review is answered in its own version and with its own UID."""
    review = reviews.parse_review(question("Pod", POD | {"metadata": {"annotations": {"a": "b"}}}, version))
    assert review is not None
    assert (review.namespace, review.account, review.annotations) == ("shop", "default", {"a": "b"})
    document = json.loads(reviews.allow(review, [{"op": "add", "path": "/x", "value": 1}], ["careful"]))
    assert document["apiVersion"] == version
    response = document["response"]
    assert (response["uid"], response["allowed"], response["warnings"]) == ("1", True, ["careful"])
    assert json.loads(b64decode(response["patch"])) == [{"op": "add", "path": "/x", "value": 1}]
    assert json.loads(reviews.allow(review))["response"] == {"uid": "1", "allowed": True}
    refusal = json.loads(reviews.deny(review, Denial("no")))["response"]
    assert (refusal["allowed"], refusal["status"]["code"], refusal["status"]["message"]) == (False, 400, "no")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        question("Pod", POD, "other/v1"),
        b'{"apiVersion":"admission.k8s.io/v1","request":{"uid":1,"kind":{"kind":"Pod"},"object":{}}}',
        b'{"apiVersion":"admission.k8s.io/v1","request":{"uid":"1","kind":{"kind":"Pod"},"object":null}}',
    ],
)
def test_what_is_no_review(body: bytes) -> None:
    """A body that is no AdmissionReview is read as None."""
    assert reviews.parse_review(body) is None


@pytest.mark.parametrize(
    "content",
    [
        {"metadata": []},
        {"metadata": {"annotations": [1]}},
        {"metadata": {"annotations": {"a": None}}},
        {"metadata": {"labels": {"a": {}}}},
        {"metadata": {"name": 7}},
        {"metadata": {"name": "\ud800"}},
        {"metadata": {"generateName": {}}},
        {"spec": []},
        {"spec": {"serviceAccountName": []}},
        {"spec": {"containers": {"a": 1}}},
        {"spec": {"containers": [1]}},
        {"spec": {"initContainers": [None]}},
        {"spec": {"containers": [{"name": {}}]}},
        {"spec": {"containers": [{"env": "x"}]}},
        {"spec": {"containers": [{"env": [1]}]}},
        {"spec": {"containers": [{"volumeMounts": [None]}]}},
        {"spec": {"volumes": [1], "containers": []}},
        {"spec": {"os": "linux"}},
    ],
)
def test_a_pod_that_no_api_server_sends(content: dict[str, Any]) -> None:
    """An object without its kind's form comes from somebody else: it is no review, and no bug either."""
    assert reviews.parse_review(question("Pod", content)) is None


def test_a_workload_that_no_api_server_sends() -> None:
    """The same for workloads and service accounts, of which less is read; what is not read may be anything."""
    contents: tuple[dict[str, Any], ...] = (
        {"spec": 7},
        {"spec": {"template": []}},
        {"spec": {"jobTemplate": 1}},
        {"metadata": 1},
    )
    for content in contents:
        assert reviews.parse_review(question("CronJob", content)) is None, content
    assert reviews.parse_review(question("ServiceAccount", {"metadata": {"labels": 1}})) is None
    assert reviews.parse_review(question("Deployment", {"spec": {"replicas": "x", "template": None}})) is not None


LABELLED = {"metadata": {"labels": {f"{W}use": "true"}}}


@pytest.mark.parametrize(
    ("kind", "spec", "warns"),
    [
        ("ServiceAccount", {}, True),
        ("Job", {"template": {}}, True),
        ("Job", {"template": LABELLED}, False),
        ("Deployment", {}, True),
        ("CronJob", {"jobTemplate": {"spec": {"template": LABELLED}}}, False),
        ("CronJob", {}, True),
        ("ConfigMap", {}, False),
    ],
)
def test_a_label_where_it_does_nothing(kind: str, spec: dict[str, Any], *, warns: bool) -> None:
    """The label on an object other than a pod, and not in its pod template, is reported."""
    review = reviews.parse_review(question(kind, LABELLED | {"spec": spec}))
    assert review is not None
    assert (reviews.misplaced_label(review) is not None) == warns
    bare = reviews.parse_review(question(kind, {"spec": spec}))
    assert bare is not None
    assert reviews.misplaced_label(bare) is None
