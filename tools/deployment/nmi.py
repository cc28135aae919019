"""NMI's DaemonSet, and the DaemonSet that removes NMI's interception from every node. Called by `files`.

NMI needs the node's network and the capability NET_ADMIN (nft, ip rule, conntrack), and nothing else of the node.
"""

from deployment.pods import (
    EVERYWHERE,
    LINUX,
    from_field,
    host_path,
    locked_down,
    mount,
    port,
    probes,
    resources,
    unprivileged,
)
from deployment.settings import NMI_ACCOUNT, Installation, Json

SELECTOR: Json = {"component": "nmi", "tier": "node"}
LABELS: Json = {**SELECTOR, "k8s-app": "aad-pod-id"}
PROBE_PORT = 8085  # not the daemon's default of 8080, which is taken on many nodes
KUBELET_CONFIG = "/etc/default/kubelet"


def daemon_set(installation: Installation) -> Json:
    """The DaemonSet `nmi`: on every Linux node, whatever its taints."""
    spec: Json = {
        **_on_the_node(),
        "containers": [_container(installation)],
        "volumes": [host_path("kubelet-config", KUBELET_CONFIG, "FileOrCreate")],
    }
    if installation.rbac:
        spec = {"serviceAccountName": NMI_ACCOUNT, **spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "nmi", "namespace": installation.namespace, "labels": dict(LABELS)},
        "spec": {
            "updateStrategy": {"type": "RollingUpdate"},
            "selector": {"matchLabels": dict(SELECTOR)},
            "template": {"metadata": {"labels": dict(LABELS)}, "spec": spec},
        },
    }


def uninstaller(installation: Installation) -> Json:
    """The DaemonSet `nmi-uninstall`: a node's pod is ready once its interception is removed."""
    labels = {"component": "nmi-uninstall", "k8s-app": "aad-pod-id"}
    image = {"image": installation.images.nmi, "imagePullPolicy": "IfNotPresent"}
    environment = {"env": [from_field("HOST_IP", "status.podIP")]}
    small = {"resources": resources(cpu="10m", memory="64Mi", memory_limit="128Mi")}
    removing = {"name": "uninstall", **image, "args": ["--uninstall"], **environment, **small}
    staying = {"name": "done", **image, "command": ["sleep", "infinity"], **small}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "nmi-uninstall", "namespace": installation.namespace, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    **_on_the_node(),
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 0,
                    "initContainers": [{**removing, "securityContext": locked_down("NET_ADMIN")}],
                    "containers": [{**staying, "securityContext": unprivileged()}],
                },
            },
        },
    }


def _on_the_node() -> Json:
    return {
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "priorityClassName": "system-node-critical",
        "nodeSelector": LINUX,
        "tolerations": EVERYWHERE,
    }


def _container(installation: Installation) -> Json:
    arguments = ["--node=$(NODE_NAME)", f"--http-probe-port={PROBE_PORT}"]
    if installation.managed:
        arguments += ["--operation-mode=managed", "--forceNamespaced"]
    return {
        "name": "nmi",
        "image": installation.images.nmi,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "env": [from_field("HOST_IP", "status.podIP"), from_field("NODE_NAME", "spec.nodeName")],
        "ports": [port("imds", 2579), port("probe", PROBE_PORT), port("metrics", 9090)],
        "resources": resources(cpu="50m", memory="64Mi", memory_limit="256Mi"),
        "securityContext": locked_down("NET_ADMIN"),
        "volumeMounts": [mount("kubelet-config", KUBELET_CONFIG)],
        **probes(PROBE_PORT),
    }
