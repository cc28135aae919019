"""NMI and the broker on a real cluster without MIC, and pods that ask by NMI's doors: objects, and what they say."""

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx2

from cluster.brokers import BROKER, HOME, SUBJECT, create, grant, group
from cluster.harness import GROUP, LOCATION, REPOSITORY, Cluster, client_id, custom, until
from cluster.programs import DOOR_CLIENT
from cluster.test_federation import ISSUER, forget_issuers_keys
from cluster.test_new import NEW, SYSTEM
from podidentity_lab import control
from podidentity_lab.directory import Directory
from system.lab.running import Json

RESTRICTED, ON_HOST, UNGRANTED, LEGACY = "doors-restricted", "doors-host", "doors-ungranted", "doors-legacy"
NAMESPACES = (RESTRICTED, ON_HOST, UNGRANTED, LEGACY)
NMI = "aad-pod-id-nmi-service-account"
ACCOUNT = "web"
HOST_PORT, DOOR_PORT = 18080, 2580
NODES = ("node-0", "node-1")


@dataclass
class Doors:
    """NMI and the broker in their cluster, an identity that trusts the broker, and pods that request tokens."""

    cluster: Cluster
    identity: str
    http: httpx2.Client
    pods: dict[str, str]
    """The base URL of each pod that asks."""
    packets: int
    """Packets of pods that had passed towards the metadata service when NMI was ready."""

    def ask(self, pod: str, path: str, **query: str) -> tuple[int, Json]:
        """Return what a pod was answered: status and document."""
        status, _, document = self.get(pod, path, **query)
        return status, document

    def get(self, pod: str, path: str, **query: str) -> Any:
        """Return the text that a pod's program answers."""
        return self.http.get(f"{self.pods[pod]}{path}?{urlencode(query)}").raise_for_status().json()

    def owner(self, pod: str, path: str, **query: str) -> str:
        """Return the client ID of the token that a pod was given."""
        status, document = self.ask(pod, path, **query)
        assert status == 200, document
        return client_id(document["access_token"])

    def nmi(self, node: str) -> Json:
        """Return NMI's pod on a node."""
        (pod,) = self.cluster.get("pods", "-n", SYSTEM, "--field-selector", f"spec.nodeName={node}")["items"]
        result: Json = pod
        return result

    def metadata_requests(self) -> int:
        """Return how often the nodes' metadata service was asked for a token of the identity."""
        entries = control.ask(Directory(self.cluster.lab.directory), "GET", "/azure/log")
        return sum(entry["service"] == "imds" and entry["who"] == self.identity for entry in entries)


def asking_pod(identity: str, name: str, namespace: str, node: str, program: str = DOOR_CLIENT, **spec: Any) -> Json:
    """Return a pod that Pod Security's level `restricted` admits, with what the webhook injects for the token file."""
    variables: list[Json] = [
        {"name": "PODIDENTITY_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        {"name": "IDENTITY_ENDPOINT", "value": f"http://$(PODIDENTITY_HOST_IP):2580/token-file/{identity}"},
        {"name": "IMDS_ENDPOINT", "value": "http://$(PODIDENTITY_HOST_IP):2580"},
        {"name": "PORT", "value": str(HOST_PORT if spec.get("hostNetwork") else 8080)},
    ]
    security = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "main",
        "image": "podidentity/lab-tools:1",
        "command": ["python3", "-u", "-c", program],
        "env": variables,
        "securityContext": security,
        "volumeMounts": [{"name": "proof", "mountPath": "/var/opt/azcmagent/tokens", "readOnly": True}],
    }
    source = {"serviceAccountToken": {"audience": "api://AKSIdentityBinding", "path": "podidentity.key"}}
    metadata = {"name": name, "namespace": namespace, "labels": {"aadpodidbinding": "doors"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": node,
            "serviceAccountName": ACCOUNT,
            "terminationGracePeriodSeconds": 1,
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "proof", "projected": {"defaultMode": 0o644, "sources": [source]}}],
            **spec,
        },
    }


def namespace_objects(name: str) -> tuple[Json, Json]:
    """Return a namespace and its service account.

    The namespace is `restricted`, or allows pods on the node's network.
    """
    labels = {"pod-security.kubernetes.io/enforce": "privileged" if name == ON_HOST else "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    return namespace, {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": ACCOUNT, "namespace": name},
    }


def bind(identity: str, resource_id: str, namespace: str) -> tuple[Json, Json]:
    """Return an AzureIdentity, annotated so that its tokens come from the broker, and its binding."""
    azure_identity = custom("AzureIdentity", "doors", {"type": 0, "resourceID": resource_id, "clientID": identity})
    binding = custom("AzureIdentityBinding", "doors", {"azureIdentity": "doors", "selector": "doors"})
    for item in (azure_identity, binding):
        item["metadata"]["namespace"] = namespace
    azure_identity["metadata"]["annotations"] = {"podidentity.io/token-source": "broker"}
    return azure_identity, binding


def install(cluster: Cluster) -> None:
    """Install the broker and NMI alone from their manifests, and the role by which NMI may use the broker."""
    cluster.kubectl("wait", "--for=delete", f"namespace/{HOME}", "--timeout=240s")
    cluster.kubectl("apply", "-f", "-", stdin=cluster.manifest("deploy/broker/broker.yaml"))
    cluster.kubectl("apply", "--server-side", "-f", str(NEW / "broker.yaml"))
    cluster.kubectl("apply", "-f", str(REPOSITORY / "deploy/broker/nmi.yaml"))
    flags = (f"--nmi-service-accounts={SYSTEM}/{NMI}", f"--bundle-namespaces={SYSTEM}")
    path = "/spec/template/spec/containers/0/args/-"
    changes = [{"op": "add", "path": path, "value": flag} for flag in flags]
    cluster.kubectl("-n", HOME, "patch", "deployment", BROKER, "--type=json", "-p", json.dumps(changes))


def set_up(cluster: Cluster) -> str:
    """Install both; create an identity that trusts the broker, and teams' namespaces; return the identity's client ID.

    Each namespace has a service account and a binding; those of two may use the identity.
    """
    install(cluster)
    created = cluster.admin.create_identity(GROUP, "doors", LOCATION)
    cluster.admin.create_federated_credential(GROUP, "doors", BROKER, ISSUER, SUBJECT)
    forget_issuers_keys(cluster)
    identity: str = created["properties"]["clientId"]
    resource_id = cluster.admin.identity(GROUP, "doors")
    create(cluster, *(item for name in NAMESPACES for item in namespace_objects(name)))
    create(cluster, *grant(identity, "identity-doors", group(RESTRICTED), group(ON_HOST)))
    create(cluster, *(item for name in NAMESPACES for item in bind(identity, resource_id, name)))
    return identity


def is_answering(doors: Doors, pod: str) -> bool:
    """Whether a pod answers requests."""
    try:
        return bool(doors.get(pod, "/proof"))
    except httpx2.HTTPError:
        return False


@contextlib.contextmanager
def asking(cluster: Cluster, identity: str) -> Iterator[Doors]:
    """Pods that ask: two in a namespace that may use the identity, one on the node's network, one without a grant."""
    places: dict[str, tuple[str, str, Json]] = {
        "near": (RESTRICTED, NODES[0], {}),
        "far": (RESTRICTED, NODES[1], {}),
        "outside": (UNGRANTED, NODES[0], {}),
        "on-host": (ON_HOST, NODES[0], {"hostNetwork": True}),
    }
    create(cluster, *(asking_pod(identity, name, space, node, **spec) for name, (space, node, spec) in places.items()))
    cluster.roll_out("daemonset/nmi", SYSTEM)
    cluster.roll_out(f"deployment/{BROKER}", HOME)
    until(lambda: cluster.get("configmap", f"{BROKER}-ca", "-n", SYSTEM).get("data"), "the broker's CA beside NMI")
    # A change of a pod makes its kubelet update its volumes at once, and not within a minute or two.
    cluster.kubectl("annotate", "pod", "-n", SYSTEM, "--all", "example.com/look=now")
    proxy = cluster.lab.variables["HTTP_PROXY"]
    with httpx2.Client(proxy=proxy, trust_env=False, timeout=150) as http:
        doors = Doors(cluster, identity, http, {}, cluster.imds_packets())
        for name, (namespace, _, spec) in places.items():
            doors.pods[name] = f"http://{cluster.pod_ip(name, namespace)}:{HOST_PORT if spec else 8080}"
            until(functools.partial(is_answering, doors, name), f"an answer of the pod {name}")
        yield doors
