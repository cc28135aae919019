"""Deployments, ReplicaSets and DaemonSets to pods, and pods to their statuses."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from podidentity.lab.kubernetes import admission, selectors
from podidentity.lab.kubernetes.kinds import Kinds
from podidentity.lab.kubernetes.storage import Storage

RESOURCES = ("deployments.apps", "replicasets.apps", "daemonsets.apps", "pods", "nodes")
HASH_LABEL = "pod-template-hash"
GENERATION_LABEL = "controller-revision-hash"
Json = dict[str, Any]


def reconcile(storage: Storage, kinds: Kinds) -> None:
    """Bring all workloads one step on."""
    for deployment in storage.list("deployments.apps"):
        _deployment(storage, deployment)
    for replica_set in storage.list("replicasets.apps"):
        _replica_set(storage, kinds, replica_set)
    for daemon_set in storage.list("daemonsets.apps"):
        _daemon_set(storage, kinds, daemon_set)


def _deployment(storage: Storage, deployment: Json) -> None:
    """A ReplicaSet for the current template; the others go down as it comes up."""
    template = deployment["spec"]["template"]
    digest = _digest(template)
    namespace, name = deployment["metadata"]["namespace"], f"{deployment['metadata']['name']}-{digest}"
    owned = _owned(storage.list("replicasets.apps", namespace), deployment)
    replicas = deployment["spec"]["replicas"]
    current = next((one for one in owned if one["metadata"]["name"] == name), None)
    if current is None:
        storage.create("replicasets.apps", _new_replica_set(deployment, name, digest))
    else:
        _scale(storage, current, replicas)
        if current.get("status", {}).get("readyReplicas", 0) >= replicas:
            for other in owned:
                if other is not current:
                    _scale(storage, other, 0)
    ready = _total(owned, "readyReplicas")
    status = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": _total(owned, "replicas"),
        "updatedReplicas": _total([current] if current else [], "replicas"),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, replicas - ready),
        "conditions": [{"type": "Available", "status": str(ready >= replicas), "reason": "MinimumReplicasAvailable"}],
    }
    _set_status(storage, "deployments.apps", deployment, status)


def _new_replica_set(deployment: Json, name: str, digest: str) -> Json:
    template = json.loads(json.dumps(deployment["spec"]["template"]))
    labels = {**(template["metadata"].get("labels") or {}), HASH_LABEL: digest}
    template["metadata"]["labels"] = labels
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": name,
            "namespace": deployment["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [_owner(deployment)],
        },
        "spec": {
            "replicas": deployment["spec"]["replicas"],
            "selector": {"matchLabels": labels},
            "template": template,
        },
    }


def _replica_set(storage: Storage, kinds: Kinds, replica_set: Json) -> None:
    pods = _owned(storage.list("pods", replica_set["metadata"]["namespace"]), replica_set)
    active = [pod for pod in pods if _active(pod)]
    wanted = replica_set["spec"]["replicas"]
    for _ in range(wanted - len(active)):
        _create_pod(storage, kinds, replica_set, {})
    for pod in sorted(active, key=_ready)[: max(0, len(active) - wanted)]:
        storage.delete("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
    ready = sum(map(_ready, active))
    status = {"observedGeneration": replica_set["metadata"]["generation"], "replicas": len(active)}
    _set_status(
        storage, "replicasets.apps", replica_set, {**status, "readyReplicas": ready, "availableReplicas": ready}
    )


def _daemon_set(storage: Storage, kinds: Kinds, daemon_set: Json) -> None:
    """One pod on each fitting node; an update stops the old pod of one node before its successor starts."""
    digest = _digest(daemon_set["spec"]["template"])
    pods = _owned(storage.list("pods", daemon_set["metadata"]["namespace"]), daemon_set)
    wanted = (daemon_set["spec"]["template"]["spec"].get("nodeSelector") or {}).items()
    nodes = [
        node["metadata"]["name"]
        for node in storage.list("nodes")
        if wanted <= (node["metadata"].get("labels") or {}).items()
    ]
    by_node = {pod["spec"].get("nodeName"): pod for pod in pods}
    for node in nodes:
        if node not in by_node:
            _create_pod(storage, kinds, daemon_set, {"nodeName": node}, {GENERATION_LABEL: digest})
    current = [pod for pod in pods if pod["metadata"]["labels"].get(GENERATION_LABEL) == digest and _active(pod)]
    outdated = [pod for pod in pods if pod not in current and _active(pod)]
    if outdated and all(map(_ready, current)) and len(current) + len(outdated) == len(nodes):
        first = outdated[0]["metadata"]
        storage.delete("pods", first["namespace"], first["name"])
    ready = sum(_ready(pod) for pod in pods if _active(pod))
    status = {
        "observedGeneration": daemon_set["metadata"]["generation"],
        "desiredNumberScheduled": len(nodes),
        "currentNumberScheduled": len(pods),
        "updatedNumberScheduled": len(current),
        "numberReady": ready,
        "numberAvailable": ready,
        "numberUnavailable": len(nodes) - ready,
        "numberMisscheduled": 0,
    }
    _set_status(storage, "daemonsets.apps", daemon_set, status)


def _create_pod(storage: Storage, kinds: Kinds, owner: Json, spec: Json, labels: dict[str, str] | None = None) -> None:
    template = json.loads(json.dumps(owner["spec"]["template"]))
    metadata = template.get("metadata") or {}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{owner['metadata']['name']}-",
            "namespace": owner["metadata"]["namespace"],
            "labels": {**(metadata.get("labels") or {}), **(labels or {})},
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [_owner(owner)],
        },
        "spec": {**template["spec"], **spec},
    }
    admission.admit(kinds.named("pods"), pod)
    storage.create("pods", pod)


def _scale(storage: Storage, replica_set: Json, replicas: int) -> None:
    def edit(obj: Json) -> None:
        obj["spec"]["replicas"] = replicas

    storage.change("replicasets.apps", replica_set["metadata"]["namespace"], replica_set["metadata"]["name"], edit)


def _set_status(storage: Storage, resource: str, obj: Json, status: Json) -> None:
    def edit(stored: Json) -> None:
        stored["status"] = status

    storage.change(resource, obj["metadata"]["namespace"], obj["metadata"]["name"], edit)


def _owner(obj: Json) -> Json:
    metadata = obj["metadata"]
    reference = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return {**reference, "controller": True, "blockOwnerDeletion": True}


def _owned(candidates: Iterable[Json], owner: Json) -> list[Json]:
    uid = owner["metadata"]["uid"]
    return [one for one in candidates if any(ref["uid"] == uid for ref in one["metadata"].get("ownerReferences") or ())]


def _active(pod: Json) -> bool:
    finished = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    return not finished and "deletionTimestamp" not in pod["metadata"]


def _ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _total(replica_sets: Iterable[Json], field: str) -> int:
    return sum(one.get("status", {}).get(field, 0) for one in replica_sets)


def _digest(template: Json) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def selected(pods: Iterable[Json], selector: Json) -> list[Json]:
    """The ready pods that a Service's selector chooses."""
    return [
        pod
        for pod in pods
        if selectors.matches({"matchLabels": selector}, pod["metadata"].get("labels") or {}) and _ready(pod)
    ]
