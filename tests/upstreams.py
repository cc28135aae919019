"""What aad-pod-identity v1.8.17 installs, as facts for tests: its rights, its definitions, its objects.

Written from what its deploy/infra/deployment-rbac.yaml says, for tests that begin with its installation.
"""

from typing import Any

GROUP = "aadpodidentity.k8s.io"
LOCK = "aad-pod-identity-mic"
LEADER_ANNOTATION = "control-plane.alpha.kubernetes.io/leader"
ACCOUNTS = {part: f"aad-pod-id-{part}-service-account" for part in ("nmi", "mic")}

Json = dict[str, Any]

MIC_RIGHTS = (
    ("apiextensions.k8s.io", "customresourcedefinitions", "*"),
    ("", "pods nodes", "list watch"),
    ("", "events", "create patch"),
    ("", "configmaps", "get create update"),
    ("", "endpoints", "create get update"),
    (GROUP, "azureidentitybindings azureidentities", "get list watch post update"),
    (GROUP, "azurepodidentityexceptions", "list update"),
    (GROUP, "azureassignedidentities", "*"),
)
"""API group, resources and verbs that its MIC may use, cluster-wide."""

NMI_RIGHTS = (
    ("apiextensions.k8s.io", "customresourcedefinitions", "get list"),
    ("", "pods", "get list watch"),
    ("", "secrets", "get"),
    (GROUP, "azureidentitybindings azureidentities azurepodidentityexceptions", "get list watch"),
    (GROUP, "azureassignedidentities", "get list watch"),
)
"""The same of its NMI."""

NMI_FLAGS = (
    "--node=$(NODE_NAME)",
    "--http-probe-port=8085",
    "--enableScaleFeatures=true",
    "--metadata-header-required=true",
    "--operation-mode=standard",
    "--block-instance-metadata=false",
    "--allow-network-plugin-kubenet=false",
    "--kubelet-config=/etc/default/kubelet",
    "--ipt-update-interval-sec=60",
    "--logtostderr=true",
    "--v=0",
)
"""What its manifest and its chart pass, with what its users add to see more of the log."""
MIC_FLAGS = (
    "--cloudconfig=/etc/kubernetes/azure.json",
    "--leader-election-namespace=default",
    "--syncRetryDuration=1h",
    "--enableScaleFeatures=true",
    "--createDeleteBatch=20",
    "--logtostderr",
    "--v=0",
    "--vmodule=mic=4",
)

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "format": "int32"}
_IDENTITY = {
    "type": {"type": "integer"},
    **dict.fromkeys(("resourceID", "clientID", "tenantID", "adResourceID", "adEndpoint"), _TEXT),
    "clientPassword": {"type": "object", "properties": {"name": _TEXT, "namespace": _TEXT}},
    "auxiliaryTenantIDs": {"type": "array", "items": _TEXT, "nullable": True},
    "replicas": {**_COUNT, "nullable": True},
    "metadata": {"type": "object"},
}
_BINDING = {"azureIdentity": _TEXT, "selector": _TEXT, "weight": {"type": "integer"}, "metadata": {"type": "object"}}
_STATUS = {"availableReplicas": _COUNT, "metadata": {"type": "object"}}


def rules(rights: tuple[tuple[str, str, str], ...]) -> list[Json]:
    """Return the rights as a role has them."""
    return [
        {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split()}
        for group, resources, verbs in rights
    ]


def definitions() -> list[Json]:
    """Return its definitions: lower-case names alone, no rules, a status that only assigned identities use."""
    assigned = {
        "azureIdentityRef": _embedded(_IDENTITY),
        "azureBindingRef": _embedded(_BINDING),
        **dict.fromkeys(("pod", "podNamespace", "nodename"), _TEXT),
        "replicas": {**_COUNT, "nullable": True},
        "metadata": {"type": "object"},
    }
    columns = ({"Type": "type", "ClientID": "clientID"}, {"AzureIdentity": "azureIdentity", "Selector": "selector"})
    labels = {"podLabels": {"type": "object", "additionalProperties": _TEXT}, "metadata": {"type": "object"}}
    return [
        _definition("AzureIdentity", "azureidentities", _IDENTITY, _STATUS, columns[0]),
        _definition("AzureIdentityBinding", "azureidentitybindings", _BINDING, _STATUS, columns[1]),
        _definition("AzureAssignedIdentity", "azureassignedidentities", assigned, {**_STATUS, "status": _TEXT}),
        _definition("AzurePodIdentityException", "azurepodidentityexceptions", labels, {**_STATUS, "status": _TEXT}),
    ]


def roles() -> list[Json]:
    """Return its service accounts, roles and bindings."""
    api = "rbac.authorization.k8s.io"
    made: list[Json] = []
    for part, rights in (("nmi", NMI_RIGHTS), ("mic", MIC_RIGHTS)):
        role, subject = f"aad-pod-id-{part}-role", {"name": ACCOUNTS[part], "namespace": "default"}
        made += [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": subject},
            {
                "apiVersion": f"{api}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": role},
                "rules": rules(rights),
            },
            {
                "apiVersion": f"{api}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {
                    "name": f"aad-pod-id-{part}-binding",
                    "labels": {"k8s-app": f"aad-pod-id-{part}-binding"},
                },
                "subjects": [{"kind": "ServiceAccount", **subject}],
                "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": role},
            },
        ]
    return made


def daemon_set(image: str) -> Json:
    """Return its NMI. Images are on the node already, so that the pull policy is not `Always` as in its manifest."""
    labels = {"component": "nmi", "tier": "node", "k8s-app": "aad-pod-id"}
    container = {
        "name": "nmi",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": list(NMI_FLAGS),
        "env": [_env("HOST_IP", "status.podIP"), _env("NODE_NAME", "spec.nodeName")],
        "resources": _resources("512Mi"),
        "securityContext": {
            "runAsUser": 0,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_READ_SEARCH", "NET_ADMIN", "NET_RAW"]},
        },
        "volumeMounts": [
            {"name": "iptableslock", "mountPath": "/run/xtables.lock"},
            {"name": "kubelet-config", "mountPath": "/etc/default/kubelet", "readOnly": True},
        ],
        "livenessProbe": _probe(8085),
    }
    pod = {
        "serviceAccountName": ACCOUNTS["nmi"],
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [
            _host_file("iptableslock", "/run/xtables.lock", "FileOrCreate"),
            _host_file("kubelet-config", "/etc/default/kubelet", "FileOrCreate"),
        ],
    }
    return _workload("DaemonSet", "nmi", labels, ("component", "tier"), pod)


def deployment(image: str) -> Json:
    """Return its MIC."""
    labels = {"component": "mic", "k8s-app": "aad-pod-id", "app": "mic"}
    container = {
        "name": "mic",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": list(MIC_FLAGS),
        "env": [_env("MIC_POD_NAMESPACE", "metadata.namespace")],
        "resources": _resources("1024Mi"),
        "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 0},
        "volumeMounts": [{"name": "k8s-azure-file", "mountPath": "/etc/kubernetes/azure.json", "readOnly": True}],
        "livenessProbe": _probe(8080),
    }
    pod = {
        "serviceAccountName": ACCOUNTS["mic"],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "containers": [container],
        "volumes": [_host_file("k8s-azure-file", "/etc/kubernetes/azure.json", "")],
    }
    made = _workload("Deployment", "mic", labels, ("component", "app"), pod)
    made["spec"]["replicas"] = 2
    return made


def assigned(pod: str, node: str, identity: Json, binding: Json, state: str | None) -> Json:
    """Return what its MIC writes for a pod of namespace `default`; with `state` None, as its first versions did."""
    metadata = {
        "name": f"{pod}-default-{identity['metadata']['name']}",
        "labels": {"nodename": node},
        "finalizers": [f"azureassignedidentity.finalizers.{GROUP}"],
    }
    spec = {
        "azureIdentityRef": identity,
        "azureBindingRef": binding,
        "pod": pod,
        "podNamespace": "default",
        "nodename": node,
        "replicas": 1,
    }
    made = {"apiVersion": f"{GROUP}/v1", "kind": "AzureAssignedIdentity", "metadata": metadata, "spec": spec}
    return made | ({"status": {"status": state, "availableReplicas": 1}} if state else {})


def _definition(kind: str, plural: str, spec: Json, status: Json, columns: dict[str, str] | None = None) -> Json:
    schema = {
        "type": "object",
        "properties": {
            "apiVersion": _TEXT,
            "kind": _TEXT,
            "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": spec},
            "status": {"type": "object", "properties": status},
        },
    }
    shown = [{"name": name, "type": "string", "jsonPath": f".spec.{at}"} for name, at in (columns or {}).items()]
    age = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "annotations": {"api-approved.kubernetes.io": "unapproved"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "singular": kind.lower(), "plural": plural},
            "versions": [version | ({"additionalPrinterColumns": [*shown, age]} if shown else {})],
        },
    }


def _embedded(spec: Json) -> Json:
    properties = {
        "apiVersion": _TEXT,
        "kind": _TEXT,
        "metadata": {"type": "object"},
        "spec": {"type": "object", "properties": spec},
        "status": {"type": "object", "properties": _STATUS},
    }
    return {"type": "object", "x-kubernetes-embedded-resource": True, "properties": properties}


def _workload(kind: str, name: str, labels: dict[str, str], selected: tuple[str, ...], pod: Json) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {
            "selector": {"matchLabels": {label: labels[label] for label in selected}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _env(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _resources(memory: str) -> Json:
    return {"limits": {"cpu": "200m", "memory": memory}, "requests": {"cpu": "100m", "memory": "256Mi"}}


def _host_file(name: str, path: str, kind: str) -> Json:
    return {"name": name, "hostPath": {"path": path, "type": kind}}


def _probe(port: int) -> Json:
    return {"httpGet": {"path": "/healthz", "port": port}, "initialDelaySeconds": 10, "periodSeconds": 5}
