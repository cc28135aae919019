"""The broker on a real cluster, installed by its chart: an identity that trusts it, and the pods that ask it."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import helm_python
import httpx2
import pytest
from cryptography import x509

import chart
from cluster.harness import GROUP, LOCATION, Cluster, until
from cluster.programs import BROKER_DOOR, BROKER_LOAD
from cluster.test_federation import ISSUER
from interop import clients
from interop.broker.programs import Sdk
from podidentity.core.exchange.callers import AUDIENCE
from podidentity_lab import control
from podidentity_lab.directory import Directory
from system.lab.running import Json

HOME = BROKER = "podidentity-broker"
SUBJECT = f"system:serviceaccount:{HOME}:{BROKER}"
NAMESPACES = [f"broker-team-{number:02}" for number in range(25)]
ACCOUNTS = ("web", "batch")
CLIENTS = "broker-clients"
OUTSIDE = "broker-outside"
RIGHT = {"verbs": ["use-managed-identity"], "apiGroups": ["cid.wi.aks.azure.com"]}
RBAC = "rbac.authorization.k8s.io"
ADDRESS = f"{BROKER}.{HOME}.svc"
TOKENS_PER_CLIENT = 3
TIMEOUT_SECONDS = 300
_VOLUMES = "/var/run/secrets/azure"
_MACHINE = ("/usr", "/etc/ssl", *map(str, sorted(Path("/etc").glob("java-*"))))
"""Where node and java have what they need: the lab's nodes have the machine's files."""


@dataclass
class Place:
    """The broker in its cluster, an identity that trusts it, and the pods that ask."""

    cluster: Cluster
    helm: helm_python.Config
    client_id: str
    http: httpx2.Client
    clients: str = "load"
    """The pod with the clients whose requests are counted."""
    excuses: tuple[str, ...] = ()
    """What the words of failures that do not count have in them."""
    addresses: dict[str, str] = field(default_factory=dict)
    first_token: str = ""
    """The broker's own token of the cluster's first signing key."""

    def door(self, path: str, **query: str) -> Any:
        """Let the pod `door` send a request to the broker, or to a replica."""
        return self._get("door", f"{path}?{urlencode(query)}")

    def ask(self, token: str, client_id: str = "") -> tuple[int, Json]:
        """Return what the broker answers to a token: status and document."""
        status, document = self.door("/ask", token=token, client_id=client_id or self.client_id)
        return status, document

    def load(self, path: str = "/") -> Any:
        """Return what the clients of the load have counted, or what their pod sees of its files."""
        return self._get(self.clients, path)

    def tokens_go_on(self) -> None:
        """Wait until each of the 32 clients has had another token; hold that no request has failed so far."""
        before = self._tokens()
        until(lambda: self._tokens() >= before + 32 * TOKENS_PER_CLIENT, "more tokens for the load", 120)

    def _tokens(self) -> int:
        """Return how many tokens the clients had; no request may have had another end."""
        counts = self.load()
        failures = [words for words in counts if words != "token"]
        assert [words for words in failures if not any(excuse in words for excuse in self.excuses)] == []
        return int(counts.get("token", 0))

    def _get(self, pod: str, path: str) -> Any:
        address = self.addresses.get(pod) or self.addresses.setdefault(pod, self.cluster.pod_ip(pod, CLIENTS))
        return self.http.get(f"http://{address}:8080{path}").raise_for_status().json()

    def is_answering(self, pod: str) -> bool:
        """Whether a client's pod can be asked."""
        try:
            return self.load() is not None if pod == "load" else bool(self.replica_issuers())
        except httpx2.HTTPError:
            return False

    def exchanges(self) -> int:
        """Return how often Entra ID was asked for a token of the identity."""
        entries = control.ask(Directory(self.cluster.lab.directory), "GET", "/azure/log")
        return sum(entry["service"] == "entra" and entry["who"] == self.client_id for entry in entries)

    def replicas(self) -> list[Json]:
        """Return the broker's pods that are not about to end."""
        items = self.cluster.get("pods", "-n", HOME)["items"]
        return [item for item in items if "deletionTimestamp" not in item["metadata"]]

    def ready_replicas(self) -> dict[str, int]:
        """Return how often the container of each replica that is ready was started again, by the replica's name."""
        return {
            item["metadata"]["name"]: item["status"]["containerStatuses"][0]["restartCount"]
            for item in self.replicas()
            for condition in item.get("status", {}).get("conditions", ())
            if (condition["type"], condition["status"]) == ("Ready", "True")
        }

    def replica_issuers(self) -> list[str]:
        """Return which CA signed the serving certificate of each replica."""
        pems = [self.door("/certificate", address=item["status"]["podIP"]) for item in self.replicas()]
        return [x509.load_pem_x509_certificate(pem.encode()).issuer.rfc4514_string() for pem in pems]

    def authority(self) -> dict[str, str]:
        """Return what is in the Secret with the CA."""
        data: dict[str, str] = self.cluster.get("secret", f"{BROKER}-ca", "-n", HOME)["data"]
        return data

    def upgrade(self, **values: Any) -> None:
        """Run `helm upgrade`, and wait until every replica is new."""
        self.helm.upgrade(str(chart.BROKER), BROKER, {**self.values, **values}, namespace=HOME, timeout=TIMEOUT_SECONDS)
        self.cluster.roll_out(f"deployment/{BROKER}", HOME)

    @property
    def values(self) -> dict[str, Any]:
        """Return the chart's values."""
        return {"tenantId": self.cluster.lab.variables["LAB_TENANT_ID"], "bundleNamespaces": [CLIENTS]}


def account_objects(namespace: str, name: str) -> tuple[Json, Json]:
    """Return a service account, and a pod of it that is never started: its tokens are as good as any pod's."""
    metadata = {"name": name, "namespace": namespace}
    spec = {"serviceAccountName": name, "nodeSelector": {"none": "x"}, "containers": [{"name": "c", "image": "c"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, pod


def create(cluster: Cluster, *objects: Json) -> None:
    """Create objects, each in the namespace that it names."""
    cluster.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def token(cluster: Cluster, namespace: str, name: str, audience: str = AUDIENCE, account: str = "") -> str:
    """Return a token of a pod, as its kubelet would have it made; its service account has its name unless given."""
    pod = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}").raise_for_status().json()["metadata"]
    bound = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["uid"]}
    request = {"spec": {"audiences": [audience] if audience else [], "boundObjectRef": bound}}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account or name}/token"
    result: str = cluster.api.post(path, json=request).raise_for_status().json()["status"]["token"]
    return result


def grant(identity: str, name: str, *subjects: Json) -> tuple[Json, Json]:
    """Return a ClusterRole as AKS's documentation spells it, and its binding."""
    metadata = {"name": name}
    role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata}
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}
    binding = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": metadata}
    return {**role, "rules": [{**RIGHT, "resources": [identity]}]}, {
        **binding,
        "subjects": list(subjects),
        "roleRef": reference,
    }


def group(namespace: str) -> Json:
    """Return all service accounts of a namespace, as a subject."""
    return {"kind": "Group", "apiGroup": RBAC, "name": f"system:serviceaccounts:{namespace}"}


def account(namespace: str, name: str) -> Json:
    """Return a service account, as a subject."""
    return {"kind": "ServiceAccount", "namespace": namespace, "name": name}


def client_pod(cluster: Cluster, identity: str, name: str, program: str) -> Json:
    """Return a pod that runs a program with what docs/configure/broker.md gives to a pod."""
    return _pod(name, [_container(cluster, identity, "main", ["python3", "-u", "-c", program])])


def install_client(name: str) -> bool:
    """Install a client of `interop.clients`; return whether it can be had here. With `CI` set, a missing one fails."""
    try:
        clients.installed(name)
    except clients.MissingToolError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        return False
    return True


def machine_folders(program: str) -> set[str]:
    """Return the folders of this machine in which a program (a path) finds itself, its libraries and its packages."""
    top = "/".join(Path(program).parts[:2]).replace("//", "/")
    return {str(clients.CACHE), *_MACHINE, top}


def mount_folders(container: Json, folders: set[str]) -> None:
    """Let a container see folders of its node at their own paths."""
    container["volumeMounts"] += [_mount(volume_name(path), path) for path in sorted(folders)]


def folder_volumes(folders: set[str]) -> list[Json]:
    """Return the volumes of a pod whose containers see folders of its node."""
    return [{"name": volume_name(path), "hostPath": {"path": path}} for path in sorted(folders)]


def sdk_pod(cluster: Cluster, identity: str, sdks: Sequence[Sdk], requests: Sequence[Json]) -> Json:
    """Return a pod with a container for each SDK, which makes `requests`.

    A container's log has a line for each answer.
    """
    lines = "".join(f"{json.dumps(request)}\n" for request in requests)
    containers, paths = [], {str(clients.CACHE), *_MACHINE}
    for number, sdk in enumerate(sdks):
        directory = clients.installed(sdk.client)
        program, *words = sdk.command(directory)
        folders: set[str] = set()
        if sdk.client == "python":  # the lab's tools have it, of the same version
            directory, program = Path("/"), "python3"
        elif sdk.client == "go":
            folders = {str(clients.CACHE)}
        else:
            program = str(Path(shutil.which(program) or program).resolve())
            folders = machine_folders(program)
        shell = ["/bin/sh", "-c", 'cd "$0" && printf %s "$REQUESTS" | "$@"', str(directory), program, *words]
        container = _container(cluster, identity, f"sdk-{number}", shell)
        container["env"].append({"name": "REQUESTS", "value": lines})
        mount_folders(container, folders)
        containers.append(container)
        paths |= folders
    pod = _pod("sdks", containers)
    pod["spec"]["volumes"] += folder_volumes(paths)
    pod["spec"]["restartPolicy"] = "Never"
    return pod


def _container(cluster: Cluster, identity: str, name: str, command: list[str]) -> Json:
    tenant = cluster.lab.variables["LAB_TENANT_ID"]
    variables = {
        "AZURE_TENANT_ID": tenant,
        "AZURE_CLIENT_ID": identity,
        "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
        "AZURE_FEDERATED_TOKEN_FILE": f"{_VOLUMES}/tokens/azure-identity-token",
        "AZURE_KUBERNETES_TOKEN_PROXY": f"https://{ADDRESS}",
        "AZURE_KUBERNETES_CA_FILE": f"{_VOLUMES}/ca/ca.crt",
    }
    return {
        "name": name,
        "image": "podidentity/lab-tools:1",
        "command": command,
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "volumeMounts": [_mount("token", f"{_VOLUMES}/tokens"), _mount("ca", f"{_VOLUMES}/ca")],
    }


def _mount(volume: str, path: str) -> Json:
    return {"name": volume, "mountPath": path, "readOnly": True}


def volume_name(path: str) -> str:
    """Return the name of the volume with a folder of the node."""
    return path.strip("/").replace("/", "-").replace(".", "-")


def _pod(name: str, containers: list[Json]) -> Json:
    source = {"audience": AUDIENCE, "path": "azure-identity-token"}
    volumes = [
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": source}]}},
        {"name": "ca", "configMap": {"name": f"{BROKER}-ca"}},
    ]
    spec = {"containers": containers, "volumes": volumes, "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": CLIENTS}, "spec": spec}


@contextlib.contextmanager
def installed(cluster: Cluster) -> Iterator[Place]:
    """The broker, installed by Helm; 50 service accounts that may use one identity; the load, which runs."""
    namespaces = (*NAMESPACES, CLIENTS, OUTSIDE)
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    labels = {**{name: {} for name in namespaces}, HOME: restricted}
    metadata = [{"name": name, "labels": labels[name]} for name in labels]
    create(cluster, *({"apiVersion": "v1", "kind": "Namespace", "metadata": item} for item in metadata))
    identity = cluster.admin.create_identity(GROUP, "brokered", LOCATION)["properties"]["clientId"]
    cluster.admin.create_federated_credential(GROUP, "brokered", BROKER, ISSUER, SUBJECT)
    proxy, config = cluster.lab.variables["HTTP_PROXY"], cluster.lab.variables["KUBECONFIG"]
    with (
        helm_python.Config(kubeconfig_path=config, namespace=HOME) as helm,
        httpx2.Client(proxy=proxy, trust_env=False, timeout=100) as http,
    ):
        place = Place(cluster, helm, identity, http)
        helm.install(str(chart.BROKER), BROKER, place.values, namespace=HOME, timeout=TIMEOUT_SECONDS)
        accounts = [(namespace, name) for namespace in (*NAMESPACES, OUTSIDE) for name in ACCOUNTS]
        subjects = [*map(group, NAMESPACES[1:]), group(CLIENTS)]
        single = [account(NAMESPACES[0], name) for name in ACCOUNTS]
        create(
            cluster,
            *(item for pair in accounts for item in account_objects(*pair)),
            *grant(identity, "identity-brokered", *subjects),
            *grant(identity, "identity-brokered-single", *single),
        )
        cluster.roll_out(f"deployment/{BROKER}", HOME)
        programs = {"door": BROKER_DOOR, "load": BROKER_LOAD}
        create(cluster, *(client_pod(cluster, identity, name, program) for name, program in programs.items()))
        for name in programs:
            until(lambda name=name: place.is_answering(name), f"an answer of the pod {name}")  # type: ignore[misc]
        try:
            yield place
        finally:
            helm.uninstall(BROKER, ignore_not_found=True)
    for name in labels:
        cluster.api.delete(f"/api/v1/namespaces/{name}").raise_for_status()
    roles = ("identity-brokered", "identity-brokered-single")
    cluster.kubectl("delete", "--ignore-not-found", "clusterrole,clusterrolebinding", *roles)
