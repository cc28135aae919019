"""The webhook's chart: azure-workload-identity's values and names, and how little it lets the webhook do."""

from typing import Any

import helm_python
import pytest
import yaml
from deployment import webhook
from deployment.settings import Images

import chart
from helm_values import assert_restricted, find, leaves, value_at, without
from podidentity.cli.flags import parse
from podidentity.cli.webhook import TABLE, settings_of
from podidentity.core.injection.rules import USE_LABEL, TokenFileDoor, TokenProxy, TrustBundle
from podidentity.webhook.app import MUTATE_PATH, WARN_PATH
from podidentity.webhook.settings import Settings

Json = dict[str, Any]
TENANT = "11111111-2222-3333-4444-555555555555"
NAMESPACE = webhook.NAMESPACE
EVERYTHING: Json = yaml.safe_load((chart.WEBHOOK_VALUES / "everything.yaml").read_text())
BROKER = "https://podidentity-broker.podidentity-broker.svc"


def objects(values: Json) -> list[Json]:
    """Return all objects that these values come to."""
    texts = chart.templates(
        {"azureTenantID": TENANT, **values}, chart=chart.WEBHOOK, name=webhook.NAME, namespace=NAMESPACE
    )
    documents = [yaml.safe_load_all(text) for path, text in texts.items() if path.endswith(".yaml")]
    return [item for document in documents for item in document if item]


def pod(values: Json) -> Json:
    """Return the pod's spec."""
    spec: Json = find(objects(values), "Deployment")["spec"]["template"]["spec"]
    return spec


def settings(values: Json) -> Settings:
    """Return what the webhook makes of the flags and variables that it is given."""
    items = objects(values)
    (container,) = find(items, "Deployment")["spec"]["template"]["spec"]["containers"]
    (source,) = container["envFrom"]
    variables = find(items, "ConfigMap")
    assert source["configMapRef"]["name"] == variables["metadata"]["name"]
    environ = {"POD_NAMESPACE": NAMESPACE, **variables["data"]}
    return settings_of(parse("podidentity webhook", TABLE, container["args"]), environ)


@pytest.mark.parametrize("path", [path for path in leaves(EVERYTHING) if path != ("azureTenantID",)], ids=".".join)
def test_every_value_takes_effect(path: tuple[str, ...]) -> None:
    """Leaving a value out changes what is rendered, or Helm names what is missing, unless the value is the default."""
    less, value = without(EVERYTHING, path), value_at(EVERYTHING, path)
    default = value_at(yaml.safe_load((chart.WEBHOOK / "values.yaml").read_text()), path)
    try:
        rendered = objects(less)
    except helm_python.HelmError as error:
        assert "customTokenEndpoint" in str(error)  # noqa: PT017  # one of several good ends
        return
    assert rendered != objects(EVERYTHING) or value == default


def test_every_value_is_in_the_file_with_everything() -> None:
    """`everything.yaml` sets every value of the chart, so that each of them is tested."""
    default = yaml.safe_load((chart.WEBHOOK / "values.yaml").read_text())
    assert set(default) == set(EVERYTHING)


PREDECESSORS_VALUES = {
    *("replicaCount", "image", "imagePullSecrets", "nodeSelector", "resources", "tolerations", "affinity"),
    *("topologySpreadConstraints", "service", "azureEnvironment", "azureTenantID", "logLevel", "metricsAddr"),
    *("metricsBackend", "priorityClassName", "mutatingWebhookAnnotations", "mutatingWebhookNamespaceSelector"),
    *("podLabels", "podAnnotations", "podDisruptionBudget", "revisionHistoryLimit", "extraEnv", "extraVolumes"),
    *("extraVolumeMounts", "customTokenEndpoint"),
}
"""The values of azure-workload-identity's chart 1.6."""


def test_the_predecessors_values_are_taken() -> None:
    """The chart has each value of azure-workload-identity's chart, so a user's file of values stays valid."""
    assert set(yaml.safe_load((chart.WEBHOOK / "values.yaml").read_text())) >= PREDECESSORS_VALUES


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"azureTenantID": ""}, "azureTenantID"),
        ({"azureEnvironment": "public"}, "azureEnvironment"),
        ({"replicas": 3}, "replicas"),
        ({"metricsBackend": "stackdriver"}, "metricsBackend"),
        ({"customTokenEndpoint": {"azureKubernetesTokenProxy": "http://broker"}}, "azureKubernetesTokenProxy"),
        ({"customTokenEndpoint": {"azureKubernetesTokenProxy": BROKER}}, "exactly one of azureKubernetesCaData"),
        ({"customTokenEndpoint": {"annotationSuffix": "broker"}}, "give both or neither"),
        ({"customTokenEndpoint": {"annotationSuffix": "b", "audience": "api://b"}}, "needs azureKubernetesTokenProxy"),
    ],
)
def test_a_wrong_value_is_named(values: Json, message: str) -> None:
    """Helm says which value is wrong before anything is installed."""
    with pytest.raises(helm_python.HelmError, match=message):
        objects(values)


def test_the_webhook_understands_what_the_chart_tells_it() -> None:
    """Each value arrives at the setting that it means."""
    result = settings(EVERYTHING)
    assert (result.rules.tenant_id, result.rules.authority_host) == (
        TENANT,
        "https://login.chinacloudapi.cn/",
    )
    trust = TrustBundle(signer="example.com/broker", labels={"matchLabels": {"live": "true"}})
    name = "podidentity-broker.podidentity-broker.svc"
    assert result.rules.proxy == TokenProxy("https://broker.team-a.example", trust, name, "api://team-a", "broker")
    assert result.rules.token_file == TokenFileDoor(2580, "api://team-a")
    assert (result.port, result.prometheus_port, result.drain_seconds) == (9444, 9095, 25.0)
    default = settings({})
    assert (default.rules.proxy, default.rules.token_file) == (None, None)


def test_the_broker_as_it_is_installed_needs_two_values() -> None:
    """The broker's address and the ConfigMap with its CA are enough; audience and annotation are AKS's."""
    endpoint = {"azureKubernetesTokenProxy": BROKER, "azureKubernetesCAConfigMapName": "podidentity-broker-ca"}
    proxy = settings({"customTokenEndpoint": endpoint}).rules.proxy
    assert proxy == TokenProxy(BROKER, TrustBundle(config_map="podidentity-broker-ca"))


def test_names_and_ports_are_what_the_webhook_expects() -> None:
    """Service, Secret and configuration have the names, and the container the ports, that the webhook's flags say."""
    items, result = objects({}), settings({})
    assert find(items, "Service")["metadata"]["name"] == result.service
    assert find(items, "Secret")["metadata"]["name"] == result.secret
    assert find(items, "MutatingWebhookConfiguration")["metadata"]["name"] == result.configuration
    (container,) = pod({})["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        "webhook-server": result.port,
        "healthz": result.probe_port,
        "metrics": result.prometheus_port,
    }
    (port,) = find(items, "Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (443, result.port)


def test_a_release_of_the_predecessor_is_upgraded_in_place() -> None:
    """The Deployment's selector, which cannot change, is that of azure-workload-identity's chart."""
    assert find(objects({}), "Deployment")["spec"]["selector"]["matchLabels"] == {
        "app": "workload-identity-webhook",
        "azure-workload-identity.io/system": "true",
        "chart": "workload-identity-webhook",
        "release": webhook.NAME,
    }


def test_only_labelled_pods_that_are_created_are_sent() -> None:
    """As azure-workload-identity registers it, only labelled pods are sent: others do not depend on the webhook."""
    selector = {"matchExpressions": [{"key": "team", "operator": "Exists"}]}
    configuration = find(objects({"mutatingWebhookNamespaceSelector": selector}), "MutatingWebhookConfiguration")
    mutation, warning = configuration["webhooks"]
    assert mutation["name"] == "mutation.azure-workload-identity.io"
    assert (mutation["failurePolicy"], mutation["reinvocationPolicy"]) == ("Fail", "IfNeeded")
    (rule,) = mutation["rules"]
    assert (rule["operations"], rule["resources"]) == (["CREATE"], ["pods"])
    assert warning["failurePolicy"] == "Ignore"
    assert "pods" not in [resource for rule in warning["rules"] for resource in rule["resources"]]
    paths = (MUTATE_PATH, WARN_PATH)
    for item, path in zip((mutation, warning), paths, strict=True):
        assert item["objectSelector"] == {"matchLabels": {USE_LABEL: "true"}}
        assert item["namespaceSelector"] == selector
        assert item["clientConfig"]["service"]["path"] == path
        assert "caBundle" not in item["clientConfig"]
        assert item["sideEffects"] == "None"


def test_an_update_leaves_no_gap() -> None:
    """The new replica is ready first, and the old one has time to drain and to finish what is under way."""
    deployment = find(objects({"drainSeconds": 40}), "Deployment")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert deployment["template"]["spec"]["terminationGracePeriodSeconds"] >= 40 + 10


def test_another_tenant_replaces_the_replicas() -> None:
    """Another tenant ID changes the pod template, because replicas read their environment only when they start."""
    other = {"azureTenantID": TENANT.replace("1", "9")}
    templates = [find(objects(values), "Deployment")["spec"]["template"] for values in ({}, other)]
    assert templates[0]["metadata"] != templates[1]["metadata"]


def test_the_pod_is_restricted() -> None:
    """The pod satisfies Pod Security's level `restricted`, and can write to its own /tmp only."""
    assert_restricted(pod({}))
    (namespace,) = [item for item in webhook.installation(Images()) if item["kind"] == "Namespace"]
    assert set(namespace["metadata"]["labels"].values()) == {"restricted"}


def test_it_may_do_what_its_code_does_and_nothing_else() -> None:
    """The webhook may get service accounts, and read and patch its own configuration and Secret by their names."""
    rules = {
        (item["kind"], resource, verb, tuple(rule.get("resourceNames", ())))
        for item in objects({})
        if item["kind"] in {"Role", "ClusterRole"}
        for rule in item["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    names = settings({})
    assert rules == {
        ("ClusterRole", "serviceaccounts", "get", ()),
        *(("ClusterRole", "mutatingwebhookconfigurations", v, (names.configuration,)) for v in ("get", "patch")),
        *(("Role", "secrets", verb, (names.secret,)) for verb in ("get", "patch")),
        ("Role", "secrets", "create", ()),
    }


def test_what_it_fills_is_installed_empty() -> None:
    """The chart brings the Secret empty: with contents, each upgrade would replace what the webhook wrote."""
    assert not find(objects({}), "Secret").keys() & {"data", "stringData"}


@pytest.mark.parametrize("value", [0, 1, "50%"])
def test_a_budget_has_what_the_user_wrote_alone(value: object) -> None:
    """With `maxUnavailable` there is no `minAvailable`, because Kubernetes refuses both; without a value, no budget."""
    spec = find(objects({"podDisruptionBudget": {"maxUnavailable": value}}), "PodDisruptionBudget")["spec"]
    assert (spec.get("maxUnavailable"), "minAvailable" in spec) == (value, False)
    assert not [item for item in objects({"podDisruptionBudget": None}) if item["kind"] == "PodDisruptionBudget"]
