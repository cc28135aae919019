"""The objects, in memory, with one revision counter and a bounded history for watches.

Objects are plain JSON; what goes in and comes out is a copy. Deletion honours finalizers and a pod's grace period.
Every change, whoever makes it, goes through here: the API, the controllers and the kubelets see the same events.
"""

import asyncio
import copy
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal, NamedTuple

from podidentity.timing import render_rfc3339
from podidentity_lab.kubernetes.statuses import ApiError, not_found

HISTORY = 5_000
Json = dict[str, Any]
Key = tuple[str, str, str]
Applied = dict[tuple[str, str], Json]
"""What each manager applied last, by the object's UID: an object that comes again is another one."""
ChangeType = Literal["ADDED", "MODIFIED", "DELETED"]


class WatchEvent(NamedTuple):
    """One change; `object` is the state after it, or the last one before a deletion."""

    type: ChangeType
    object: Json


class _Change(NamedTuple):
    revision: int
    resource: str
    event: WatchEvent


class Storage:
    """Create, read, update, delete, watch. `resource` is `pods` or `deployments.apps`; cluster-wide: namespace None."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._objects: dict[Key, Json] = {}
        self._history: deque[_Change] = deque(maxlen=HISTORY)
        self._watchers: set[asyncio.Queue[_Change]] = set()
        self.revision = 1
        self.intents: Applied = {}

    def get(self, resource: str, namespace: str | None, name: str) -> Json:
        """Return an object. Raises ApiError 404."""
        obj = self._objects.get((resource, namespace or "", name))
        if obj is None:
            raise not_found(resource, name)
        return copy.deepcopy(obj)

    def list(self, resource: str, namespace: str | None = None) -> list[Json]:
        """Return all objects of a kind, of one namespace or of all, sorted by namespace and name."""
        keys = sorted(key for key in self._objects if key[0] == resource and namespace in {None, key[1]})
        return [copy.deepcopy(self._objects[key]) for key in keys]

    def create(self, resource: str, obj: Json) -> Json:
        """Store a new object; fills in what the server fills in. Raises ApiError 409 when the name is taken."""
        copied = copy.deepcopy(obj)
        metadata = copied.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = metadata.get("generateName", "") + uuid.uuid4().hex[:5]
        key = (resource, metadata.get("namespace") or "", metadata["name"])
        if key in self._objects:
            raise ApiError(409, f'{resource} "{metadata["name"]}" already exists', "AlreadyExists")
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": self._now(), "generation": 1}
        return self._store(key, copied, "ADDED")

    def restore(self, resource: str, obj: Json) -> None:
        """Store an object of an earlier lab as it was, with its UID and the time of its creation."""
        copied = copy.deepcopy(obj)
        self._store((resource, copied["metadata"].get("namespace") or "", copied["metadata"]["name"]), copied, "ADDED")

    def update(self, resource: str, obj: Json, *, count_all_changes: bool = False) -> Json:
        """Replace an object. Raises ApiError 409 when `resourceVersion` is set and stale.

        A change of the spec makes a new generation; with `count_all_changes`, any change outside the metadata does, as
        for a custom resource without a status subresource.
        """
        key = (resource, obj["metadata"].get("namespace") or "", obj["metadata"]["name"])
        current = self._objects.get(key)
        if current is None:
            raise not_found(resource, key[2])
        version = obj["metadata"].get("resourceVersion")
        if version and version != current["metadata"]["resourceVersion"]:
            stale = "the object has been modified; please apply your changes to the latest version and try again"
            message = f'Operation cannot be fulfilled on {resource} "{key[2]}": {stale}'
            raise ApiError(409, message)
        updated = copy.deepcopy(obj)
        for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
            if name in current["metadata"]:
                updated["metadata"][name] = current["metadata"][name]
        parts = (updated.keys() | current.keys()) - {"metadata"} if count_all_changes else {"spec"}
        if any(updated.get(part) != current.get(part) for part in parts):
            updated["metadata"]["generation"] += 1
        updated["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"]
        if updated == current:
            return copy.deepcopy(current)
        if (
            updated["metadata"].get("deletionTimestamp")
            and not updated["metadata"].get("finalizers")
            and resource != "pods"
        ):
            return self._remove(key, updated)
        return self._store(key, updated, "MODIFIED")

    def change(self, resource: str, namespace: str | None, name: str, edit: Callable[[Json], None]) -> Json | None:
        """Read, edit and store in one step, for controllers and kubelets; None when the object is gone."""
        if (resource, namespace or "", name) not in self._objects:
            return None
        obj = self.get(resource, namespace, name)
        edit(obj)
        return self.update(resource, obj)

    def delete(self, resource: str, namespace: str | None, name: str, *, grace_seconds: int | None = None) -> Json:
        """Delete, or mark for deletion while finalizers, or a kubelet, have work to do."""
        key = (resource, namespace or "", name)
        obj = self.get(resource, namespace, name)
        metadata = obj["metadata"]
        grace = self._grace(resource, obj, grace_seconds)
        if grace == 0 and not metadata.get("finalizers"):
            return self._remove(key, obj)
        if "deletionTimestamp" in metadata and grace >= metadata.get("deletionGracePeriodSeconds", 0):
            return obj
        metadata |= {"deletionTimestamp": self._now(), "deletionGracePeriodSeconds": grace}
        return self._store(key, obj, "MODIFIED")

    async def watch(
        self, resource: str, namespace: str | None = None, since: int | None = None
    ) -> AsyncIterator[WatchEvent]:
        """Follow changes. Without `since` it begins with ADDED for what exists. Raises ApiError 410 when too old."""
        queue: asyncio.Queue[_Change] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            for event in self._begin(resource, since):
                if namespace in {None, event.object["metadata"].get("namespace")}:
                    yield event
            while True:
                change = await queue.get()
                if change.resource == resource and namespace in {
                    None,
                    change.event.object["metadata"].get("namespace"),
                }:
                    yield WatchEvent(change.event.type, copy.deepcopy(change.event.object))
        finally:
            self._watchers.discard(queue)

    def forgotten(self, revision: int) -> bool:
        """Whether changes after `revision` may have left the history."""
        return len(self._history) == HISTORY and revision < self._history[0].revision - 1

    def _begin(self, resource: str, since: int | None) -> Iterator[WatchEvent]:
        if since is None:
            return (WatchEvent("ADDED", obj) for obj in self.list(resource))
        if self.forgotten(since):
            raise ApiError(410, f"too old resource version: {since} ({self._history[0].revision})")
        changes = [change for change in self._history if change.resource == resource and change.revision > since]
        return (change.event for change in changes)

    def _grace(self, resource: str, obj: Json, seconds: int | None) -> int:
        if resource != "pods" or not obj.get("spec", {}).get("nodeName"):
            return 0
        return seconds if seconds is not None else int(obj["spec"].get("terminationGracePeriodSeconds", 30))

    def _store(self, key: Key, obj: Json, kind: ChangeType) -> Json:
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        self._objects[key] = obj
        self._tell(key[0], WatchEvent(kind, obj))
        return copy.deepcopy(obj)

    def _remove(self, key: Key, obj: Json) -> Json:
        self.revision += 1
        del self._objects[key]
        obj["metadata"]["resourceVersion"] = str(self.revision)
        self._tell(key[0], WatchEvent("DELETED", obj))
        return copy.deepcopy(obj)

    def _tell(self, resource: str, event: WatchEvent) -> None:
        change = _Change(self.revision, resource, WatchEvent(event.type, copy.deepcopy(event.object)))
        self._history.append(change)
        for queue in self._watchers:
            queue.put_nowait(change)

    def _now(self) -> str:
        return render_rfc3339(self._clock())
