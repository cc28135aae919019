"""The webhook on a real API server: what pods get, by which door they have tokens, and that each is injected.

Webhook and broker are installed by Helm from their charts, before NMI is installed. A replacement of the CA is ordered
first, so that its slow steps pass while the rest is tested. From the first test that needs it until the replicas have
been replaced, labelled pods are created all the time.
"""

import datetime as dt
import json
import time
from base64 import b64encode
from collections.abc import Iterator

import helm_python
import pytest

import chart
from cluster.admissions import ApiServer, Steady, create_at_once, steady
from cluster.brokers import create, grant, group
from cluster.doors import asking_pod
from cluster.harness import DEFINITIONS, GROUP, Cluster, until
from cluster.programs import EITHER, QUICK_START, WORKLOAD_IDENTITY
from cluster.test_federation import ISSUER
from cluster.webhooks import (
    AUTHORITY,
    BROKER,
    BROKER_ACCOUNT,
    BROKER_NAME,
    DEPLOYMENT,
    DIRECT,
    HELM_SECONDS,
    HOME,
    KEY,
    PLAIN,
    PROXIED,
    TEAM,
    VAULT,
    Place,
    environment,
    install,
    make_identities,
    migrate,
    pod,
    podidentity,
    program,
    reserved,
    service_account,
    unlabelled,
)
from podidentity.core.injection.conflicts import MOUNT_PATH
from system.lab.running import Json

AT_ONCE = 2000
PACE_PODS = 50


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[Place]:
    """Webhook and broker as a platform engineer installs them, a restricted namespace, and its service accounts.

    A replacement of the CA is ordered, too.
    """
    client_ids = make_identities(cluster)
    tenant = cluster.lab.variables["LAB_TENANT_ID"]
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = [{"name": name, "labels": labels} for name in (HOME, TEAM, BROKER)]
    create(cluster, *({"apiVersion": "v1", "kind": "Namespace", "metadata": item} for item in metadata))
    accounts = [*client_ids.items(), (PLAIN, "")]
    create(cluster, *(service_account(*account) for account in accounts))
    create(cluster, *grant(client_ids[PROXIED], "identity-webhook", group(TEAM)))
    endpoint = {
        "azureKubernetesTokenProxy": f"https://{BROKER_NAME}.{BROKER}.svc",
        "azureKubernetesCAConfigMapName": f"{BROKER_NAME}-ca",
    }
    values = {"azureTenantID": tenant, "customTokenEndpoint": endpoint, "tokenFilePort": 2580}
    install(cluster, chart.WEBHOOK, "workload-identity", HOME, values)
    made = Place(cluster, client_ids, ApiServer.of(cluster))
    made.first_authorities = made.certificates()
    cluster.kubectl("annotate", "secret", AUTHORITY, "-n", HOME, f"podidentity.io/replace-ca={time.time()}")
    install(cluster, chart.BROKER, BROKER, BROKER, {"tenantId": tenant, "bundleNamespaces": [TEAM]})
    yield made
    for release, namespace in (("workload-identity", HOME), (BROKER, BROKER)):
        kubeconfig = cluster.lab.variables["KUBECONFIG"]
        with helm_python.Config(kubeconfig_path=kubeconfig, namespace=namespace) as helm:
            helm.uninstall(release, timeout=HELM_SECONDS)
    cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "namespace", HOME, TEAM, BROKER)
    cluster.kubectl("delete", "--ignore-not-found", "clusterrole,clusterrolebinding", "identity-webhook")


@pytest.fixture(scope="module")
def pods(place: Place) -> Iterator[Steady]:
    """Labelled pods that are created at a steady pace, from the first test that needs them to the last."""
    with steady(place.server, pod()) as work:
        yield work


def go_on(pods: Steady) -> None:
    """Wait until more pods were created; hold that every one so far was admitted with injection."""
    more = pods.total + PACE_PODS
    until(lambda: pods.total >= more, "more pods")
    assert pods.counts == {"injected": pods.counts["injected"]}


@pytest.fixture(scope="module")
def promotion(place: Place, pods: Steady) -> None:
    """Wait until the new CA is published, and cut short the ten minutes until it signs."""
    cluster = place.cluster

    def has_successor() -> bool:
        return "next.published" in cluster.get("secret", AUTHORITY, "-n", HOME)["data"]

    until(has_successor, "the successor to be published")
    assert len(place.bundle()) == 2
    go_on(pods)
    earlier = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=11)
    moment = b64encode(earlier.strftime("%Y-%m-%dT%H:%M:%SZ").encode()).decode()
    change = json.dumps({"data": {"next.published": moment}})
    cluster.kubectl("patch", "secret", AUTHORITY, "-n", HOME, "-p", change)


def test_a_labelled_pod_gets_its_variables_its_volume_and_its_mounts(place: Place) -> None:
    """All containers and init containers get them, except those to be skipped.

    A variable that a container sets itself stays.
    """
    item = pod("cart", skip_containers=" a ; b")
    spec, (main,) = item["spec"], item["spec"]["containers"]
    own = {"name": "AZURE_CLIENT_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    spec["containers"] += [main | {"name": "own", "env": [own]}, main | {"name": "a"}]
    spec["initContainers"] = [main | {"name": "first"}, main | {"name": "b"}]
    result = place.admitted(item)["spec"]
    containers = {container["name"]: container for container in (*result["initContainers"], *result["containers"])}
    expected = {
        "AZURE_CLIENT_ID": place.client_ids[DIRECT],
        "AZURE_TENANT_ID": place.cluster.lab.variables["LAB_TENANT_ID"],
        "AZURE_FEDERATED_TOKEN_FILE": f"{MOUNT_PATH}/token/azure-identity-token",
        "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
    }
    assert [environment(containers[name]) for name in ("main", "first")] == [expected, expected]
    assert environment(containers["own"]) == expected | {"AZURE_CLIENT_ID": ""}
    (volume,) = reserved({"spec": result})
    for name, container in containers.items():
        mounts = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
        is_exempt = name in {"a", "b"}
        assert bool(mounts) != is_exempt
        assert ("AZURE_TENANT_ID" in environment(container)) != is_exempt
        assert all((mount["mountPath"], mount["readOnly"]) == (MOUNT_PATH, True) for mount in mounts)
    (source,) = volume["projected"]["sources"]
    token = {"audience": "api://AzureADTokenExchange", "expirationSeconds": 3600, "path": "token/azure-identity-token"}
    assert source == {"serviceAccountToken": token}


def test_a_pod_that_is_admitted_twice_is_as_one_that_is_admitted_once(place: Place) -> None:
    """A second admission adds no volume and no variable, also for a pod whose name is generated."""
    once = place.admitted(pod())
    once["metadata"] = {key: once["metadata"][key] for key in ("generateName", "namespace", "labels")}
    twice = place.admitted(once)
    assert len(reserved(twice)) == 1
    assert twice["spec"]["containers"][0]["env"] == once["spec"]["containers"][0]["env"]


def test_the_broker_is_one_annotation_away(place: Place) -> None:
    """The annotation, in any case, adds the broker's address, one variable for its CA, and the CA's volume."""
    item = place.admitted(pod(account=PROXIED, use_identity_binding="TRUE"))
    variables = environment(item["spec"]["containers"][0])
    assert variables["AZURE_KUBERNETES_TOKEN_PROXY"] == f"https://{BROKER_NAME}.{BROKER}.svc"
    assert "AZURE_KUBERNETES_CA_DATA" not in variables
    assert variables["AZURE_KUBERNETES_CA_FILE"] == f"{MOUNT_PATH}/ca-cert/ca.crt"
    (volume,) = reserved(item)
    token, authority = volume["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == "api://AKSIdentityBinding"
    assert authority["configMap"]["name"] == f"{BROKER_NAME}-ca"


def test_instead_of_a_privileged_sidecar_a_pod_gets_the_token_file_door(place: Place) -> None:
    """The annotation for workload identity's proxy gives a pod the door and no further container.

    The pod has what `test_doors` writes into its manifests by hand.
    """
    item, expected = place.admitted(pod(inject_proxy_sidecar="true")), asking_pod(place.client_ids[DIRECT], "", "", "")
    ((container,), (other,)) = (each["spec"]["containers"] for each in (item, expected))
    assert environment(container) | {"PORT": "8080"} == environment(other)
    assert not {"AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"} & set(environment(container))
    (volume,) = reserved(item)
    (proof,), (mount,) = expected["spec"]["volumes"], other["volumeMounts"]
    (source,), (token,) = (each["projected"]["sources"] for each in (volume, proof))
    assert source["serviceAccountToken"] == token["serviceAccountToken"] | {"expirationSeconds": 3600}
    assert mount["mountPath"] in [
        each["mountPath"] for each in container["volumeMounts"] if each["name"] == volume["name"]
    ]
    assert "initContainers" not in item["spec"]


@pytest.mark.parametrize(
    ("item", "sentences"),
    [
        (pod(service_account_token_expiration="3599"), ["3600", "86400"]),
        (pod(service_account_token_expiration="86401"), ["3600", "86400"]),
        (pod(service_account_token_expiration="1h"), ['"1h"', "whole seconds"]),
        (pod(account="nobody"), ["nobody"]),
    ],
    ids=["too-short", "too-long", "no-number", "no-account"],
)
def test_what_is_refused_says_why(place: Place, item: Json, sentences: list[str]) -> None:
    """The output of kubectl has the webhook's sentence, with the limits or the name of what is wrong."""
    process = place.try_create(item)
    assert process.returncode != 0
    assert all(sentence in process.stderr for sentence in sentences), process.stderr


def test_the_pods_own_expiration_wins(place: Place) -> None:
    """A pod's annotation wins over its service account's, and the account's tenant over the webhook's."""
    own = {f"{KEY}/service-account-token-expiration": "3700", f"{KEY}/tenant-id": "other-tenant"}
    words = [f"{key}={value}" for key, value in own.items()]
    place.cluster.kubectl("annotate", "serviceaccount", PLAIN, "-n", TEAM, *words)

    def seconds(item: Json) -> tuple[int, str]:
        result = place.admitted(item)
        (source,) = reserved(result)[0]["projected"]["sources"]
        tenant = environment(result["spec"]["containers"][0])["AZURE_TENANT_ID"]
        return source["serviceAccountToken"]["expirationSeconds"], tenant

    # Replicas keep a service account's annotations for two seconds.
    until(lambda: seconds(pod(account=PLAIN)) == (3700, "other-tenant"), "the service account's own values")
    assert seconds(pod(account=PLAIN, service_account_token_expiration="7200")) == (7200, "other-tenant")


def test_kubectl_shows_what_will_not_work(place: Place) -> None:
    """For a service account without client ID, and for the label where it does nothing, kubectl prints a warning."""
    process = place.try_create(pod(account=PLAIN))
    assert process.returncode == 0
    assert f"Warning: service account {TEAM}/{PLAIN} has no annotation {KEY}/client-id" in process.stderr
    assert "AZURE_CLIENT_ID" not in process.stdout
    labels = {f"{KEY}/use": "true"}
    account = service_account("labelled")
    account["metadata"]["labels"] = labels
    process = place.try_create(account)
    assert process.returncode == 0
    assert "does nothing on a service account" in process.stderr
    template = {"metadata": {}, "spec": unlabelled()["spec"]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": template}}
    process = place.try_create(job | {"metadata": {"name": "labelled", "namespace": TEAM, "labels": labels}})
    assert process.returncode == 0
    assert "put it into its pod template" in process.stderr


def test_other_pods_are_never_sent_to_it(place: Place) -> None:
    """Pods without the label are never sent to the webhook, however many are created, and are not changed."""
    before = place.reviews()
    counts = create_at_once(place.server, unlabelled(), 200)
    assert counts == {"not injected": 200}
    assert place.reviews() == before


@pytest.mark.parametrize(
    ("account", "text", "annotations"),
    [
        (DIRECT, QUICK_START, {}),
        (DIRECT, WORKLOAD_IDENTITY, {}),
        (PROXIED, WORKLOAD_IDENTITY, {"use_identity_binding": "true"}),
    ],
    ids=["quick-start", "direct", "broker"],
)
def test_a_program_reads_a_secret(
    place: Place, account: str, text: str, annotations: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """Programs read a secret with tokens of Entra ID and of the broker, in a restricted namespace.

    One program is azure-workload-identity's quick start, the other uses Azure's SDK.
    """
    name = request.node.callspec.id
    create(place.cluster, program(name, account, text, **annotations))
    assert place.cluster.finished(name, TEAM) == "Hello!\n"
    place.cluster.delete("pod", name, "-n", TEAM)


def test_a_workload_of_aad_pod_identity_is_migrated_beside_workload_identitys(place: Place) -> None:
    """What `migrate` writes takes a workload from its binding to workload identity, and from there to the broker."""
    cluster, name = place.cluster, "legacy"
    cluster.kubectl("apply", "--server-side", "-f", str(DEFINITIONS))
    identity = cluster.identity("webhook-legacy")
    cluster.admin.set_policy(GROUP, VAULT, identity.client_id)
    subjects = {"pod": f"system:serviceaccount:{TEAM}:{name}", "broker": BROKER_ACCOUNT}
    for credential, subject in subjects.items():
        cluster.admin.create_federated_credential(GROUP, identity.name, credential, ISSUER, subject)
    cluster.bind(identity, namespace=TEAM, selector=name)
    item = program(name, name, EITHER)
    labels = {"aadpodidbinding": name}
    template = {"metadata": {"labels": labels}, "spec": item["spec"] | {"restartPolicy": "Always"}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    metadata = {"name": name, "namespace": TEAM}
    create(
        cluster,
        service_account(name),
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
    )
    cluster.roll_out(f"deployment/{name}", TEAM)
    assert (
        podidentity(place.cluster, "migrate", "--to", "machine", "--check", "-n", TEAM).returncode == 1
    )  # others have no binding
    written = []
    for way in ("direct", "broker"):
        written += migrate(place.cluster, way, TEAM)
        cluster.roll_out(f"deployment/{name}", TEAM)
        until(lambda way=way: cluster.kubectl("logs", f"deployment/{name}", "-n", TEAM) == f"{way} Hello!\n", way)  # type: ignore[misc]
    cluster.delete("deployment", name, "-n", TEAM)
    cluster.kubectl("delete", "-f", str(DEFINITIONS))
    for manifest in written:
        if manifest["kind"].startswith("ClusterRole"):
            cluster.delete(manifest["kind"], manifest["metadata"]["name"])


def test_a_pod_that_was_labelled_too_late_is_found(place: Place) -> None:
    """A pod that got the label after its creation was not injected; `explain` says so."""
    item = unlabelled("late")
    item["spec"]["nodeSelector"] = {"none": "x"}
    create(place.cluster, item)
    place.cluster.kubectl("label", "pod", "late", "-n", TEAM, f"{KEY}/use=true")
    process = podidentity(place.cluster, "explain", "pod", f"{TEAM}/late")
    assert process.returncode == 1, process.stderr
    assert "it slipped past the webhook" in process.stdout
    place.cluster.delete("pod", "late", "-n", TEAM)


@pytest.mark.usefixtures("promotion")
def test_two_thousand_at_once(place: Place, pods: Steady) -> None:
    """Two thousand pods created at once are all admitted with injection, while certificates are replaced."""
    before = place.reviews()
    assert create_at_once(place.server, pod(), AT_ONCE) == {"injected": AT_ONCE}
    assert place.reviews() >= before + AT_ONCE
    go_on(pods)


@pytest.mark.usefixtures("promotion")
def test_ca_and_serving_certificates_are_replaced_while_pods_are_created(place: Place, pods: Steady) -> None:
    """The configuration has the new CA before a replica serves with it: no pod is refused, and each is injected."""
    until(lambda: not place.certificates() & place.first_authorities, "serving certificates of the new CA")
    assert place.certificates() <= set(place.bundle())
    go_on(pods)


def test_both_replicas_are_replaced_while_pods_are_created(place: Place, pods: Steady) -> None:
    """One replica after the other is deleted and replaced: no pod is refused, and each is injected."""
    for name in place.ready_names():
        place.cluster.kubectl("delete", "pod", name, "-n", HOME, "--wait=false")
        until(lambda name=name: name not in place.ready_names(), f"{name} to leave")  # type: ignore[misc]
        until(lambda: len(place.ready_names()) == 2, "two replicas")
        go_on(pods)
    pods.stop()


def test_without_it_labelled_pods_are_refused_and_others_are_created(place: Place) -> None:
    """Without the webhook labelled pods are refused, since they would start without their token.

    Other pods are created.
    """
    place.cluster.kubectl("scale", "deployment", DEPLOYMENT, "-n", HOME, "--replicas=0")
    place.cluster.delete("pod", "--all", "-n", HOME)  # they get no time to drain
    errors: list[str] = []

    def is_refused() -> bool:
        process = place.try_create(pod())
        errors.append(process.stderr)
        return process.returncode != 0

    until(is_refused, "the refusal of a pod")
    assert "mutation.azure-workload-identity.io" in errors[-1]
    assert place.try_create(unlabelled()).returncode == 0
    labelled = service_account("labelled")
    labelled["metadata"]["labels"] = {f"{KEY}/use": "true"}
    assert place.try_create(labelled).returncode == 0


def test_it_may_do_little(place: Place) -> None:
    """The webhook may use its own Secret and configuration, read service accounts one by one, and nothing else."""

    def can(verb: str, resource: str, *words: str) -> bool:
        subject = f"system:serviceaccount:{HOME}:azure-wi-webhook-admin"
        process = place.cluster.try_kubectl("auth", "can-i", verb, resource, f"--as={subject}", *words)
        assert process.stdout.strip() in {"yes", "no"}, process.stderr
        return process.stdout.strip() == "yes"

    assert can("get", f"secret/{AUTHORITY}", "-n", HOME)
    assert can("get", "serviceaccounts", "-n", TEAM)
    for namespace in (HOME, TEAM, "kube-system"):
        assert not can("create", "serviceaccounts", "--subresource=token", "-n", namespace)
        assert not can("list", "secrets", "-n", namespace)
        assert not can("list", "serviceaccounts", "-n", namespace)
        assert not can("get", "pods", "-n", namespace)
    assert not can("get", "secrets", "-n", TEAM)
    assert not can("patch", "mutatingwebhookconfigurations")
