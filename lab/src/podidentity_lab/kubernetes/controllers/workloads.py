"""Makes pods of Deployments, ReplicaSets and DaemonSets, and the workloads' statuses of their pods."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from podidentity_lab.kubernetes import admission, selectors
from podidentity_lab.kubernetes.kinds import Kinds
from podidentity_lab.kubernetes.storage import Storage

RESOURCES = ("deployments.apps", "replicasets.apps", "daemonsets.apps", "pods", "nodes")
HASH_LABEL = "pod-template-hash"
REVISION_ANNOTATION = "deployment.kubernetes.io/revision"
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
    """Keep a ReplicaSet for the current template; scale the others down as it comes up."""
    template = deployment["spec"]["template"]
    digest = _digest(template)
    namespace, name = deployment["metadata"]["namespace"], f"{deployment['metadata']['name']}-{digest}"
    owned = owned_by(storage.list("replicasets.apps", namespace), deployment)
    current = next((replica_set for replica_set in owned if replica_set["metadata"]["name"] == name), None)
    newest = max(map(_revision, owned), default=0)
    if current is None:
        storage.create("replicasets.apps", _new_replica_set(deployment, name, digest, newest + 1))
        _set_revision(storage, "deployments.apps", deployment, newest + 1)
        return
    if _revision(current) < newest:  # an update back to a template of the past
        _set_revision(storage, "replicasets.apps", current, newest + 1)
        _set_revision(storage, "deployments.apps", deployment, newest + 1)
        return
    _roll(storage, deployment, owned, current)


def _roll(storage: Storage, deployment: Json, owned: list[Json], current: Json) -> None:
    """Bring the current ReplicaSet up and the others down, and say how far that is."""
    replicas = deployment["spec"]["replicas"]
    _scale(storage, current, replicas)
    if current.get("status", {}).get("readyReplicas", 0) >= replicas:
        for other in owned:
            if other is not current:
                _scale(storage, other, 0)
    ready = _total(owned, "readyReplicas")
    status = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": _total(owned, "replicas"),
        "updatedReplicas": _total([current], "replicas"),
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": max(0, replicas - ready),
        "conditions": [{"type": "Available", "status": str(ready >= replicas), "reason": "MinimumReplicasAvailable"}],
    }
    set_status(storage, "deployments.apps", deployment, status)


def _revision(obj: Json) -> int:
    return int((obj["metadata"].get("annotations") or {}).get(REVISION_ANNOTATION, 0))


def _set_revision(storage: Storage, resource: str, obj: Json, revision: int) -> None:
    """Number an update, for `kubectl rollout history` and `undo`."""

    def edit(current: Json) -> None:
        annotations = current["metadata"].get("annotations") or {}
        current["metadata"]["annotations"] = {**annotations, REVISION_ANNOTATION: str(revision)}

    storage.change(resource, obj["metadata"]["namespace"], obj["metadata"]["name"], edit)


def _new_replica_set(deployment: Json, name: str, digest: str, revision: int) -> Json:
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
            "annotations": {REVISION_ANNOTATION: str(revision)},
            "ownerReferences": [owner_of(deployment)],
        },
        "spec": {
            "replicas": deployment["spec"]["replicas"],
            "selector": {"matchLabels": labels},
            "template": template,
        },
    }


def _replica_set(storage: Storage, kinds: Kinds, replica_set: Json) -> None:
    pods = owned_by(storage.list("pods", replica_set["metadata"]["namespace"]), replica_set)
    active = [pod for pod in pods if is_active(pod)]
    replicas = replica_set["spec"]["replicas"]
    for _ in range(replicas - len(active)):
        create_pod(storage, kinds, replica_set, {})
    for pod in sorted(active, key=is_ready)[: max(0, len(active) - replicas)]:
        storage.delete("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
    ready = sum(map(is_ready, active))
    status = {"observedGeneration": replica_set["metadata"]["generation"], "replicas": len(active)}
    set_status(storage, "replicasets.apps", replica_set, {**status, "readyReplicas": ready, "availableReplicas": ready})


def _daemon_set(storage: Storage, kinds: Kinds, daemon_set: Json) -> None:
    """Keep one pod on each fitting node; an update stops the old pod of one node before its successor starts."""
    digest = _digest(daemon_set["spec"]["template"])
    pods = owned_by(storage.list("pods", daemon_set["metadata"]["namespace"]), daemon_set)
    selector = (daemon_set["spec"]["template"]["spec"].get("nodeSelector") or {}).items()
    nodes = [
        node["metadata"]["name"]
        for node in storage.list("nodes")
        if selector <= (node["metadata"].get("labels") or {}).items()
    ]
    by_node = {pod["spec"].get("nodeName"): pod for pod in pods}
    for node in nodes:
        if node not in by_node:
            create_pod(storage, kinds, daemon_set, {"nodeName": node}, {GENERATION_LABEL: digest})
    current = [pod for pod in pods if pod["metadata"]["labels"].get(GENERATION_LABEL) == digest and is_active(pod)]
    outdated = [pod for pod in pods if pod not in current and is_active(pod)]
    if outdated and all(map(is_ready, current)) and len(current) + len(outdated) == len(nodes):
        first = outdated[0]["metadata"]
        storage.delete("pods", first["namespace"], first["name"])
    ready = sum(is_ready(pod) for pod in pods if is_active(pod))
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
    set_status(storage, "daemonsets.apps", daemon_set, status)


def create_pod(storage: Storage, kinds: Kinds, owner: Json, spec: Json, labels: dict[str, str] | None = None) -> None:
    """Create a pod from its owner's template, with more of a spec and labels."""
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
            "ownerReferences": [owner_of(owner)],
        },
        "spec": {**template["spec"], **spec},
    }
    admission.admit(kinds.find_by_resource("pods"), pod)
    storage.create("pods", pod)


def _scale(storage: Storage, replica_set: Json, replicas: int) -> None:
    def edit(obj: Json) -> None:
        obj["spec"]["replicas"] = replicas

    storage.change("replicasets.apps", replica_set["metadata"]["namespace"], replica_set["metadata"]["name"], edit)


def set_status(storage: Storage, resource: str, obj: Json, status: Json) -> None:
    """Replace the status of an object; nothing if it is gone."""

    def edit(current: Json) -> None:
        current["status"] = status

    storage.change(resource, obj["metadata"]["namespace"], obj["metadata"]["name"], edit)


def owner_of(obj: Json) -> Json:
    """Return the reference that makes `obj` the owner of another object."""
    metadata = obj["metadata"]
    reference = {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return {**reference, "controller": True, "blockOwnerDeletion": True}


def owned_by(candidates: Iterable[Json], owner: Json) -> list[Json]:
    """Return the candidates that `owner` owns."""
    uid = owner["metadata"]["uid"]
    return [obj for obj in candidates if any(ref["uid"] == uid for ref in obj["metadata"].get("ownerReferences") or ())]


def is_active(pod: Json) -> bool:
    """Whether a pod runs or will: it has not ended and is not being deleted."""
    finished = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    return not finished and "deletionTimestamp" not in pod["metadata"]


def is_ready(pod: Json) -> bool:
    """Whether a pod's condition says that it is ready."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _total(replica_sets: Iterable[Json], field: str) -> int:
    return sum(replica_set.get("status", {}).get(field, 0) for replica_set in replica_sets)


def _digest(template: Json) -> str:
    return hashlib.sha256(json.dumps(_without_empty(template), sort_keys=True).encode()).hexdigest()[:10]


def _without_empty(value: Any) -> Any:
    """Return a template without what says nothing: clients write `null` and `{}` where others write nothing."""
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    if not isinstance(value, dict):
        return value
    items = ((name, _without_empty(item)) for name, item in value.items())
    return {name: item for name, item in items if item not in (None, {}, [])}


def selected(pods: Iterable[Json], selector: Json) -> list[Json]:
    """Return the ready pods that a Service's selector chooses."""
    return [
        pod
        for pod in pods
        if selectors.matches({"matchLabels": selector}, pod["metadata"].get("labels") or {}) and is_ready(pod)
    ]
