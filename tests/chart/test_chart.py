"""The Helm chart: what it renders, what it refuses, and that upstream's values mean what they meant."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from deployment import crds, rights
from prometheus_client import CollectorRegistry

import chart
from podidentity.mic import measuring
from podidentity.mic import observe as mic_observe
from podidentity.nmi import observe as nmi_observe

Json = dict[str, Any]
TOOL = chart.REPOSITORY / "tools" / "chart.py"


def objects(values: Json, **release: str) -> list[Json]:
    """All objects that these values come to."""
    texts = [text for path, text in chart.templates(values, **release).items() if path.endswith(".yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def one(found: list[Json], kind: str, name: str) -> Json:
    """The object of this kind and name."""
    (only,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return only


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each value that a user can set."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from leaves(below, (*path, str(name)))
    else:
        yield path


def test_what_the_chart_renders_is_what_was_reviewed() -> None:
    """Each golden file is what Helm makes of the chart now."""
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(chart.VALUES.iterdir()), ids=lambda path: path.stem)
def test_every_object_is_whole(path: Path) -> None:
    """Each has a kind, a name and labels of the release; nothing is rendered twice."""
    found = objects(yaml.safe_load(path.read_text()) or {})
    keys = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in found]
    assert len(keys) == len(set(keys))
    assert all(each["metadata"]["labels"]["app.kubernetes.io/instance"] == "podidentity" for each in found)


EVERYTHING: Json = yaml.safe_load((chart.VALUES / "everything.yaml").read_text())
IGNORED = {
    ("rbac", "pspEnabled"),  # Kubernetes has no such policies any more
    ("nameOverride",),  # empty in this file: it would rename every object
    ("mic", "cloudConfig"),  # not read beside `adminsecret`
    ("operationMode",),  # the golden files show both
}


@pytest.mark.parametrize("path", [path for path in leaves(EVERYTHING) if path not in IGNORED], ids=".".join)
def test_every_value_takes_effect(path: tuple[str, ...]) -> None:
    """Without it something else is rendered, or it repeats the default."""
    less = copy.deepcopy(EVERYTHING)
    holder = less
    for name in path[:-1]:
        holder = holder[name]
    value = holder.pop(path[-1])
    default: Any = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    for name in path:
        default = default.get(name) if isinstance(default, dict) else None
    assert chart.render(less) != chart.render(EVERYTHING) or str(value) == str(default)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"operationMode": "mannaged"}, "operationMode"),
        ({"nmi": {"kubeletConfig": ""}}, "kubeletConfig"),
        ({"mic": {"syncRetryDuration": "3600"}}, "syncRetryDuration"),
        ({"nmi": {"probePort": "http"}}, "probePort"),
        ({"rbac": {"enabled": "false"}}, "enabled"),
        ({"azureIdentities": {"reader": {"binding": {}}}}, "azureIdentities"),
        ({"mic": {"assignOn": "pods"}}, "assignOn"),
        ({"mic": {"podAnnotations": {"prometheus.io/port": 8888}}}, "podAnnotations"),
    ],
)
def test_a_wrong_value_is_named(values: Json, told: str) -> None:
    """Helm says which value is wrong before anything is installed."""
    with pytest.raises(helm_python.HelmError, match=told):
        chart.render(values)


def test_a_switch_works_with_and_without_quotes() -> None:
    """Upstream's users write "true"."""
    for values in ({"forceNamespaced": True}, {"forceNamespaced": "true"}, {"forceNamespaced": "True"}):
        deployment = one(objects(values), "Deployment", "aad-pod-identity-mic")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert {"name": "FORCENAMESPACED", "value": "true"} in container["env"]


def test_selectors_and_names_are_upstreams() -> None:
    """Selectors cannot be changed: with others an upgrade from upstream's chart would fail."""
    found = objects({})
    for kind, part in (("Deployment", "mic"), ("DaemonSet", "nmi")):
        assert one(found, kind, f"aad-pod-identity-{part}")["spec"]["selector"]["matchLabels"] == {
            "app.kubernetes.io/name": "aad-pod-identity",
            "app.kubernetes.io/instance": "podidentity",
            "app.kubernetes.io/component": part,
        }


def test_roles_are_those_of_the_manifests() -> None:
    """One list of rights serves both: what the code needs is written once."""
    found = objects({})
    assert one(found, "ClusterRole", "aad-pod-identity-nmi")["rules"] == rights.nmi_rules(managed=False)
    assert one(found, "ClusterRole", "aad-pod-identity-mic")["rules"] == rights.mic_rules()
    assert one(found, "Role", "aad-pod-identity-mic")["rules"] == [*rights.record_rules(), *rights.lock_rules()]


@pytest.mark.parametrize("switch", [True, "true", "True"])
def test_namespaces_are_read_where_the_allow_list_is_on(switch: object) -> None:
    """By whoever decides, MIC or NMI in managed mode: without the right it ends; nobody else has it."""
    added = rights.namespace_rules()
    standard = objects({"mic": {"namespaceAllowList": switch}, "nmi": {"namespaceAllowList": switch}})
    assert one(standard, "ClusterRole", "aad-pod-identity-mic")["rules"] == [*rights.mic_rules(), *added]
    assert one(standard, "ClusterRole", "aad-pod-identity-nmi")["rules"] == rights.nmi_rules(managed=False)
    managed = objects({"operationMode": "managed", "nmi": {"namespaceAllowList": switch}})
    assert one(managed, "ClusterRole", "aad-pod-identity-nmi")["rules"] == [*rights.nmi_rules(managed=True), *added]
    off = objects({"operationMode": "managed", "nmi": {"namespaceAllowList": "false"}})
    assert one(off, "ClusterRole", "aad-pod-identity-nmi")["rules"] == rights.nmi_rules(managed=True)


def test_managed_mode_installs_no_mic() -> None:
    """There is nothing for it to do, and nothing of it may stay."""
    found = objects({"operationMode": "managed"})
    assert not [each["metadata"]["name"] for each in found if each["metadata"]["name"].endswith("-mic")]


def test_users_may_not_write_exceptions() -> None:
    """An exception lets a pod ask the node's metadata service: that is for administrators."""
    found = objects({"rbac": {"createUserFacingClusterRoles": True}})
    edit = one(found, "ClusterRole", "podidentity-aad-pod-identity-edit")
    assert {name for rule in edit["rules"] for name in rule["resources"]} == {
        "azureidentities",
        "azureidentitybindings",
    }


def test_the_crds_are_those_of_the_manifests() -> None:
    """Helm installs `crds/` once; both ways of installing give the same kinds."""
    installed = list(yaml.safe_load_all((chart.CHART / "crds" / "crd.yaml").read_text()))
    assert installed == list(crds.all_definitions())


def fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Each field of an object and of what it holds."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield name, below
            yield from fields(below)
    elif isinstance(value, list):
        for each in value:
            yield from fields(each)


TEXTS = frozenset(
    {"name", "namespace", "priorityClassName", "serviceAccountName", "azureIdentity", "selector", "value"}
)
NUMBERS: Json = {
    **{name: EVERYTHING[name] for name in ("monitoring", "networkPolicy", "rbac")},
    "nameOverride": "1",
    "mic": {
        "priorityClassName": "2",
        "leaderElection": {"namespace": "3"},
        "cloudConfig": "4",
        "customCloud": {"enabled": True, "configPath": "5"},
    },
    "nmi": {"priorityClassName": "null", "kubeletConfig": "6"},
    "azureIdentities": [{"name": 1234567, "namespace": "7", "clientID": "8", "binding": {"name": 123, "selector": 1}}],
}


def test_a_text_that_looks_like_something_else_stays_a_text() -> None:
    """Names, namespaces, paths and labels of digits: the API server would refuse numbers."""
    found = objects(NUMBERS, name="9", namespace="10")
    for each in found:
        for name, value in fields(each):
            if name in TEXTS and not isinstance(value, dict):
                assert isinstance(value, str), (each["kind"], name, value)
            if name in {"labels", "matchLabels", "nodeSelector"}:
                assert all(isinstance(text, str) for text in value.values()), (each["kind"], value)
    identity = one(found, "AzureIdentity", "1234567")
    assert identity["metadata"]["namespace"] == "7"
    binding = one(found, "AzureIdentityBinding", "123")
    assert binding["spec"] == {"azureIdentity": "1234567", "selector": "1"}


@pytest.mark.parametrize("value", [0, 1, "50%"])
def test_a_budget_has_what_the_user_wrote_alone(value: object) -> None:
    """Kubernetes refuses both; the default of the other one stands in the values."""
    found = objects({"mic": {"podDisruptionBudget": {"minAvailable": value}}})
    spec = one(found, "PodDisruptionBudget", "mic-pdb")["spec"]
    assert (spec.get("minAvailable"), "maxUnavailable" in spec) == (value, False)


def metric_names() -> set[str]:
    """What the daemons' pages show."""
    of_nmi, of_mic = CollectorRegistry(), CollectorRegistry()
    nmi_observe.Metrics(of_nmi)
    mic_observe.Metrics(of_mic)
    measuring.ArmMetrics(of_mic)
    of_mic.register(measuring.FailingIdentities(lambda: ()))
    suffixes = ("", "_bucket", "_count", "_sum")
    found = [family.name for registry in (of_nmi, of_mic) for family in registry.collect()]
    return {f"{name}{suffix}" for name in found for suffix in suffixes}


@pytest.mark.parametrize("name", ["alerts.yaml", "alerts-mic.yaml", "dashboard.json"])
def test_alerts_and_dashboard_ask_for_metrics_that_there_are(name: str) -> None:
    """Another name would be silent for ever."""
    asked = set(re.findall(r"aadpodidentity_\w+", (chart.CHART / "files" / name).read_text()))
    assert asked
    assert asked <= metric_names()


def test_a_mic_that_is_gone_is_an_alert_and_none_where_it_is_not_installed() -> None:
    """Its metrics are gone with it: the sum of nothing is nothing, and no alert."""

    def alerts(**values: object) -> dict[str, str]:
        found = objects({"monitoring": {"prometheusRule": {"enabled": True}}, **values})
        rule = one(found, "PrometheusRule", "aad-pod-identity")
        return {each["alert"]: each["expr"] for group in rule["spec"]["groups"] for each in group["rules"]}

    assert "or vector(0)" in alerts()["PodIdentityNoLeader"]
    assert not any("_mic_" in expr for expr in alerts(operationMode="managed").values())


def test_every_pod_says_what_it_needs() -> None:
    """Hooks too: a namespace with a quota refuses others, and then nothing is uninstalled."""
    for each in objects({}):
        template = each.get("spec", {}).get("template", {}).get("spec", {})
        for container in [*template.get("initContainers", ()), *template.get("containers", ())]:
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, each["metadata"]["name"]
            assert container["resources"]["limits"].keys() == {"memory"}, each["metadata"]["name"]
