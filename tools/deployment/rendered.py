"""Manifests that are what a chart renders, for who does not use Helm."""

from pathlib import Path
from typing import Any

import yaml

import chart
from deployment.settings import Json

_ORDER = ("ServiceAccount", "Secret", "ConfigMap", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
"""What pods need before they start, as Helm sorts it, too."""
_LAST = "MutatingWebhookConfiguration"
"""Asks for a webhook that has to be there."""
_HELMS_LABELS = ("app.kubernetes.io/managed-by", "helm.sh/chart")


def objects(source: Path, values: dict[str, Any], *, name: str, namespace: str) -> list[Json]:
    """Return the objects that the chart in `source` comes to, in an order in which they can be applied."""
    texts = chart.templates(values, chart=source, name=name, namespace=namespace)
    manifests = [item for path, text in texts.items() if path.endswith(".yaml") for item in yaml.safe_load_all(text)]
    items = [item for item in manifests if item]
    for item in items:
        for metadata in (item["metadata"], item.get("spec", {}).get("template", {}).get("metadata", {})):
            for label in _HELMS_LABELS:
                metadata.get("labels", {}).pop(label, None)
    return sorted(items, key=lambda item: ((*_ORDER, item["kind"]).index(item["kind"]), item["kind"] == _LAST))


def restricted_namespace(name: str) -> Json:
    """Return a namespace whose pods Pod Security holds to its level `restricted`."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
