"""MIC's Deployment, its disruption budget, its credentials and its exceptions. Called by `files`.

MIC drops every capability. It stays uid 0 where it reads azure.json or a kubeconfig of the node, which belong to root
with mode 0600; else it runs as nobody in particular.
"""

from deployment.pods import (
    LINUX,
    from_field,
    from_secret,
    host_path,
    locked_down,
    mount,
    port,
    probes,
    resources,
    unprivileged,
)
from deployment.settings import ADMIN_SECRET, API_VERSION, MIC_ACCOUNT, Installation, Json

PROBE_PORT = 8080
AZURE_JSON = "/etc/kubernetes/azure.json"
NODE_KUBECONFIG = "/var/lib/kubelet/kubeconfig"
KUBECONFIG = "/etc/kubernetes/kubeconfig/kubeconfig"
CERTIFICATES = "/etc/kubernetes/certs"

# Key of the Secret, the environment variable it becomes, whether it may be absent.
CREDENTIALS = (
    ("Cloud", "CLOUD", False),
    ("SubscriptionID", "SUBSCRIPTION_ID", False),
    ("ResourceGroup", "RESOURCE_GROUP", False),
    ("VMType", "VM_TYPE", False),
    ("TenantID", "TENANT_ID", False),
    ("ClientID", "CLIENT_ID", False),
    ("ClientSecret", "CLIENT_SECRET", False),
    ("UseMSI", "USE_MSI", True),
    ("UserAssignedMSIClientID", "USER_ASSIGNED_MSI_CLIENT_ID", True),
)


def deployment(installation: Installation) -> Json:
    """The Deployment `mic`: two replicas, of which one leads."""
    labels: Json = {"component": "mic", "app": "mic", "k8s-app": "aad-pod-id"}
    # A Deployment's selector cannot be changed, so each file keeps the one that upstream's file has.
    selector = (
        {"component": "mic", "app": "mic"} if installation.rbac and installation.azure_json else {"component": "mic"}
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mic", "namespace": installation.namespace, "labels": labels},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": labels}, "spec": _pod(installation)},
        },
    }


def disruption_budget(installation: Installation) -> Json:
    """One replica stays while nodes are drained."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "mic-pdb", "namespace": installation.namespace},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"component": "mic"}}},
    }


def credentials(installation: Installation) -> Json:
    """The Secret to fill in: where the cluster is in Azure, and what MIC signs in with."""
    examples = {"Cloud": "AzurePublicCloud", "VMType": "vmss"}
    wanted = [key for key, _, optional in CREDENTIALS if not optional]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": ADMIN_SECRET, "namespace": installation.namespace},
        "stringData": {key: examples.get(key, f"<{key}>") for key in wanted},
    }


def exceptions(installation: Installation) -> list[Json]:
    """MIC's own requests go to the node's metadata service, and so do those of AKS's add-ons."""
    return [
        _exception("mic-exception", installation.namespace, {"app": "mic", "component": "mic"}),
        _exception("aks-addon-exception", "kube-system", {"kubernetes.azure.com/managedby": "aks"}),
    ]


def _exception(name: str, namespace: str, labels: Json) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": "AzurePodIdentityException",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podLabels": labels},
    }


def _pod(installation: Installation) -> Json:
    spec: Json = {
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": LINUX,
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_apart()]}},
        "containers": [_container(installation)],
    }
    if installation.rbac:
        spec = {"serviceAccountName": MIC_ACCOUNT, **spec}
    volumes = [volume for volume, _ in _volumes(installation)]
    return {**spec, "volumes": volumes} if volumes else spec


def _apart() -> Json:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"component": "mic"}}}
    return {"weight": 100, "podAffinityTerm": term}


def _container(installation: Installation) -> Json:
    mounts = [place for _, place in _volumes(installation)]
    security = locked_down() if mounts else unprivileged()
    environment = [from_field("MIC_POD_NAMESPACE", "metadata.namespace")]
    if not installation.azure_json:
        environment += [from_secret(name, ADMIN_SECRET, key, optional=optional) for key, name, optional in CREDENTIALS]
    arguments = _arguments(installation)
    return {
        "name": "mic",
        "image": installation.images.mic,
        "imagePullPolicy": "IfNotPresent",
        **({"args": arguments} if arguments else {}),
        "env": environment,
        "ports": [port("probe", PROBE_PORT), port("metrics", 8888)],
        "resources": resources(cpu="50m", memory="96Mi", memory_limit="512Mi"),
        "securityContext": security,
        **({"volumeMounts": mounts} if mounts else {}),
        **probes(PROBE_PORT),
    }


def _arguments(installation: Installation) -> list[str]:
    arguments = [] if installation.rbac else [f"--kubeconfig={KUBECONFIG}"]
    return [*arguments, f"--cloudconfig={AZURE_JSON}"] if installation.azure_json else arguments


def _volumes(installation: Installation) -> list[tuple[Json, Json]]:
    """What MIC sees of the node, and where: without RBAC also the node's kubeconfig and the certificates it names."""
    found = []
    if not installation.rbac:
        found += [
            (host_path("kubeconfig", NODE_KUBECONFIG, "File"), mount("kubeconfig", KUBECONFIG)),
            (host_path("certificates", CERTIFICATES, "Directory"), mount("certificates", CERTIFICATES)),
        ]
    if installation.azure_json:
        found.append((host_path("k8s-azure-file", AZURE_JSON, "File"), mount("k8s-azure-file", AZURE_JSON)))
    return found
