"""What of the embedded Kubernetes is kept when a lab is saved, and how another lab goes on with it.

Objects keep their UIDs, so that an owner is still found by what it owns. What the cluster makes by itself is left out
and is made anew: nodes, events, leases, the Endpoints of Services with a selector, and every pod that has an owner.
Of a pod without an owner the wish is kept and not its node or status: it starts anew, unless it had finished.
"""

from typing import Any

import msgspec

from podidentity.errors import LabError
from podidentity_lab.kubernetes.kinds import CRD, Kinds, from_definition
from podidentity_lab.kubernetes.storage import Applied, Storage

FORMAT = 1
_DERIVED = frozenset({"nodes", "events", "leases.coordination.k8s.io"})
Json = dict[str, Any]


class _Object(msgspec.Struct):
    resource: str
    object: Json


class _Intent(msgspec.Struct):
    """What a manager applied last to the object with this UID."""

    uid: str
    manager: str
    object: Json


class _Document(msgspec.Struct):
    format: int
    objects: list[_Object]
    intents: list[_Intent] = []


def snapshot(storage: Storage, kinds: Kinds) -> Json:
    """Return what is kept, as JSON; values of Secrets are in it."""
    resources = dict.fromkeys(kind.resource for kind in kinds)  # a custom kind may have several versions
    objects: list[Json] = [
        {"resource": resource, "object": _without_place(obj) if resource == "pods" else obj}
        for resource in resources
        for obj in storage.list(resource)
        if not _is_derived(resource, obj, storage)
    ]
    uids = {item["object"]["metadata"]["uid"] for item in objects}
    intents = [
        {"uid": uid, "manager": manager, "object": obj}
        for (uid, manager), obj in storage.intents.items()
        if uid in uids
    ]
    return {"format": FORMAT, "objects": objects, "intents": intents}


def restore(backup: Json, storage: Storage, kinds: Kinds) -> None:
    """Store what `snapshot` returned in an empty storage, and serve its custom kinds. Raises `LabError`."""
    try:
        document = msgspec.convert(backup, _Document)
        if document.format != FORMAT:
            number = document.format
            message = f"the saved Kubernetes has format {number}, and this version reads {FORMAT}; start a fresh lab"
            raise LabError(message)
        for item in document.objects:
            storage.restore(item.resource, item.object)
        for definition in storage.list(CRD.resource):
            for kind in from_definition(definition):
                kinds.add(kind)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        message = f"the saved Kubernetes cannot be read: {error}; start a fresh lab, or restore the file from a copy"
        raise LabError(message) from None
    intents: Applied = {(intent.uid, intent.manager): intent.object for intent in document.intents}
    storage.intents.update(intents)


def _is_derived(resource: str, obj: Json, storage: Storage) -> bool:
    if resource == "pods":
        phase = (obj.get("status") or {}).get("phase")
        has_owner = bool(obj["metadata"].get("ownerReferences"))
        return has_owner or phase in {"Succeeded", "Failed"} or "deletionTimestamp" in obj["metadata"]
    if resource == "endpoints":
        metadata = obj["metadata"]
        services = storage.list("services", metadata["namespace"])
        service = next((item for item in services if item["metadata"]["name"] == metadata["name"]), None)
        return service is None or bool(service["spec"].get("selector"))
    return resource in _DERIVED


def _without_place(pod: Json) -> Json:
    spec = {name: value for name, value in pod["spec"].items() if name not in {"nodeName", "ephemeralContainers"}}
    return {**pod, "spec": spec, "status": {"phase": "Pending"}}
