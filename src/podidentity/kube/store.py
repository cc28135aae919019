"""Remembers the cluster's objects: values by key, with indexes on them and subscribers to changes.

A reflector fills a store; readers use it synchronously. There is one event loop, so a reader never sees half a change.
An index is defined by a plain function from a value to the keys by which it is found.
"""

import asyncio
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from podidentity.core.model.identities import AzureAssignedIdentity, AzureIdentityBinding, ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.kube.resources import StoredObject

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


FEW = 8
"""Values of one key that are a tuple: a change makes another one."""
_VALUE = operator.attrgetter("value")


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One object was added (`previous` is None), updated, or deleted (`current` is None)."""

    key: ObjectKey
    previous: T | None
    current: T | None


class Index(Generic[T, K]):
    """Values by keys other than their names; see `Store.index`.

    Most keys find one value, so few are a tuple and only more are a dictionary: one for each of 100,000 pods is 35 MB.
    """

    def __init__(self, keys_of: Callable[[T], Iterable[K]]) -> None:
        self._keys_of = keys_of
        self._few: dict[K, tuple[T, ...]] = {}
        self._many: dict[K, dict[int, T]] = {}
        """By what tells objects apart in memory: the store passes the very object that it passed before."""
        self._cache: dict[K, tuple[T, ...]] = {}

    def find(self, key: K) -> tuple[T, ...]:
        """Return the values found by `key`, in no particular order. The number of other values does not matter."""
        values = self._few.get(key)
        if values is not None:
            return values
        if key not in self._many:
            return ()
        values = self._cache.get(key)
        if values is None:
            values = self._cache[key] = tuple(self._many[key].values())
        return values

    def keys(self) -> Iterable[K]:
        """Return the keys that find something."""
        return (*self._few, *self._many)

    def change(self, change: Change[T]) -> None:
        """Follow one change of the store."""
        if change.previous is not None:
            for key in self._keys_of(change.previous):
                self._drop(key, change.previous)
        if change.current is not None:
            for key in self._keys_of(change.current):
                self._add(key, change.current)

    def _add(self, key: K, value: T) -> None:
        many = self._many.get(key)
        if many is None:
            few = self._few.get(key, ())
            if len(few) < FEW:
                self._few[key] = (*(item for item in few if item is not value), value)
                return
            del self._few[key]
            many = self._many[key] = {id(item): item for item in few}
        many[id(value)] = value
        self._cache.pop(key, None)

    def _drop(self, key: K, value: T) -> None:
        many = self._many.get(key)
        if many is not None:
            many.pop(id(value), None)
            self._cache.pop(key, None)
            if not many:
                del self._many[key]
            return
        remaining = tuple(item for item in self._few.get(key, ()) if item is not value)
        if remaining:
            self._few[key] = remaining
        else:
            self._few.pop(key, None)


class Store(Generic[T]):
    """The values of one kind, or of a selection of it."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, StoredObject[T]] = {}
        self._indexes: list[Index[T, Hashable]] = []
        self._subscribers: list[Callable[[Change[T]], None]] = []
        self._synced = asyncio.Event()
        self.revision = 0
        """Grows with each change: shows whether a result that was derived from the values is still current."""

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[T]:
        return (item.value for item in self._objects.values())

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def values(self, without: Iterable[ObjectKey] = ()) -> tuple[T, ...]:
        """Return all values but those of some keys. Quick: 100,000 take some 5 ms."""
        objects = self._objects
        excluded = tuple(without)
        if excluded:
            objects = objects.copy()
            for key in excluded:
                objects.pop(key, None)
        return tuple(map(_VALUE, objects.values()))

    def get(self, key: ObjectKey) -> T | None:
        """Return the value; None when there is none."""
        item = self._objects.get(key)
        return None if item is None else item.value

    def version(self, key: ObjectKey) -> str:
        """Return the resource version of a value; empty when there is none."""
        item = self._objects.get(key)
        return "" if item is None else item.version

    def as_mapping(self) -> dict[ObjectKey, T]:
        """Return a copy: all values by key."""
        return {key: item.value for key, item in self._objects.items()}

    def index(self, keys_of: Callable[[T], Iterable[K]]) -> Index[T, K]:
        """Return a new index on the present values, which follows all later changes."""
        index = Index(keys_of)
        for item in self._objects.values():
            index.change(Change(item.key, None, item.value))
        self._indexes.append(index)  # type: ignore[arg-type]  # it is only used to follow changes
        return index

    def subscribe(self, callback: Callable[[Change[T]], None]) -> Callable[[], None]:
        """Call `callback` after each change, indexes included, until the returned function is called.

        It must be quick and must not raise: an error in it ends the reflector.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    @property
    def synced(self) -> bool:
        """Whether the first list is complete. This stays true; see `Reflector.confirmed_at`."""
        return self._synced.is_set()

    async def wait_until_synced(self) -> None:
        """Wait until the first list is complete."""
        await self._synced.wait()

    # For a reflector.

    def upsert(self, item: StoredObject[T]) -> None:
        """Add or update one value. The same version again is no change; another UID is a deletion and an addition."""
        previous = self._objects.get(item.key)
        if previous is None:
            self._set(item, None)
        elif previous.uid != item.uid:
            self.remove(item.key)
            self._set(item, None)
        elif previous.version != item.version or not item.version:
            self._set(item, previous.value)

    def remove(self, key: ObjectKey) -> None:
        """Delete one value, if it exists."""
        previous = self._objects.pop(key, None)
        if previous is not None:
            self._tell(Change(key, previous.value, None))

    def replace(self, fresh: Mapping[ObjectKey, StoredObject[T]]) -> None:
        """Replace all values by `fresh`, a complete list; subscribers get only the differences, deletions first."""
        for key in [key for key in self._objects if key not in fresh]:
            self.remove(key)
        for item in fresh.values():
            self.upsert(item)
        self._synced.set()

    def _set(self, item: StoredObject[T], previous: T | None) -> None:
        self._objects[item.key] = item
        self._tell(Change(item.key, previous, item.value))

    def _tell(self, change: Change[T]) -> None:
        self.revision += 1
        for index in self._indexes:
            index.change(change)
        for callback in tuple(self._subscribers):
            callback(change)


def addresses(pod: Pod) -> tuple[str, ...]:
    """Return a pod's present addresses; none for a finished pod or one on the host's network."""
    return pod.ips if pod.live and not pod.host_network else ()


def pod_of(assigned_identity: AzureAssignedIdentity) -> tuple[ObjectKey]:
    """Return the key of an assigned identity: its pod."""
    return (assigned_identity.pod,)


def selector_of(binding: AzureIdentityBinding) -> tuple[str, ...]:
    """Return the key of a binding in any namespace: its selector. An empty one selects nothing."""
    return (binding.selector,) if binding.selector else ()


def selector_in_namespace(binding: AzureIdentityBinding) -> tuple[tuple[str, str], ...]:
    """Return the key of a binding in namespaced mode: (namespace, selector)."""
    return ((binding.key.namespace, binding.selector),) if binding.selector else ()
