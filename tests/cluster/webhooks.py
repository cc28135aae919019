"""The webhook and the broker on a real cluster, and pods of a restricted namespace that is sent to the webhook."""

import contextlib
import http.client
import json
import re
import shlex
import ssl
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from subprocess import CompletedProcess
from typing import Any
from urllib.parse import urlsplit

import helm_python
import yaml
from cryptography import x509

from cluster.admissions import ApiServer
from cluster.harness import GROUP, LOCATION, Cluster
from cluster.test_federation import ISSUER
from podidentity.core.injection.mutation import VOLUME_PREFIX
from system.lab.running import Json

HOME = "azure-workload-identity-system"
AUTHORITY = "azure-wi-webhook-server-cert"
DEPLOYMENT = "azure-wi-webhook-controller-manager"
TEAM = "webhook-team"
BROKER = "webhook-broker"
BROKER_ACCOUNT = f"system:serviceaccount:{BROKER}:{BROKER}-podidentity-broker"
BROKER_NAME = f"{BROKER}-podidentity-broker"
KEY = "azure.workload.identity"
VAULT, SECRET = "quick-start", "my-secret"
DIRECT, PROXIED, PLAIN = "workload-identity-sa", "proxied", "plain"
HELM_SECONDS = 240


@dataclass
class Place:
    """The webhook in its cluster, and identities of the service accounts `workload-identity-sa` and `proxied`."""

    cluster: Cluster
    client_ids: dict[str, str]
    server: ApiServer
    first_authorities: set[str] = field(default_factory=set)
    """Which CA signed the serving certificates first."""

    def try_create(self, pod: Json, *words: str) -> CompletedProcess[str]:
        """Run `kubectl create --dry-run=server`: admission runs, nothing is stored."""
        command = ("create", "--dry-run=server", "-o", "json", "-f", "-", *words)
        return self.cluster.try_kubectl(*command, stdin=json.dumps(pod))

    def admitted(self, pod: Json) -> Json:
        """Return the pod as the API server would store it."""
        process = self.try_create(pod)
        assert process.returncode == 0, process.stderr
        document: Json = json.loads(process.stdout)
        return document

    def reviews(self) -> float:
        """Return how many reviews both replicas have had."""
        total = 0.0
        for address in self.addresses():
            status, text = self.cluster.lab.curl(f"http://{address}:8095/metrics")
            assert status == 200
            total += sum(map(float, re.findall(r"^azwi_mutation_request_count\{.*\} (.*)$", text, re.MULTILINE)))
        return total

    def ready(self) -> list[Json]:
        """Return the replicas that are ready and not about to end."""
        return [
            item
            for item in self.cluster.get("pods", "-n", HOME)["items"]
            if "deletionTimestamp" not in item["metadata"]
            for condition in item.get("status", {}).get("conditions", ())
            if (condition["type"], condition["status"]) == ("Ready", "True")
        ]

    def ready_names(self) -> list[str]:
        """Return the names of those replicas."""
        return [item["metadata"]["name"] for item in self.ready()]

    def addresses(self) -> list[str]:
        """Return where the replicas are."""
        return [item["status"]["podIP"] for item in self.ready()]

    def certificates(self) -> set[str]:
        """Return which CAs have signed the certificates that the replicas serve with."""
        proxy = urlsplit(self.cluster.lab.variables["HTTPS_PROXY"])
        assert proxy.hostname
        issuers = set()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        for address in self.addresses():
            connection = http.client.HTTPSConnection(proxy.hostname, proxy.port, context=context, timeout=30)
            connection.set_tunnel(address, 9443)
            connection.connect()
            certificate = connection.sock.getpeercert(binary_form=True)
            connection.close()
            assert certificate
            issuers.add(x509.load_der_x509_certificate(certificate).issuer.rfc4514_string())
        return issuers

    def bundle(self) -> list[str]:
        """Return the CAs by which the API server trusts the webhook, the same for each of its entries."""
        name = "azure-wi-webhook-mutating-webhook-configuration"
        webhooks = self.cluster.get("mutatingwebhookconfiguration", name)["webhooks"]
        texts = {b64decode(item["clientConfig"].get("caBundle", "")) for item in webhooks}
        assert len(texts) == 1
        return [item.subject.rfc4514_string() for item in x509.load_pem_x509_certificates(texts.pop())]


def pod(name: str = "", account: str = DIRECT, **annotations: str) -> Json:
    """Return a labelled pod that a restricted namespace admits; `annotations` are named by the end of their key."""
    metadata: Json = {"namespace": TEAM, "labels": {f"{KEY}/use": "true"}}
    metadata["annotations"] = {f"{KEY}/{key.replace('_', '-')}": value for key, value in annotations.items()}
    metadata |= {"name": name} if name else {"generateName": "cart-"}
    limits = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "main", "image": "podidentity/lab-tools:1", "securityContext": limits}
    spec = {
        "serviceAccountName": account,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def unlabelled(name: str = "") -> Json:
    """Return the same pod without its label."""
    item = pod(name)
    item["metadata"]["labels"] = {}
    return item


def program(name: str, account: str, text: str, **annotations: str) -> Json:
    """Return a labelled pod that reads the vault's secret."""
    item = pod(name, account, **annotations)
    (container,) = item["spec"]["containers"]
    variables = {"KEYVAULT_URL": f"https://{VAULT}.vault.azure.net", "SECRET_NAME": SECRET}
    container["command"] = ["python3", "-u", "-c", text]
    container["env"] = [{"name": key, "value": value} for key, value in variables.items()]
    return item


def environment(container: Json) -> dict[str, str]:
    """Return a container's variables; "" for one whose value comes from elsewhere."""
    return {item["name"]: item.get("value", "") for item in container.get("env", ())}


def reserved(item: Json) -> list[Json]:
    """Return the volumes that the webhook added."""
    return [volume for volume in item["spec"].get("volumes", ()) if volume["name"].startswith(VOLUME_PREFIX)]


def service_account(name: str, client_id: str = "") -> Json:
    """Return a service account, with an identity or without."""
    annotations = {f"{KEY}/client-id": client_id} if client_id else {}
    metadata = {"name": name, "namespace": TEAM, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def install(cluster: Cluster, source: Any, name: str, namespace: str, values: Json) -> None:
    """Run `helm install --wait`."""
    kubeconfig = cluster.lab.variables["KUBECONFIG"]
    with helm_python.Config(kubeconfig_path=kubeconfig, namespace=namespace) as helm:
        helm.install(str(source), name, values, namespace=namespace, wait="legacy", timeout=HELM_SECONDS)


@contextlib.contextmanager
def token_file_webhook(cluster: Cluster, port: int) -> Iterator[None]:
    """The webhook alone, by `kubectl apply` of its manifest, with the tenant and the token-file door's port in it.

    A patch afterwards would leave replicas without the port, which answer until their drain is over.
    """
    cluster.kubectl("wait", "--for=delete", f"namespace/{HOME}", "--timeout=240s")
    flag = "            - --port=9443\n"
    manifest = cluster.manifest("deploy/webhook/webhook.yaml")
    assert manifest.count(flag) == 1
    cluster.kubectl("apply", "-f", "-", stdin=manifest.replace(flag, f"{flag}            - --token-file-port={port}\n"))
    cluster.roll_out(f"deployment/{DEPLOYMENT}", HOME)
    yield
    cluster.kubectl("delete", "--wait=false", "-f", "-", stdin=manifest)


def podidentity(cluster: Cluster, *words: str) -> CompletedProcess[str]:
    """Run the `podidentity` command with the rights of the cluster's owner."""
    command, variables = [sys.executable, "-m", "podidentity", *words], cluster.lab.variables
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=120)


def migrate(cluster: Cluster, way: str, namespace: str) -> list[Json]:
    """Apply the manifests that `podidentity migrate` writes, and run the kubectl commands that it prints."""
    process = podidentity(cluster, "migrate", "--to", way, "-n", namespace)
    assert process.returncode == 0, process.stderr
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=process.stdout)
    commands = [line.partition("; kubectl ")[2] for line in process.stderr.splitlines() if "; kubectl " in line]
    assert commands, process.stderr
    for command in commands:
        cluster.kubectl(*shlex.split(command))
    return list(yaml.safe_load_all(process.stdout))


def make_identities(cluster: Cluster) -> dict[str, str]:
    """Return the quick start's Azure part: a vault with a secret, and identities that may read it."""
    admin = cluster.admin
    admin.create_vault(GROUP, VAULT, LOCATION)
    admin.set_secret(VAULT, SECRET, "Hello!")
    client_ids = {}
    for name in (DIRECT, PROXIED):
        client_ids[name] = admin.create_identity(GROUP, f"webhook-{name}", LOCATION)["properties"]["clientId"]
        admin.set_policy(GROUP, VAULT, client_ids[name])
    subject = f"system:serviceaccount:{TEAM}:{DIRECT}"
    admin.create_federated_credential(GROUP, f"webhook-{DIRECT}", "pod", ISSUER, subject)
    admin.create_federated_credential(GROUP, f"webhook-{PROXIED}", "broker", ISSUER, BROKER_ACCOUNT)
    return client_ids
