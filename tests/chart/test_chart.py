"""The Helm chart: what it renders, what it refuses, and that upstream's values mean what they meant."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from deployment import crds, rights

import chart

Json = dict[str, Any]
TOOL = chart.REPOSITORY / "tools" / "chart.py"


def objects(values: Json) -> list[Json]:
    """All objects that these values come to."""
    texts = [text for path, text in chart.templates(values).items() if path.endswith(".yaml")]
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
