"""Puts pods on nodes: the fewest pods first, node selectors obeyed."""

import functools
from collections import Counter
from typing import Any

from podidentity.lab.kubernetes.storage import Storage

RESOURCES = ("pods", "nodes")
Json = dict[str, Any]


def reconcile(storage: Storage) -> None:
    """Give every pod without a node one that fits."""
    nodes = storage.list("nodes")
    pods = storage.list("pods")
    load = Counter(pod["spec"].get("nodeName") for pod in pods)
    for pod in pods:
        if pod["spec"].get("nodeName"):
            continue
        wanted = (pod["spec"].get("nodeSelector") or {}).items()
        fitting = [
            node["metadata"]["name"] for node in nodes if wanted <= (node["metadata"].get("labels") or {}).items()
        ]
        if fitting:
            chosen = min(fitting, key=lambda name: (load[name], name))
            load[chosen] += 1
            storage.change("pods", *_key(pod), functools.partial(_bind, node=chosen))


def _key(obj: Json) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _bind(pod: Json, *, node: str) -> None:
    pod["spec"]["nodeName"] = node
    condition = {"type": "PodScheduled", "status": "True"}
    pod.setdefault("status", {}).setdefault("conditions", []).append(condition)
