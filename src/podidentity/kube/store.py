"""Remembers the cluster's objects: values by key, with indexes on them and subscribers to changes.

A reflector fills a store; readers use it synchronously. There is one event loop, so a reader never sees half a change.
An index is defined by a plain function from a value to the keys by which it is found.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from podidentity.core.model.identities import AzureAssignedIdentity, AzureIdentityBinding, ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.kube.resources import StoredObject
from podidentity.kube.sharing import own_key

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


TUPLE_LENGTH = 8
"""Values of one key that are a tuple: a change makes another one."""


class _Version(NamedTuple):
    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One object was added (`previous` is None), updated, or deleted (`current` is None)."""

    key: ObjectKey
    previous: T | None
    current: T | None


class Index(Generic[T, K]):
    """Values by keys other than their names; see `Store.index`.

    Most keys find one value, and a dictionary for each of 100,000 pods would be 35 MB: up to `TUPLE_LENGTH` values of a
    key are a tuple.
    """

    def __init__(self, keys_of: Callable[[T], Iterable[K]]) -> None:
        self._keys_of = keys_of
        self._tuples: dict[K, tuple[T, ...]] = {}
        self._mappings: dict[K, dict[int, T]] = {}
        """By what tells objects apart in memory: the store passes the very object that it passed before."""
        self._cache: dict[K, tuple[T, ...]] = {}

    def find(self, key: K) -> tuple[T, ...]:
        """Return the values found by `key`, in no particular order. The number of other values does not matter."""
        values = self._tuples.get(key)
        if values is not None:
            return values
        if key not in self._mappings:
            return ()
        values = self._cache.get(key)
        if values is None:
            values = self._cache[key] = tuple(self._mappings[key].values())
        return values

    def keys(self) -> Iterable[K]:
        """Return the keys that find something."""
        return (*self._tuples, *self._mappings)

    def change(self, change: Change[T]) -> None:
        """Follow one change of the store."""
        if change.previous is not None:
            for key in self._keys_of(change.previous):
                self._drop(key, change.previous)
        if change.current is not None:
            for key in self._keys_of(change.current):
                self._add(key, change.current)

    def _add(self, key: K, value: T) -> None:
        mapping = self._mappings.get(key)
        if mapping is None:
            items = self._tuples.get(key, ())
            if len(items) < TUPLE_LENGTH:
                self._tuples[key] = (*(item for item in items if item is not value), value)
                return
            del self._tuples[key]
            mapping = self._mappings[key] = {id(item): item for item in items}
        mapping[id(value)] = value
        self._cache.pop(key, None)

    def _drop(self, key: K, value: T) -> None:
        mapping = self._mappings.get(key)
        if mapping is not None:
            mapping.pop(id(value), None)
            self._cache.pop(key, None)
            if not mapping:
                del self._mappings[key]
            return
        remaining = tuple(item for item in self._tuples.get(key, ()) if item is not value)
        if remaining:
            self._tuples[key] = remaining
        else:
            self._tuples.pop(key, None)


class Store(Generic[T]):
    """The values of one kind, or of a selection of it."""

    def __init__(self) -> None:
        self._values: dict[ObjectKey, T] = {}  # apart from the versions: 100,000 are copied with each of MIC's plans
        self._versions: dict[ObjectKey, _Version] = {}
        self._indexes: list[Index[T, Hashable]] = []
        self._subscribers: list[Callable[[Change[T]], None]] = []
        self._synced = asyncio.Event()
        self.revision = 0
        """Grows with each change: shows whether a result that was derived from the values is still current."""

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[T]:
        return iter(self._values.values())

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._values

    def values(self, without: Iterable[ObjectKey] = ()) -> tuple[T, ...]:
        """Return all values but those of some keys. Quick: 100,000 take some 5 ms."""
        values, excluded = self._values, tuple(without)
        if excluded:
            values = values.copy()
            for key in excluded:
                values.pop(key, None)
        return tuple(values.values())

    def get(self, key: ObjectKey) -> T | None:
        """Return the value; None when there is none."""
        return self._values.get(key)

    def version(self, key: ObjectKey) -> str:
        """Return the resource version of a value; empty when there is none."""
        version = self._versions.get(key)
        return "" if version is None else version.resource_version

    def as_mapping(self) -> dict[ObjectKey, T]:
        """Return a copy: all values by key."""
        return self._values.copy()

    def index(self, keys_of: Callable[[T], Iterable[K]]) -> Index[T, K]:
        """Return a new index on the present values, which follows all later changes."""
        index = Index(keys_of)
        for key, value in self._values.items():
            index.change(Change(key, None, value))
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
        version = self._versions.get(item.key)
        if version is None:
            self._set(item, None)
        elif version.uid != item.uid:
            self.remove(item.key)
            self._set(item, None)
        elif version.resource_version != item.version or not item.version:
            self._set(item, self._values[item.key])

    def remove(self, key: ObjectKey) -> None:
        """Delete one value, if it exists."""
        if key in self._values:
            del self._versions[key]
            self._tell(Change(key, self._values.pop(key), None))

    def replace(self, fresh: Mapping[ObjectKey, StoredObject[T]]) -> None:
        """Replace all values by `fresh`, a complete list; subscribers get only the differences, deletions first."""
        for key in [key for key in self._values if key not in fresh]:
            self.remove(key)
        for item in fresh.values():
            self.upsert(item)
        self._synced.set()

    def _set(self, item: StoredObject[T], previous: T | None) -> None:
        key = own_key(item.value, item.key)
        self._values[key], self._versions[key] = item.value, _Version(item.uid, item.version)
        self._tell(Change(key, previous, item.value))

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
