"""The Helm chart: what it renders, what it refuses, and that upstream's values mean what they meant."""

import json
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
from helm_values import leaves, value_at, without
from podidentity.cli.flags import parse
from podidentity.cli.nmi import TABLE, settings_of
from podidentity.core.model.federation import PROXY_AUDIENCE
from podidentity.mic import metrics as mic_metrics
from podidentity.nmi import metrics as nmi_observe

Json = dict[str, Any]
TOOL = chart.REPOSITORY / "tools" / "chart.py"


def objects(values: Json, name: str = "podidentity", namespace: str = "identity") -> list[Json]:
    """Return all objects that these values come to."""
    rendered = chart.templates(values, name=name, namespace=namespace)
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def one(found: list[Json], kind: str, name: str) -> Json:
    """Return the object of this kind and name."""
    (only,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return only


def test_what_the_chart_renders_is_what_was_reviewed() -> None:
    """Each golden file is what Helm makes of the chart now."""
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(chart.VALUES.iterdir()), ids=lambda path: path.stem)
def test_every_object_is_whole(path: Path) -> None:
    """Each object has a kind, a name and the release's labels, and none is rendered twice."""
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
    ("nmi", "broker", "url"),  # the token-file door needs it
}


@pytest.mark.parametrize("path", [path for path in leaves(EVERYTHING) if path not in IGNORED], ids=".".join)
def test_every_value_takes_effect(path: tuple[str, ...]) -> None:
    """Leaving a value out changes what is rendered, unless the value is the default."""
    less, value = without(EVERYTHING, path), value_at(EVERYTHING, path)
    default = value_at(yaml.safe_load((chart.CHART / "values.yaml").read_text()), path)
    assert chart.render(less) != chart.render(EVERYTHING) or str(value) == str(default)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"operationMode": "mannaged"}, "operationMode"),
        ({"nmi": {"kubeletConfig": ""}}, "kubeletConfig"),
        ({"mic": {"syncRetryDuration": "3600"}}, "syncRetryDuration"),
        ({"nmi": {"probePort": "http"}}, "probePort"),
        ({"nmi": {"tokenFilePort": 2580}}, "nmi.broker.url"),
        ({"nmi": {"broker": {"url": "http://broker"}}}, "url"),
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
    """A switch may be a boolean or a text, because upstream's users write "true"."""
    for switch, value in ((True, "true"), ("true", "true"), ("True", "true"), (False, "false"), ("False", "false")):
        for name in ("forceNamespaced", "forceNameSpaced"):
            assert namespaced({name: switch}) == {value}


def namespaced(values: Json) -> set[str]:
    """Return the values of FORCENAMESPACED that both daemons get."""
    found = objects(values)
    parts = [one(found, "Deployment", "aad-pod-identity-mic"), one(found, "DaemonSet", "aad-pod-identity-nmi")]
    containers = [part["spec"]["template"]["spec"]["containers"][0] for part in parts]
    return {each["value"] for container in containers for each in container["env"] if each["name"] == "FORCENAMESPACED"}


def test_a_new_release_is_namespaced_and_reads_no_secret() -> None:
    """By default both daemons are namespaced, no Secret may be read, and the only exception is AKS's."""
    assert namespaced({}) == {"true"}
    found = objects({})
    roles = [each for each in found if each["kind"] in {"ClusterRole", "Role"}]
    readers = [each["metadata"]["name"] for each in roles for rule in each["rules"] if "secrets" in rule["resources"]]
    assert readers == ["aad-pod-identity-nmi-secrets"]
    bound = [each["metadata"]["name"] for each in found if each.get("roleRef", {}).get("name") == readers[0]]
    assert bound == []
    exceptions = [each["metadata"] for each in found if each["kind"] == "AzurePodIdentityException"]
    assert [(each["namespace"], each["name"]) for each in exceptions] == [("kube-system", "aks-addon-exception")]


def test_secrets_are_read_where_service_principals_are() -> None:
    """NMI may read Secrets where that is set, where the chart has service principals, or everywhere by a switch."""
    values: Json = {
        "rbac": {"secretNamespaces": ["team-a"]},
        "nmi": {"secretNamespaces": ["team-b"]},
        "azureIdentities": {"db": {"namespace": "team-c", "type": 1}, "web": {"namespace": "team-d", "type": 0}},
    }
    bindings = [each for each in objects(values) if each["kind"] == "RoleBinding"]
    places = {each["metadata"]["namespace"] for each in bindings if each["roleRef"]["name"].endswith("-nmi-secrets")}
    assert places == {"team-a", "team-b", "team-c"}
    for switch in (True, "true"):
        role = one(objects({"rbac": {"allowAccessToSecrets": switch}}), "ClusterRole", "aad-pod-identity-nmi")
        assert role["rules"] == [*rights.nmi_rules(managed=False), *rights.secret_rules()]


@pytest.mark.parametrize("namespace", ["default", "kube-system", "migrated"])
def test_the_lock_is_where_every_mic_looks(namespace: str) -> None:
    """MIC's lock is in `default`, as in the predecessor's chart: all MICs of a cluster then have one lock."""
    found = objects({}, namespace=namespace)
    assert "leader-election-namespace" not in str(found)  # the daemon's own default
    places = {
        each["metadata"]["namespace"]
        for each in found
        if each["kind"] == "Role" and "endpoints" in str(each["rules"]) and "uninstall" not in each["metadata"]["name"]
    }
    assert places == {"default"}
    chosen = objects({"mic": {"leaderElection": {"namespace": "locks", "name": "one"}}}, namespace=namespace)
    (role,) = [each for each in chosen if each["kind"] == "Role" and each["metadata"]["namespace"] == "locks"]
    assert {tuple(rule.get("resourceNames", ())) for rule in role["rules"]} == {("one",), ()}
    (container,) = one(chosen, "Deployment", "aad-pod-identity-mic")["spec"]["template"]["spec"]["containers"]
    assert {"--leader-election-namespace=locks", "--leader-election-name=one"} <= set(container["args"])


@pytest.mark.parametrize("value", ["a,b", ["a", "b"]])
def test_immutable_identities_are_a_list_or_a_text(value: object) -> None:
    """The predecessor's chart takes both, and its own suite passes a text."""
    (container,) = one(objects({"mic": {"immutableUserMSIs": value}}), "Deployment", "aad-pod-identity-mic")["spec"][
        "template"
    ]["spec"]["containers"]
    assert "--immutable-user-msis=a,b" in container["args"]


SWITCHES = ("true", "false", True, False)
NUMBERS_OR_TEXTS = (7, "7")
PREDECESSORS: Json = {
    "nameOverride": ("x",),
    "fullnameOverride": ("x",),
    "image.repository": ("mcr.example/x",),
    "image.imagePullPolicy": ("Always",),
    "imagePullSecrets": ([{"name": "x"}], []),
    "customUserAgent": ("x",),
    "forceNamespaced": SWITCHES,
    "installMICException": SWITCHES,
    "operationMode": ("standard", "managed"),
    "adminsecret": ({}, {"cloud": "c", "useMSI": "true", "clientID": "msi", "clientSecret": "msi"}, {"useMSI": True}),
    "rbac.enabled": (True, False),
    "rbac.allowAccessToSecrets": (True, False),
    "rbac.createUserFacingClusterRoles": (True, False),
    "rbac.pspEnabled": (True, False),
    "azureIdentities": ({}, [], [{"name": "x", "type": 0, "resourceID": "", "clientID": "", "namespace": ""}], None),
    "installCRDs": (False,),
    "mic.image": ("x",),
    "mic.tag": ("v1.8.17",),
    "mic.priorityClassName": ("", "x"),
    "mic.logVerbosity": (0, 9, "9"),
    "mic.loggingFormat": ("", "text", "json"),
    "mic.replicas": (2, "2"),
    "mic.resources": ({}, {"limits": {"cpu": "200m"}}),
    "mic.podAnnotations": ({}, {"x": "y"}),
    "mic.podLabels": ({}, {"x": "y"}),
    "mic.nodeSelector": ({}, {"x": "y"}),
    "mic.tolerations": ([], [{"operator": "Exists"}]),
    "mic.affinity": ({}, {"nodeAffinity": {}}),
    "mic.topologySpreadConstraints": ([], [{"maxSkew": 1}]),
    "mic.leaderElection.instance": ("", "x"),
    "mic.leaderElection.namespace": ("", "x"),
    "mic.leaderElection.name": ("", "x"),
    "mic.leaderElection.duration": ("", "15s"),
    "mic.probePort": ("", *NUMBERS_OR_TEXTS),
    "mic.syncRetryDuration": ("", "3600s"),
    "mic.immutableUserMSIs": ("", "a", "a,b", [], ["a"]),
    "mic.createDeleteBatch": ("", *NUMBERS_OR_TEXTS),
    "mic.clientQps": ("", *NUMBERS_OR_TEXTS),
    "mic.prometheusPort": ("", *NUMBERS_OR_TEXTS),
    "mic.cloudConfig": ("/x",),
    "mic.customCloud.enabled": (True, False),
    "mic.customCloud.configPath": ("/x",),
    "mic.updateUserMSIMaxRetry": ("", *NUMBERS_OR_TEXTS),
    "mic.updateUserMSIRetryInterval": ("", "1s"),
    "mic.identityAssignmentReconcileInterval": ("", "3m"),
    "mic.podDisruptionBudget": ({}, {"minAvailable": 1}, {"maxUnavailable": "50%"}),
    "nmi.image": ("x",),
    "nmi.tag": ("v1.8.17",),
    "nmi.priorityClassName": ("", "x"),
    "nmi.logVerbosity": (0, 9, "9"),
    "nmi.loggingFormat": ("", "text", "json"),
    "nmi.resources": ({}, {"limits": {"cpu": "200m"}}),
    "nmi.podAnnotations": ({}, {"x": "y"}),
    "nmi.podLabels": ({}, {"x": "y"}),
    "nmi.nodeSelector": ({}, {"x": "y"}),
    "nmi.tolerations": ([], [{"operator": "Exists"}]),
    "nmi.affinity": ({}, {"nodeAffinity": {}}),
    "nmi.updateStrategy": ({"type": "RollingUpdate"}, {"rollingUpdate": {"maxUnavailable": 1}}),
    "nmi.ipTableUpdateTimeIntervalInSeconds": ("", *NUMBERS_OR_TEXTS),
    "nmi.micNamespace": ("", "x"),
    "nmi.probePort": ("8085", 8085, ""),
    "nmi.retryAttemptsForCreated": ("", *NUMBERS_OR_TEXTS),
    "nmi.retryAttemptsForAssigned": ("", *NUMBERS_OR_TEXTS),
    "nmi.findIdentityRetryIntervalInSeconds": ("", *NUMBERS_OR_TEXTS),
    "nmi.enableScaleFeatures": ("", *SWITCHES),
    "nmi.prometheusPort": ("", *NUMBERS_OR_TEXTS),
    "nmi.blockInstanceMetadata": ("", *SWITCHES),
    "nmi.metadataHeaderRequired": ("", *SWITCHES),
    "nmi.allowNetworkPluginKubenet": ("", *SWITCHES),
    "nmi.kubeletConfig": ("/etc/default/kubelet",),
    "nmi.setRetryAfterHeader": ("", *SWITCHES),
    "nmi.enableConntrackDeletion": ("", *SWITCHES),
}
"""Each value of the predecessor's chart, in the types that its templates take (`--set` makes numbers and booleans)."""


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in PREDECESSORS.items() for value in values], ids=str
)
def test_a_value_of_the_predecessors_chart_is_taken(path: str, value: Any) -> None:
    """Each type of value that its templates take is accepted: a refusal would end `helm upgrade` before a migration."""
    values: Json = {}
    holder = values
    *above, last = path.split(".")
    for name in above:
        holder = holder.setdefault(name, {})
    holder[last] = value
    assert objects(values)


def test_values_of_a_release_of_the_predecessors_are_enough() -> None:
    """`helm upgrade --reuse-values` brings none of this chart's new values: where they are missing, defaults count."""
    missing: Json = dict.fromkeys(("monitoring", "networkPolicy", "uninstallHooks", "installAKSException"))
    ours = (
        "assignOn",
        "unassignDelay",
        "assignedIdentities",
        "namespaceAllowList",
        "extraArgs",
        "volumes",
        "volumeMounts",
    )
    missing["mic"] = dict.fromkeys(ours)
    of_nmi = ("tokenCache", "hostTokenEndpoint", "secretNamespaces", "antiSpoof", "startupTaint", "namespaceAllowList")
    missing["nmi"] = dict.fromkeys((*of_nmi, "extraArgs"))
    missing["rbac"] = {"secretNamespaces": None}
    assert objects(missing) == objects({})


def test_the_uninstall_hook_does_what_mic_does() -> None:
    """The hook runs before deletion with MIC's volumes, environment and flags, and may change MIC's Deployment."""
    found = objects({"mic": {"immutableUserMSIs": "x", "leaderElection": {"namespace": "locks"}}})
    job = one(found, "Job", "aad-pod-identity-mic-uninstall")
    pod = job["spec"]["template"]["spec"]
    mic = one(found, "Deployment", "aad-pod-identity-mic")["spec"]["template"]["spec"]
    (container,), (of_mic,) = pod["containers"], mic["containers"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert pod["hostNetwork"] is True  # NMI would refuse its requests to IMDS from the pod network
    assert (pod["volumes"], container["volumeMounts"]) == (mic["volumes"], of_mic["volumeMounts"])
    assert container["env"] == of_mic["env"]
    assert "--uninstall-deployment=aad-pod-identity-mic" in container["args"]
    shared = {
        "--cloudconfig=/etc/kubernetes/azure.json",
        "--immutable-user-msis=x",
        "--leader-election-namespace=locks",
    }
    assert shared <= set(container["args"])
    assert shared <= set(of_mic["args"])
    role = one(found, "Role", "aad-pod-identity-mic-uninstall")
    assert role["rules"][0]["resourceNames"] == ["aad-pod-identity-mic"]


@pytest.mark.parametrize("keep", [False, True])
def test_the_guard_stays_where_it_is_asked_to(*, keep: bool) -> None:
    """`keepGuard` keeps the guard when NMI is uninstalled, and the notes say which of the two happens."""
    texts = chart.templates({"uninstallHooks": {"keepGuard": keep}})
    found = [
        each for path, text in texts.items() if path.endswith(".yaml") for each in yaml.safe_load_all(text) if each
    ]
    pod = one(found, "DaemonSet", "aad-pod-identity-nmi-uninstall")["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["args"] == (["--uninstall", "--keep-guard"] if keep else ["--uninstall"])
    notes = next(text for path, text in texts.items() if path.endswith("NOTES.txt"))
    assert ("The guard stays" in notes) == keep
    assert ("every pod\nreaches the metadata service" in notes) != keep


def test_notes_warn_of_what_is_open() -> None:
    """The notes warn of three values of the predecessor's that open more than needed, and of nothing by default."""
    values = {"forceNamespaced": "false", "rbac": {"allowAccessToSecrets": True}, "installMICException": "true"}
    notes = next(text for path, text in chart.templates(values).items() if path.endswith("NOTES.txt"))
    assert notes.count("WARNING") == 3
    quiet = next(text for path, text in chart.templates({}).items() if path.endswith("NOTES.txt"))
    assert "WARNING" not in quiet


def test_nmi_finds_what_it_needs_for_the_broker() -> None:
    """The CA and a token of the broker's audience are where NMI's flags look; without a broker there is neither."""
    url = "https://podidentity-broker.podidentity-broker.svc"
    values = {"operationMode": "managed", "nmi": {"broker": {"url": url}, "tokenFilePort": "2580"}}
    pod = one(objects(values), "DaemonSet", "aad-pod-identity-nmi")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = settings_of(parse("nmi", TABLE, container["args"]), {"FORCENAMESPACED": "true"})
    assert (settings.broker, settings.token_file_port) == (url, 2580)
    # The broker's URL names a Service, which only the cluster's DNS knows.
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "broker"]
    token, authority = volume["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == PROXY_AUDIENCE
    paths = [token["serviceAccountToken"]["path"], authority["configMap"]["items"][0]["path"]]
    (mount,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "broker"]
    assert [Path(mount, path) for path in paths] == [settings.broker_token, settings.broker_ca]
    assert "broker" not in chart.render({"operationMode": "managed"})


def test_the_startup_taint_comes_with_a_policy() -> None:
    """With a start-up taint the chart has a policy that limits NMI's changes of nodes, and without one it has none."""
    found = objects({"nmi": {"startupTaint": "example.com/starting"}}, namespace="identity")
    policy = one(found, "ValidatingAdmissionPolicy", "aad-pod-identity-nmi-startup-taint")
    assert "system:serviceaccount:identity:aad-pod-identity-nmi" in policy["spec"]["matchConditions"][0]["expression"]
    assert "example.com/starting" in str(policy["spec"]["validations"])
    assert one(found, "ValidatingAdmissionPolicyBinding", "aad-pod-identity-nmi-startup-taint")
    assert not [each for each in objects({}) if "startup-taint" in each["metadata"]["name"]]


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
    """The chart's roles have the rights of the manifests' roles, from the one list in the code."""
    found = objects({})
    assert one(found, "ClusterRole", "aad-pod-identity-nmi")["rules"] == rights.nmi_rules(managed=False)
    assert one(found, "ClusterRole", "aad-pod-identity-mic")["rules"] == rights.mic_rules()
    in_default, at_home = [each for each in found if (each["kind"], each["metadata"]["name"]) == MIC_ROLE]
    if in_default["metadata"]["namespace"] != "default":
        in_default, at_home = at_home, in_default
    assert (at_home["rules"], in_default["rules"]) == (rights.record_rules(), rights.lock_rules())
    assert one(found, "Role", "aad-pod-identity-nmi")["rules"] == rights.machine_rules()


MIC_ROLE = ("Role", "aad-pod-identity-mic")


@pytest.mark.parametrize("switch", [True, "true", "True"])
def test_namespaces_are_read_where_the_allow_list_is_on(switch: object) -> None:
    """With the allow list NMI, and MIC in standard mode, may read namespaces; without it NMI may not.

    In standard mode NMI has MIC's rule: it decides what MIC's assigned identities would have said.
    """
    added = rights.namespace_rules()
    standard = objects({"mic": {"namespaceAllowList": switch}})
    assert one(standard, "ClusterRole", "aad-pod-identity-mic")["rules"] == [*rights.mic_rules(), *added]
    assert one(standard, "ClusterRole", "aad-pod-identity-nmi")["rules"] == [*rights.nmi_rules(managed=False), *added]
    (nmi,) = one(standard, "DaemonSet", "aad-pod-identity-nmi")["spec"]["template"]["spec"]["containers"]
    assert "--namespace-allow-list=true" in nmi["args"]
    managed = objects({"operationMode": "managed", "nmi": {"namespaceAllowList": switch}})
    assert one(managed, "ClusterRole", "aad-pod-identity-nmi")["rules"] == [*rights.nmi_rules(managed=True), *added]
    off = objects({"operationMode": "managed", "nmi": {"namespaceAllowList": "false"}})
    assert one(off, "ClusterRole", "aad-pod-identity-nmi")["rules"] == rights.nmi_rules(managed=True)


def test_managed_mode_installs_no_mic() -> None:
    """In managed mode no object of MIC is rendered, because MIC would have nothing to do."""
    found = objects({"operationMode": "managed"})
    assert not [each["metadata"]["name"] for each in found if each["metadata"]["name"].endswith("-mic")]


def test_users_may_not_write_exceptions() -> None:
    """An exception lets a pod ask the node's metadata service, so only administrators may write one."""
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
    """Yield each field of an object, at any depth, with its value."""
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
    **{name: EVERYTHING[name] for name in ("monitoring", "networkPolicy")},
    "rbac": EVERYTHING["rbac"] | {"secretNamespaces": ["11"]},
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
    """Names, namespaces, paths and labels of digits stay texts: the API server would refuse numbers."""
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
    """With `minAvailable` the default `maxUnavailable` is left out, because Kubernetes refuses both together."""
    found = objects({"mic": {"podDisruptionBudget": {"minAvailable": value}}})
    spec = one(found, "PodDisruptionBudget", "mic-pdb")["spec"]
    assert (spec.get("minAvailable"), "maxUnavailable" in spec) == (value, False)


def metric_names() -> set[str]:
    """Return the names of all metrics on the daemons' pages."""
    of_nmi, of_mic = CollectorRegistry(), CollectorRegistry()
    nmi_observe.Metrics(of_nmi)
    mic_metrics.Metrics(of_mic)
    of_mic.register(mic_metrics.FailingIdentities())
    suffixes = ("", "_bucket", "_count", "_sum")
    found = [family.name for registry in (of_nmi, of_mic) for family in registry.collect()]
    return {f"{name}{suffix}" for name in found for suffix in suffixes}


@pytest.mark.parametrize("name", ["alerts.yaml", "alerts-mic.yaml", "dashboard.json"])
def test_alerts_and_dashboard_ask_for_metrics_that_there_are(name: str) -> None:
    """An alert or panel that asks for any other metric would be silent for ever."""
    asked = set(re.findall(r"aadpodidentity_\w+", (chart.CHART / "files" / name).read_text()))
    assert asked
    assert asked <= metric_names()


@pytest.mark.parametrize(
    "name",
    [
        "nmi_redirect_stands",
        "nmi_redirect_repairs_count",
        "nmi_waiting_requests",
        "nmi_unproven_pods",
        "mic_new_leader_election_count",
        "mic_failing_identities",
    ],
)
def test_what_tells_of_trouble_is_on_a_panel_and_in_an_alert(name: str) -> None:
    """Each is on the dashboard and in its own daemon's alerts: MIC's are left out where MIC is not installed."""
    files = chart.CHART / "files"
    assert f"aadpodidentity_{name}" in (files / "dashboard.json").read_text()
    alerts = "alerts-mic.yaml" if name.startswith("mic") else "alerts.yaml"
    assert f"aadpodidentity_{name}" in (files / alerts).read_text()


def test_a_panel_shows_each_series_that_it_names() -> None:
    """No panel asks for `a or b`, which shows b only where a has no value, and each panel has its own ID."""
    panels = json.loads((chart.CHART / "files" / "dashboard.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert not [text for text in expressions if " or " in text]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_a_mic_that_is_gone_is_an_alert_and_none_where_it_is_not_installed() -> None:
    """The alert counts MIC's metrics as 0 when they are gone with MIC; in managed mode no alert asks for MIC."""

    def alerts(**values: object) -> dict[str, str]:
        found = objects({"monitoring": {"prometheusRule": {"enabled": True}}, **values})
        rule = one(found, "PrometheusRule", "aad-pod-identity")
        return {each["alert"]: each["expr"] for group in rule["spec"]["groups"] for each in group["rules"]}

    assert "or vector(0)" in alerts()["PodIdentityNoLeader"]
    assert not any("_mic_" in expr for expr in alerts(operationMode="managed").values())


def test_every_pod_says_what_it_needs() -> None:
    """All pods, hooks' too, have requests and limits: a namespace with a quota would refuse them without."""
    for each in objects({}):
        template = each.get("spec", {}).get("template", {}).get("spec", {})
        for container in [*template.get("initContainers", ()), *template.get("containers", ())]:
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, each["metadata"]["name"]
            assert container["resources"]["limits"].keys() == {"memory"}, each["metadata"]["name"]
