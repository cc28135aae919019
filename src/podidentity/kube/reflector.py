"""Keeps a store equal to the cluster: one list, then a watch that is resumed for ever.

A watch can die unnoticed (a firewall forgets the connection), so one that has sent nothing for `silence_seconds`, not
even a bookmark, is ended and resumed from its last version. The objects are listed again only when the server no longer
knows that version, or refuses it. `confirmed_at` is when the store was last known to follow the cluster, but for what a
namespace changes faster than the daemon handles (`pace`).
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2
import msgspec

from podidentity.core.model.identities import ObjectKey
from podidentity.errors import GoneError, InvalidError, KubernetesError, MalformedObjectError, ThrottledError
from podidentity.kube.answers import error_of, read_status
from podidentity.kube.api import ALL_OBJECTS, Api, Selection
from podidentity.kube.depth import decode_beside
from podidentity.kube.pace import NamespacePace
from podidentity.kube.quota import NamespaceQuota
from podidentity.kube.resources import UNREADABLE, Kind, StoredObject, read_meta
from podidentity.kube.store import Store
from podidentity.timing import LoopTurns

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watching:
    """The time limits and pauses of a reflector.

    silence_seconds: a bookmark comes about every 60 s; NMI does not rely on a store that is unconfirmed for 120 s.
    first_pause_seconds, longest_pause_seconds: pauses after failures double from the first to the longest; each
    is shortened by up to half, or all daemons of a cluster would come back in the same instant.
    turn_bytes: after so many bytes of events the event loop turns; a burst of them is what its others wait for.
    duration_seconds: the server ends each watch after a random time in this range, which spreads watches over servers.
    """

    silence_seconds: float = 90.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 15.0
    turn_bytes: int = 64 * 1024
    duration_seconds: tuple[int, int] = (300, 600)
    jitter: Callable[[], float] = random.random

    def pause_seconds(self, failures: int) -> float:
        """Return the pause after `failures` in a row."""
        longest = min(self.first_pause_seconds * 2.0 ** min(failures - 1, 16), self.longest_pause_seconds)
        return longest * (1 - self.jitter() / 2)

    def watch_seconds(self) -> int:
        """Return how long the server is to keep the next watch open."""
        shortest, longest = self.duration_seconds
        return shortest + int(self.jitter() * (longest - shortest))


class _Event(msgspec.Struct):
    type: str = ""
    object: msgspec.Raw = msgspec.Raw(b"{}")


_EVENT = msgspec.json.Decoder(_Event)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """An object that cannot be read, and why."""

    key: ObjectKey
    message: str


class Reflector(Generic[T]):
    """Fills one `store` with the objects of one kind of `selection`."""

    def __init__(
        self,
        api: Api,
        kind: Kind[T],
        store: Store[T],
        *,
        selection: Selection = ALL_OBJECTS,
        watching: Watching = Watching(),
        on_first_list: Callable[[], None] = lambda: None,
    ) -> None:
        self.kind = kind
        self.store = store
        self.confirmed_at: float | None = None
        """When the store was last known to follow the cluster, by the Api's clock; None before the first list."""
        self.lists = 0
        self.failures = 0
        """Failures in a row; 0 while all is well."""
        self.odd: dict[ObjectKey, str] = {}
        """The messages for objects that cannot be read at present; these are not in the store."""
        self._api = api
        self._selection = selection
        self._watching = watching
        self._on_first_list = on_first_list
        self._version = ""
        self._quota = NamespaceQuota(kind.namespace_limit, str(kind))
        self._pace: NamespacePace[StoredObject[T] | _Unreadable] = NamespacePace(str(kind))

    @property
    def unconfirmed_seconds(self) -> float:
        """How long ago the store was last known to follow the cluster; infinite before the first list."""
        return float("inf") if self.confirmed_at is None else self._api.clock.steady() - self.confirmed_at

    async def run(self) -> None:
        """List and watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_cluster())
            if self.kind.is_paced:
                tasks.create_task(self._handle_waiting())

    async def _follow_cluster(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except KubernetesError as error:
                await self._recover(error)

    async def _handle_waiting(self) -> None:
        """Apply the changes that had to wait, each when it is its namespace's turn."""
        clock = self._api.clock
        while True:
            await clock.sleep(await self._pace.next_pause(clock.steady()))
            while (state := self._pace.pop(clock.steady())) is not None:
                self._apply(state)
                await asyncio.sleep(0)

    async def _list(self) -> None:
        start = self._api.clock.steady()
        quota = NamespaceQuota(self.kind.namespace_limit, str(self.kind))
        objects = await self._api.list(self.kind, self._selection, known_odd=self.odd, quota=quota)
        self._quota = quota
        self.odd = dict(objects.odd)
        self._pace.clear()
        self.store.replace(objects.items)
        self._version = objects.version
        self.lists += 1
        # A consistent list shows a state no older than the start of its request.
        self.confirmed_at = start
        if self.lists == 1:
            self._on_first_list()

    async def _watch(self) -> None:
        """Follow one watch to its end. After silence, as after any other end, the next watch resumes from there."""
        start = self._api.clock.steady()
        async with self._api.watch(
            self.kind,
            self._selection,
            self._version,
            silence_seconds=self._watching.silence_seconds,
            duration_seconds=self._watching.watch_seconds(),
        ) as lines:
            self.confirmed_at = self._api.clock.steady()
            turns = LoopTurns(self._watching.turn_bytes)
            try:
                async for line in lines:
                    await self._follow(line)
                    self.confirmed_at = self._api.clock.steady()
                    self._note_recovery()
                    await turns.count(len(line))
            except httpx2.ReadTimeout:
                _log.info("watch %s: silent for %g s; resuming", self.kind, self._watching.silence_seconds)
            except httpx2.HTTPError as error:
                _log.info("watch %s: cut (%s); resuming", self.kind, str(error) or type(error).__name__)
        if self._api.clock.steady() - start < self._watching.first_pause_seconds:
            # Without a pause, a server or proxy that hangs up at once would make this a busy loop.
            await self._pause(None)
        else:
            self._note_recovery()

    def _note_recovery(self) -> None:
        if self.failures:
            _log.info("watch %s: well again after %d failures", self.kind, self.failures)
            self.failures = 0

    async def _follow(self, line: bytes) -> None:
        """Apply one event to the store."""
        try:
            event = await decode_beside(_EVENT, line)
        except UNREADABLE as error:
            raise InvalidError(f"watch {self.kind}: a line is no event ({error})", status=200) from error
        if event.type == "ERROR":
            status = read_status(event.object)
            raise error_of(f"watch {self.kind}", status.code, status)
        if event.type in ("ADDED", "MODIFIED"):
            self._add(event.object)
        elif event.type == "DELETED":
            self._remove(event.object)
        self._version = read_meta(event.object).resource_version or self._version

    def _remove(self, raw: msgspec.Raw) -> None:
        key = self._key_of(raw)
        self._pace.drop(key)
        self.odd.pop(key, None)
        self.store.remove(key)
        self._quota.give_back(key)

    def _key_of(self, raw: msgspec.Raw) -> ObjectKey:
        """Return the key of an event's object; InvalidError, which leads to a new list, when it has none."""
        key = read_meta(raw).key
        if not key.name:
            raise InvalidError(f"watch {self.kind}: an event of an object that has no name; listing again", status=200)
        return key

    def _add(self, raw: msgspec.Raw) -> None:
        """Read an object that was added or changed; apply it now, or in its namespace's turn."""
        state: StoredObject[T] | _Unreadable
        try:
            state = self.kind.read(raw)
        except MalformedObjectError as error:
            state = _Unreadable(self._key_of(raw), str(error))
        if not self._quota.take(state.key):
            return
        if not self.kind.is_paced or self._pace.take(state.key, state, self._api.clock.steady()):
            self._apply(state)

    def _apply(self, state: "StoredObject[T] | _Unreadable") -> None:
        key = state.key
        if isinstance(state, _Unreadable):
            # Once for each message: a tenant may write the same mistake as often as the API server accepts it.
            level = logging.DEBUG if self.odd.get(key) == state.message else logging.WARNING
            _log.log(level, "watch %s: ignored: %s", self.kind, state.message)
            self.odd[key] = state.message
            # The previous object is no longer true and the present one is unknown: acting on either would be a guess.
            self.store.remove(key)
        else:
            self.odd.pop(key, None)
            self.store.upsert(state)

    async def _recover(self, error: KubernetesError) -> None:
        """Pause; list again afterwards if the server may not know the version that we watch from."""
        has_answer = error.status != 0 and not isinstance(error, ThrottledError)
        if has_answer:
            # Also on a 5xx: after a restore from a backup the server does not know a version as new as ours.
            self._version = ""
        level = logging.WARNING if self.failures == 0 and not isinstance(error, GoneError) else logging.INFO
        _log.log(level, "%s", error)
        await self._pause(error)

    async def _pause(self, error: KubernetesError | None) -> None:
        self.failures += 1
        retry_after_seconds = error.retry_after_seconds if error is not None else None
        await self._api.clock.sleep(max(retry_after_seconds or 0.0, self._watching.pause_seconds(self.failures)))


def describe(reflectors: "tuple[Reflector[Any], ...]", patience_seconds: float) -> tuple[str, ...]:
    """Return, for `/readyz`, one sentence for each kind whose store does not follow the cluster."""
    late = (reflector for reflector in reflectors if not reflector.store.synced)
    stale = (
        reflector
        for reflector in reflectors
        if reflector.store.synced and reflector.unconfirmed_seconds > patience_seconds
    )
    return (
        *(f"{reflector.kind}: not listed yet" for reflector in late),
        *(f"{reflector.kind}: not confirmed for {reflector.unconfirmed_seconds:.0f} s" for reflector in stale),
    )
