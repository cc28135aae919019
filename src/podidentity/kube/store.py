"""What the cluster holds, remembered: values by key, indexes on them, and who wants to hear of changes.

Filled by a reflector, read synchronously by everybody else; there is one event loop, so a reader never sees half a
change. Decides nothing: what an index is about is a plain function from a value to the keys it is found by.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from podidentity.core.cluster import Pod
from podidentity.core.identities import AzureAssignedIdentity, AzureIdentityBinding, ObjectKey
from podidentity.kube.resources import Stored

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One object was added (`before` is None), updated, or deleted (`after` is None)."""

    key: ObjectKey
    before: T | None
    after: T | None


class Index(Generic[T, K]):
    """Values by something other than their name; made by `Store.index`."""

    def __init__(self, keys_of: Callable[[T], Iterable[K]]) -> None:
        self._keys_of = keys_of
        self._found: dict[K, dict[ObjectKey, T]] = {}
        self._asked: dict[K, tuple[T, ...]] = {}

    def of(self, key: K) -> tuple[T, ...]:
        """Return the values found by `key`, in no particular order. Costs the same however many others there are."""
        asked = self._asked.get(key)
        if asked is None:
            found = self._found.get(key)
            if not found:
                return ()  # not remembered: anybody may ask for anything
            asked = self._asked[key] = tuple(found.values())
        return asked

    def keys(self) -> Iterable[K]:
        """Return what something is found by."""
        return self._found.keys()

    def change(self, change: Change[T]) -> None:
        """Follow one change; called by the store."""
        if change.before is not None:
            for key in self._keys_of(change.before):
                self._drop(key, change.key)
        if change.after is not None:
            for key in self._keys_of(change.after):
                self._found.setdefault(key, {})[change.key] = change.after
                self._asked.pop(key, None)

    def _drop(self, key: K, name: ObjectKey) -> None:
        found = self._found.get(key)
        if found is None:
            return
        found.pop(name, None)
        self._asked.pop(key, None)
        if not found:
            del self._found[key]


class Store(Generic[T]):
    """The values of one kind, or of a selection of it."""

    def __init__(self) -> None:
        self._stored: dict[ObjectKey, Stored[T]] = {}
        self._indexes: list[Index[T, Hashable]] = []
        self._subscribers: list[Callable[[Change[T]], None]] = []
        self._synced = asyncio.Event()
        self.revision = 0
        """Grows with each change: who has made something of the values can see that it still stands."""

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[T]:
        return (stored.value for stored in self._stored.values())

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._stored

    def get(self, key: ObjectKey) -> T | None:
        """Return the value, or None."""
        stored = self._stored.get(key)
        return None if stored is None else stored.value

    def version(self, key: ObjectKey) -> str:
        """Return the resource version of what is stored; empty when nothing is."""
        stored = self._stored.get(key)
        return "" if stored is None else stored.version

    def as_mapping(self) -> dict[ObjectKey, T]:
        """Return a copy: all values by key."""
        return {key: stored.value for key, stored in self._stored.items()}

    def index(self, keys_of: Callable[[T], Iterable[K]]) -> Index[T, K]:
        """Make an index on what is here and what will come."""
        made = Index(keys_of)
        for stored in self._stored.values():
            made.change(Change(stored.key, None, stored.value))
        self._indexes.append(made)  # type: ignore[arg-type]  # it is only ever asked to follow changes
        return made

    def subscribe(self, callback: Callable[[Change[T]], None]) -> Callable[[], None]:
        """Call `callback` after each change, indexes included, until the returned function is called.

        It must be quick and must not raise: an error in it ends the reflector.
        """
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    @property
    def synced(self) -> bool:
        """Whether the first list is complete. It stays so: `Reflector.confirmed_at` says how fresh it is."""
        return self._synced.is_set()

    async def wait_until_synced(self) -> None:
        """Return once the first list is complete."""
        await self._synced.wait()

    # What a reflector does.

    def put(self, stored: Stored[T]) -> None:
        """Add or update one value. The same writing again is no change; another UID is a deletion and an addition."""
        before = self._stored.get(stored.key)
        if before is None:
            self._set(stored, None)
        elif before.uid != stored.uid:
            self.remove(stored.key)
            self._set(stored, None)
        elif before.version != stored.version or not stored.version:
            self._set(stored, before.value)

    def remove(self, key: ObjectKey) -> None:
        """Delete one value, if it is there."""
        before = self._stored.pop(key, None)
        if before is not None:
            self._tell(Change(key, before.value, None))

    def replace(self, fresh: Mapping[ObjectKey, Stored[T]]) -> None:
        """Become exactly `fresh`, a complete list; subscribers hear only of differences, deletions first."""
        for key in [key for key in self._stored if key not in fresh]:
            self.remove(key)
        for stored in fresh.values():
            self.put(stored)
        self._synced.set()

    def _set(self, stored: Stored[T], before: T | None) -> None:
        self._stored[stored.key] = stored
        self._tell(Change(stored.key, before, stored.value))

    def _tell(self, change: Change[T]) -> None:
        self.revision += 1
        for index in self._indexes:
            index.change(change)
        for callback in tuple(self._subscribers):
            callback(change)


def addresses(pod: Pod) -> tuple[str, ...]:
    """Index pods by the addresses they own now: not finished ones, and none by its node's address."""
    return pod.ips if pod.live and not pod.host_network else ()


def pod_of(assigned: AzureAssignedIdentity) -> tuple[ObjectKey]:
    """Index assigned identities by their pod."""
    return (assigned.pod,)


def selector_of(binding: AzureIdentityBinding) -> tuple[str, ...]:
    """Index bindings by selector, whatever their namespace. An empty one selects nothing."""
    return (binding.selector,) if binding.selector else ()


def selector_in_namespace(binding: AzureIdentityBinding) -> tuple[tuple[str, str], ...]:
    """Index bindings by (namespace, selector), as namespaced mode looks them up."""
    return ((binding.key.namespace, binding.selector),) if binding.selector else ()
