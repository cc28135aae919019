"""An issuer's documents behind TLS, found by their public name through a proxy; and a broker's objects in a cluster."""

import base64
import contextlib
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from podidentity.certificates.secret import creation
from podidentity.core.certificates.replacement import Schedule
from podidentity.core.report.issuers import configuration_of
from podidentity_lab.kubernetes import Kubernetes
from serving import served
from tunnel import tunnel

if TYPE_CHECKING:
    import pytest

    from daemons.cli.conftest import Cluster

HOST = "issuer.example.com"
ISSUER = f"https://{HOST}/cluster"
NAMESPACE = NAME = "podidentity-broker"
_RESOURCES = {
    "Namespace": "namespaces",
    "Secret": "secrets",
    "ConfigMap": "configmaps",
    "Deployment": "deployments.apps",
}
BROKER = Path(__file__).parents[3] / "deploy/broker/broker.yaml"


class Site:
    """The published documents by path; a test may change them."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        """Publish what the cluster has, and let it be the cluster's issuer."""
        kubernetes._authority.issuer = ISSUER
        self.ports: dict[str, int] = {}
        self.authority = trustme.CA()
        self.documents: dict[str, Mapping[str, Any]] = {
            "/cluster/.well-known/openid-configuration": configuration_of(ISSUER),
            "/cluster/openid/v1/jwks": kubernetes.token_keys(),
        }
        self.application = Starlette(routes=[Route("/{path:path}", self._answer)])

    async def _answer(self, request: Request) -> Response:
        document = self.documents.get(request.url.path)
        return Response(json.dumps(document)) if document is not None else Response("no such blob", 404)


@contextlib.contextmanager
def reachable(
    ports: Mapping[str, int], authorities: bytes, folder: Path, monkeypatch: "pytest.MonkeyPatch"
) -> Iterator[None]:
    """Let this process, and what it starts, find public names on loopback, and trust their certificates."""
    bundle = folder / "public.pem"
    bundle.write_bytes(authorities)
    with tunnel(ports) as proxy:
        for name, value in (("HTTPS_PROXY", proxy), ("NO_PROXY", "127.0.0.1")):
            monkeypatch.setenv(name, value)
            monkeypatch.setenv(name.lower(), value)
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.setenv(name, str(bundle))
        yield


@contextlib.contextmanager
def site(kubernetes: Kubernetes, folder: Path, monkeypatch: "pytest.MonkeyPatch") -> Iterator[Site]:
    """Publish the cluster's issuer on the Internet, as this process sees it."""
    content = Site(kubernetes)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    content.authority.issue_cert(HOST).configure_cert(tls)
    with served(content.application, tls) as port:
        content.ports = {HOST: port}
        with reachable(content.ports, content.authority.cert_pem.bytes(), folder, monkeypatch):
            yield content


def install_broker(cluster: "Cluster", *arguments: str, ready: int = 2) -> None:
    """Put the manifest's broker into the cluster, with so many ready replicas and a CA that it has published."""
    for document in yaml.safe_load_all(BROKER.read_text()):
        if document["kind"] == "Deployment":
            document["spec"]["template"]["spec"]["containers"][0]["args"] += arguments
            document["status"] = {"readyReplicas": ready}
        if document["kind"] in _RESOURCES:
            cluster.storage.create(_RESOURCES[document["kind"]], document)
    values = {key: value for key, value in creation(NAME, Schedule(), time.time()).items() if value is not None}

    def fill(obj: Any) -> None:
        obj["data"] = {key: base64.b64encode(value).decode() for key, value in values.items()}

    def publish(obj: Any) -> None:
        obj["data"] = {"ca.crt": values["ca.crt"].decode()}

    cluster.storage.change("secrets", NAMESPACE, f"{NAME}-ca", fill)
    cluster.storage.change("configmaps", NAMESPACE, f"{NAME}-ca", publish)


def grant(cluster: "Cluster", client_id: str, namespace: str = "default") -> None:
    """Let all service accounts of a namespace use an identity."""
    name = f"identity-{client_id}"
    rbac = "rbac.authorization.k8s.io"
    rule = {"apiGroups": ["cid.wi.aks.azure.com"], "resources": [client_id], "verbs": ["use-managed-identity"]}
    role = {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]}
    subject = {"kind": "Group", "apiGroup": rbac, "name": f"system:serviceaccounts:{namespace}"}
    reference = {"apiGroup": rbac, "kind": "ClusterRole", "name": name}
    binding = {**role, "kind": "ClusterRoleBinding", "subjects": [subject], "roleRef": reference}
    binding.pop("rules")
    cluster.storage.create(f"clusterroles.{rbac}", role)
    cluster.storage.create(f"clusterrolebindings.{rbac}", binding)
