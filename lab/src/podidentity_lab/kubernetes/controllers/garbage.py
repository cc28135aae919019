"""Deletes what has lost its owner or its namespace."""

from typing import Any

from podidentity_lab.kubernetes.kinds import BUILT_IN, Kinds
from podidentity_lab.kubernetes.storage import Storage

_CHURN = frozenset({"events", "leases.coordination.k8s.io", "endpoints"})
RESOURCES = tuple(kind.resource for kind in BUILT_IN if kind.resource not in _CHURN)
"""What may own something. Changes of custom resources are seen with the next change of these."""
Json = dict[str, Any]


def reconcile(storage: Storage, kinds: Kinds) -> None:
    """Delete objects whose owner, by its UID, no longer exists, and those of a namespace that is going."""
    objects = [(kind, obj) for kind in kinds for obj in storage.list(kind.resource)]
    alive = {obj["metadata"]["uid"] for _, obj in objects}
    namespaces = {obj["metadata"]["name"] for kind, obj in objects if kind.plural == "namespaces"}
    for kind, obj in objects:
        metadata = obj["metadata"]
        owners = metadata.get("ownerReferences") or ()
        orphaned = bool(owners) and not any(owner["uid"] in alive for owner in owners)
        homeless = kind.namespaced and metadata.get("namespace") not in namespaces
        if (orphaned or homeless) and "deletionTimestamp" not in metadata:
            storage.delete(kind.resource, metadata.get("namespace"), metadata["name"])
    for service in [obj["metadata"] for kind, obj in objects if kind.plural == "endpoints"]:
        if (
            not any(
                obj["metadata"]["name"] == service["name"] for obj in storage.list("services", service["namespace"])
            )
            and service["name"] not in _LOCKS
        ):
            storage.delete("endpoints", service["namespace"], service["name"])


_LOCKS = {"aad-pod-identity-mic"}
"""Endpoints objects that are locks and belong to no Service."""
