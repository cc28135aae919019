"""The broker's chart: what it renders, what it refuses, and how little it lets the broker do."""

from typing import Any

import helm_python
import pytest
import yaml
from deployment import broker
from deployment.settings import Images

import chart
from helm_values import assert_restricted, find, leaves, value_at, without
from podidentity.broker.settings import TOKEN_FILE, Settings
from podidentity.cli.broker import TABLE, settings_of
from podidentity.cli.flags import parse
from podidentity.core.exchange import callers, grants
from podidentity.core.model.federation import EXCHANGE_AUDIENCE

Json = dict[str, Any]
TENANT = "11111111-2222-3333-4444-555555555555"
EVERYTHING: Json = yaml.safe_load((chart.BROKER_VALUES / "everything.yaml").read_text())


def objects(values: Json, name: str = "podidentity-broker", namespace: str = "podidentity-broker") -> list[Json]:
    """Return all objects that these values come to."""
    texts = chart.templates({"tenantId": TENANT, **values}, chart=chart.BROKER, name=name, namespace=namespace)
    documents = [yaml.safe_load_all(text) for path, text in texts.items() if path.endswith(".yaml")]
    return [item for document in documents for item in document if item]


def pod(values: Json) -> Json:
    """Return the pod's spec."""
    spec: Json = find(objects(values), "Deployment")["spec"]["template"]["spec"]
    return spec


def settings(values: Json, namespace: str = "podidentity-broker") -> Settings:
    """Return what the broker makes of the flags that it is given."""
    arguments = pod(values)["containers"][0]["args"]
    return settings_of(parse("podidentity broker", TABLE, arguments), {"POD_NAMESPACE": namespace})


@pytest.mark.parametrize("path", [path for path in leaves(EVERYTHING) if path != ("tenantId",)], ids=".".join)
def test_every_value_takes_effect(path: tuple[str, ...]) -> None:
    """Leaving a value out changes what is rendered, unless the value is the default."""
    less, value = without(EVERYTHING, path), value_at(EVERYTHING, path)
    default = value_at(yaml.safe_load((chart.BROKER / "values.yaml").read_text()), path)
    assert objects(less) != objects(EVERYTHING) or value == default


def test_every_value_is_in_the_file_with_everything() -> None:
    """`everything.yaml` sets every value of the chart but `nameOverride`, so that each of them is tested."""
    default = yaml.safe_load((chart.BROKER / "values.yaml").read_text())
    assert set(default) - set(EVERYTHING) == {"nameOverride"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tenantId": ""}, "tenantId"),
        ({"tenantId": "contoso.onmicrosoft.com"}, "tenantId"),
        ({"allowedIdentities": ["reader"]}, "allowedIdentities"),
        ({"bundleNamespaces": "team-a"}, "bundleNamespaces"),
        ({"nmiServiceAccounts": ["nmi"]}, "nmiServiceAccounts"),
        ({"cloud": "public"}, "cloud"),
        ({"replica": 3}, "replica"),
        ({"acceptUnboundTokens": "true"}, "acceptUnboundTokens"),
    ],
)
def test_a_wrong_value_is_named(values: Json, message: str) -> None:
    """Helm says which value is wrong before anything is installed."""
    with pytest.raises(helm_python.HelmError, match=message):
        objects(values)


def test_without_a_tenant_nothing_is_rendered() -> None:
    """Without a tenant ID Helm refuses: a default could be somebody else's tenant."""
    with pytest.raises(helm_python.HelmError, match="tenantId"):
        chart.templates({}, chart=chart.BROKER)


def test_the_broker_understands_what_the_chart_tells_it() -> None:
    """Each value arrives at the setting that it means."""
    told = settings(EVERYTHING)
    assert told.tenant_id == TENANT
    assert told.identities == frozenset(EVERYTHING["allowedIdentities"])
    assert (told.audience, told.unbound_tokens) == ("api://team-a", True)
    assert told.node_daemons == {"podidentity-system/aad-pod-id-nmi-service-account"}
    assert told.bundle_namespaces == ("identity", "team-a-batch", "team-a-web")
    assert (told.name, told.server_names) == ("team-a-broker", ("broker.team-a.example",))
    assert (told.authority, told.drain_seconds) == ("https://login.chinacloudapi.cn", 25.0)
    assert settings({}).audience == callers.AUDIENCE


def test_ports_and_files_are_the_brokers() -> None:
    """The ports are the broker's, the Service leads to the HTTPS port, and the token is where the broker reads it."""
    container = pod({})["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    told = settings({})
    assert ports == {"https": told.port, "probe": told.probe_port, "metrics": told.prometheus_port}
    service = find(objects({}), "Service")["spec"]["ports"]
    assert [(port["port"], port["targetPort"]) for port in service] == [(443, "https")]
    (volume,) = [volume for volume in pod({})["volumes"] if "projected" in volume]
    (source,) = volume["projected"]["sources"]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
    assert f"{mount['mountPath']}/{source['serviceAccountToken']['path']}" == str(TOKEN_FILE)
    assert source["serviceAccountToken"]["audience"] == EXCHANGE_AUDIENCE


def test_an_update_leaves_no_gap() -> None:
    """The new replica is ready first, and the old one has time to drain and to finish what is under way."""
    deployment = find(objects({"drainSeconds": 40}), "Deployment")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert deployment["template"]["spec"]["terminationGracePeriodSeconds"] >= 40 + 10


def test_the_pod_is_restricted() -> None:
    """The pod satisfies Pod Security's level `restricted`, and can write to its own /tmp only."""
    assert_restricted(pod({}))
    (namespace,) = [item for item in broker.installation(Images()) if item["kind"] == "Namespace"]
    assert set(namespace["metadata"]["labels"].values()) == {"restricted"}


def rules(items: list[Json]) -> dict[tuple[str, str], set[tuple[str, str, str, tuple[str, ...]]]]:
    """Return the group, resource, verb and names of each right, by the role's kind and namespace."""
    return {
        (item["kind"], item["metadata"].get("namespace", "")): {
            (group, resource, verb, tuple(rule.get("resourceNames", ())))
            for rule in item["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for item in items
        if item["kind"] in {"Role", "ClusterRole"}
    }


REVIEWS = {
    ("authentication.k8s.io", "tokenreviews", "create", ()),
    ("authorization.k8s.io", "subjectaccessreviews", "create", ()),
}
CA = ("podidentity-broker-ca",)


def test_it_may_do_what_its_code_does_and_nothing_else() -> None:
    """The broker has rights to reviews, Events, its own Secret and ConfigMap, and one ConfigMap in other namespaces."""
    granted = rules(objects({"bundleNamespaces": ["team-a"]}))
    assert granted == {
        ("ClusterRole", ""): REVIEWS,
        ("Role", "podidentity-broker"): {
            *(("", resource, verb, CA) for resource in ("secrets", "configmaps") for verb in ("get", "patch")),
            *(("", resource, "create", ()) for resource in ("secrets", "configmaps", "events")),
            ("", "events", "patch", ()),
        },
        ("Role", "team-a"): {("", "configmaps", verb, CA) for verb in ("get", "patch")},
    }


def test_it_reads_pods_only_for_nmi() -> None:
    """With NMI's accounts set, the broker may get a pod by its name, to see on which node it is, and not list pods."""
    granted = rules(objects({"nmiServiceAccounts": ["podidentity-system/nmi"]}))
    assert granted["ClusterRole", ""] == REVIEWS | {("", "pods", "get", ())}


def test_what_it_fills_is_installed_empty() -> None:
    """The chart brings them empty: the broker needs no right to create them, and an upgrade keeps what is in them."""
    items = [item for item in objects({"bundleNamespaces": ["team-a"]}) if item["kind"] in {"Secret", "ConfigMap"}]
    assert {(item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]) for item in items} == {
        ("Secret", "podidentity-broker", *CA),
        ("ConfigMap", "podidentity-broker", *CA),
        ("ConfigMap", "team-a", *CA),
    }
    assert not [item for item in items if item.keys() & {"data", "stringData", "binaryData"}]


def test_brokers_side_by_side_share_nothing() -> None:
    """Two brokers in one namespace, or of one name in two namespaces, have no object in common."""

    def keys(name: str, namespace: str) -> set[tuple[str, str, str]]:
        return {
            (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
            for item in objects({"bundleNamespaces": ["shared"]}, name, namespace)
        }

    one, other = keys("team-a", "brokers"), keys("team-b", "brokers")
    assert not one & other
    elsewhere = keys("team-a", "other-brokers")
    assert {key for key in one & elsewhere if key[1] != "shared"} == set()


def test_the_notes_say_what_is_to_be_done() -> None:
    """The notes name the federated credential to create, with subject and audience, and the grant in AKS's spelling."""
    texts = chart.templates({"tenantId": TENANT}, chart=chart.BROKER, name="team-a", namespace="brokers")
    (notes,) = [text for path, text in texts.items() if path.endswith("NOTES.txt")]
    assert "system:serviceaccount:brokers:team-a-podidentity-broker" in notes
    assert "az identity federated-credential create" in notes
    assert all(word in notes for word in (EXCHANGE_AUDIENCE, callers.AUDIENCE, grants.GROUP, grants.VERB))
    (role, _) = broker.grant()
    assert (role["rules"][0]["verbs"], role["rules"][0]["apiGroups"]) == ([grants.VERB], [grants.GROUP])


@pytest.mark.parametrize("value", [0, 1, "50%"])
def test_a_budget_has_what_the_user_wrote_alone(value: object) -> None:
    """With `minAvailable` the default `maxUnavailable` is left out, because Kubernetes refuses both together."""
    spec = find(objects({"podDisruptionBudget": {"minAvailable": value}}), "PodDisruptionBudget")["spec"]
    assert (spec.get("minAvailable"), "maxUnavailable" in spec) == (value, False)
