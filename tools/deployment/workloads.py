"""The workloads of the manifests: what the chart renders, under the names, labels and selectors of upstream's files.

The chart is where DaemonSet, Deployment and the rest are defined; here each gets the name that it
has in aad-pod-identity's manifests. Kubernetes forbids changing a selector, so each file keeps that of upstream's file.
"""

import copy
from functools import cache
from typing import Any

import yaml

import chart
from deployment import broker
from deployment.settings import ADMIN_SECRET, MIC_ACCOUNT, NMI_ACCOUNT, Installation, Json

NMI_SELECTOR: Json = {"component": "nmi", "tier": "node"}
NMI_LABELS: Json = {**NMI_SELECTOR, "k8s-app": "aad-pod-id"}
MIC_LABELS: Json = {"component": "mic", "app": "mic", "k8s-app": "aad-pod-id"}
UNINSTALLER_LABELS: Json = {"component": "nmi-uninstall", "k8s-app": "aad-pod-id"}
CHART_NAME = "aad-pod-identity"

NODE_KUBECONFIG = "/var/lib/kubelet/kubeconfig"
KUBECONFIG = "/etc/kubernetes/kubeconfig/kubeconfig"
CERTIFICATES = "/etc/kubernetes/certs"
STARTUP_TAINT = "podidentity.io/starting"
BROKER_URL = f"https://{broker.NAME}.{broker.NAME}.svc"
TOKEN_FILE_PORT = 2580


def daemon_set(installation: Installation) -> Json:
    """Return the DaemonSet `nmi`: on every Linux node, whatever its taints."""
    manifest = _find(installation, "DaemonSet", f"{CHART_NAME}-nmi")
    _rename(manifest, "nmi", NMI_LABELS, NMI_SELECTOR)
    pod = manifest["spec"]["template"]["spec"]
    if installation.rbac:
        pod["serviceAccountName"] = NMI_ACCOUNT
    _use_image(pod, installation.images.nmi)
    return manifest


def deployment(installation: Installation) -> Json:
    """Return the Deployment `mic`: two replicas, of which one leads."""
    manifest = _find(installation, "Deployment", f"{CHART_NAME}-mic")
    both = installation.rbac and installation.azure_json
    selector = {"component": "mic", "app": "mic"} if both else {"component": "mic"}
    _rename(manifest, "mic", MIC_LABELS, selector)
    pod = manifest["spec"]["template"]["spec"]
    if installation.rbac:
        pod["serviceAccountName"] = MIC_ACCOUNT
    (preference,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    preference["podAffinityTerm"]["labelSelector"] = {"matchLabels": {"component": "mic"}}
    for variable in pod["containers"][0]["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference is not None:
            reference["name"] = ADMIN_SECRET
    _use_image(pod, installation.images.mic)
    return manifest


def disruption_budget(installation: Installation) -> Json:
    """Return the budget with which a replica stays while nodes are drained."""
    manifest = _find(installation, "PodDisruptionBudget", "mic-pdb")
    del manifest["metadata"]["labels"]
    manifest["spec"]["selector"] = {"matchLabels": {"component": "mic"}}
    return manifest


def uninstaller(installation: Installation) -> Json:
    """Return the DaemonSet `nmi-uninstall`: a node's pod is ready once its interception is removed."""
    manifest = _find(installation, "DaemonSet", f"{CHART_NAME}-nmi-uninstall")
    del manifest["metadata"]["annotations"]
    _rename(manifest, "nmi-uninstall", UNINSTALLER_LABELS, UNINSTALLER_LABELS)
    _use_image(manifest["spec"]["template"]["spec"], installation.images.nmi)
    return manifest


def startup_taint(installation: Installation) -> list[Json]:
    """Return the right to patch nodes, and the policy that limits it to removing the start-up taint."""
    name = "aad-pod-id-nmi-startup-taint"
    manifests = [
        item for item in _objects(installation) if item["metadata"]["name"] == f"{CHART_NAME}-nmi-startup-taint"
    ]
    for manifest in manifests:
        manifest["metadata"] = {"name": name}
        if "subjects" in manifest:
            manifest["subjects"][0]["name"] = NMI_ACCOUNT
            manifest["roleRef"]["name"] = name
        spec = manifest.get("spec", {})
        if "policyName" in spec:
            spec["policyName"] = name
        for condition in spec.get("matchConditions", ()):
            condition["expression"] = condition["expression"].replace(f":{CHART_NAME}-nmi'", f":{NMI_ACCOUNT}'")
    return manifests


def _rename(manifest: Json, name: str, labels: Json, selector: Json) -> None:
    manifest["metadata"] = {"name": name, "namespace": manifest["metadata"]["namespace"], "labels": dict(labels)}
    manifest["spec"]["selector"] = {"matchLabels": dict(selector)}
    manifest["spec"]["template"]["metadata"] = {"labels": dict(labels)}


def _use_image(pod: Json, image: str) -> None:
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        container["image"] = image


def _find(installation: Installation, kind: str, name: str) -> Json:
    (manifest,) = [item for item in _objects(installation) if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return manifest


def _objects(installation: Installation) -> list[Json]:
    return copy.deepcopy(_render(installation))


@cache
def _render(installation: Installation) -> list[Json]:
    texts = chart.templates(_values(installation), namespace=installation.namespace)
    return [item for path, text in texts.items() if path.endswith(".yaml") for item in yaml.safe_load_all(text) if item]


def _values(installation: Installation) -> dict[str, Any]:
    """Return the chart's values for an installation."""
    values: dict[str, Any] = {
        "forceNamespaced": installation.namespaced,
        "operationMode": "managed" if installation.managed else "standard",
        "rbac": {"enabled": installation.rbac},
        "mic": {},
        # A cluster with aad-pod-identity may have a secrets-store CSI driver that asks on the node's loopback.
        "nmi": {
            "hostTokenLoopback": "" if installation.namespaced else "on",
            "startupTaint": STARTUP_TAINT if installation.startup_taint else "",
        },
    }
    if installation.broker:
        values["nmi"] |= {"broker": {"url": BROKER_URL}, "tokenFilePort": TOKEN_FILE_PORT}
    if not installation.azure_json:
        values["adminsecret"] = {name: f"<{name}>" for name in CREDENTIALS}
    if not installation.rbac:  # MIC then signs in as its node
        values["mic"] = {
            "extraArgs": [f"--kubeconfig={KUBECONFIG}"],
            "volumes": [
                {"name": "kubeconfig", "hostPath": {"path": NODE_KUBECONFIG, "type": "File"}},
                {"name": "certificates", "hostPath": {"path": CERTIFICATES, "type": "Directory"}},
            ],
            "volumeMounts": [
                {"name": "kubeconfig", "mountPath": KUBECONFIG, "readOnly": True},
                {"name": "certificates", "mountPath": CERTIFICATES, "readOnly": True},
            ],
        }
    return values


CREDENTIALS = ("cloud", "subscriptionID", "resourceGroup", "vmType", "tenantID", "clientID", "clientSecret")
"""The chart's names of the values that every user has to fill in."""
