"""Puts pods on nodes: on the one with the fewest pods among those that fit the pod's node selector."""

import functools
from collections import Counter
from typing import Any

from podidentity_lab.kubernetes.storage import Storage

RESOURCES = ("pods", "nodes")
Json = dict[str, Any]


def reconcile(storage: Storage) -> None:
    """Give every pod without a node one that fits."""
    nodes = [node for node in storage.list("nodes") if not (node.get("spec") or {}).get("unschedulable")]
    pods = storage.list("pods")
    load = Counter(pod["spec"].get("nodeName") for pod in pods)
    for pod in pods:
        if pod["spec"].get("nodeName"):
            continue
        selector = (pod["spec"].get("nodeSelector") or {}).items()
        fitting = [
            node["metadata"]["name"] for node in nodes if selector <= (node["metadata"].get("labels") or {}).items()
        ]
        if fitting:
            node_name = min(fitting, key=lambda name: (load[name], name))
            load[node_name] += 1
            storage.change("pods", *_key(pod), functools.partial(_bind, node=node_name))


def _key(obj: Json) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _bind(pod: Json, *, node: str) -> None:
    pod["spec"]["nodeName"] = node
    condition = {"type": "PodScheduled", "status": "True"}
    pod.setdefault("status", {}).setdefault("conditions", []).append(condition)
