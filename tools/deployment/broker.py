"""The broker's manifests: what its chart renders, for users without Helm."""

from typing import Any

import chart
from deployment import rendered
from deployment.settings import Images, Json

NAME = "podidentity-broker"
TENANT = "00000000-0000-0000-0000-000000000000"
"""A placeholder for the user's tenant."""
_BUNDLE_NAMESPACE = "bundle"


def installation(images: Images) -> tuple[Json, ...]:
    """Return one broker with its namespace, in which Pod Security is `restricted`."""
    return (rendered.restricted_namespace(NAME), *_render(images, {}))


def bundle(images: Images) -> tuple[Json, ...]:
    """Return what one more namespace needs for the broker's CA: a ConfigMap, and the right to fill it."""
    manifests = _render(images, {"bundleNamespaces": [_BUNDLE_NAMESPACE]})
    items = [item for item in manifests if item["metadata"].get("namespace") == _BUNDLE_NAMESPACE]
    for item in items:
        item["metadata"]["namespace"] = "NAMESPACE"
    return tuple(items)


def nmi(images: Images, namespace: str, account: str) -> tuple[Json, ...]:
    """Return what NMI's use of the broker needs: the right to look at pods, and the CA in NMI's namespace."""
    manifests = _render(images, {"bundleNamespaces": [namespace], "nmiServiceAccounts": [f"{namespace}/{account}"]})
    kinds = {"ClusterRole", "ConfigMap", "Role", "RoleBinding"}
    return tuple(
        item
        for item in manifests
        if item["kind"] in kinds and item["metadata"].get("namespace", namespace) == namespace
    )


def grant() -> tuple[Json, ...]:
    """Return the right to use an identity, in AKS's spelling, and its binding to a namespace's service accounts."""
    group = "rbac.authorization.k8s.io"
    rule = {"apiGroups": ["cid.wi.aks.azure.com"], "resources": ["CLIENT_ID"], "verbs": ["use-managed-identity"]}
    role: Json = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "identity-CLIENT_ID"},
        "rules": [rule],
    }
    binding: Json = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "identity-CLIENT_ID-NAMESPACE"},
        "subjects": [{"kind": "Group", "apiGroup": group, "name": "system:serviceaccounts:NAMESPACE"}],
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "identity-CLIENT_ID"},
    }
    return role, binding


def _render(images: Images, values: dict[str, Any]) -> list[Json]:
    repository, _, tag = images.broker.rpartition(":")
    folder, _, name = repository.rpartition("/")
    image = {"repository": folder, "name": name, "tag": tag}
    return rendered.objects(chart.BROKER, {"tenantId": TENANT, "image": image, **values}, name=NAME, namespace=NAME)
