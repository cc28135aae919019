"""Keeps a store equal to the cluster: one list, then a watch that is resumed for ever.

A watch can die without a word (a firewall forgets the connection), so one that is silent for `silence_seconds`, not
even a bookmark, is dropped and resumed from the last version seen. Lists again only when the server no longer knows
that version, or refuses it. `confirmed_at` says when the store was last known to follow the cluster. One task each,
started by `daemon.py`; ends only when it is cancelled.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx2
import msgspec

from podidentity.core.identities import ObjectKey  # noqa: TC001  # one style of import for values
from podidentity.errors import GoneError, InvalidError, KubernetesError, MalformedObjectError, ThrottledError
from podidentity.kube.answers import error_of, read_status
from podidentity.kube.api import EVERYTHING, Api, Selection
from podidentity.kube.resources import Kind, read_meta
from podidentity.kube.store import Store

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watching:
    """How patient a reflector is.

    silence_seconds: a bookmark comes about every 60 s; NMI stops trusting a store after 120 s without confirmation.
    first_pause_seconds, longest_pause_seconds: pauses after failures double from the one to the other; each is
    shortened by up to half, or a whole cluster's daemons would come back in the same instant.
    duration_seconds: the server ends each watch after a random time in this range, which spreads watches over servers.
    """

    silence_seconds: float = 90.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 15.0
    duration_seconds: tuple[int, int] = (300, 600)
    jitter: Callable[[], float] = random.random

    def pause_seconds(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row."""
        longest = min(self.first_pause_seconds * 2.0 ** min(failures - 1, 16), self.longest_pause_seconds)
        return longest * (1 - self.jitter() / 2)

    def watch_seconds(self) -> int:
        """Return how long the server shall keep the next watch open."""
        shortest, longest = self.duration_seconds
        return shortest + int(self.jitter() * (longest - shortest))


class _Event(msgspec.Struct):
    type: str = ""
    object: msgspec.Raw = msgspec.Raw(b"{}")


_EVENT = msgspec.json.Decoder(_Event)


class Reflector(Generic[T]):
    """Fills one `store` with the objects of one kind that `where` selects."""

    def __init__(
        self,
        api: Api,
        kind: Kind[T],
        store: Store[T],
        *,
        where: Selection = EVERYTHING,
        watching: Watching = Watching(),
        on_first_list: Callable[[], None] = lambda: None,
    ) -> None:
        self.kind = kind
        self.store = store
        self.confirmed_at: float | None = None
        """When the server last showed that it sends us changes, by the Api's clock; None before the first list."""
        self.lists = 0
        self.failures = 0
        """Failures in a row; 0 while all is well."""
        self.odd: dict[ObjectKey, str] = {}
        """The objects that cannot be read at present, and why; they are not in the store."""
        self._api = api
        self._where = where
        self._watching = watching
        self._on_first_list = on_first_list
        self._version = ""

    @property
    def unconfirmed_seconds(self) -> float:
        """For how long nothing has shown that the store follows the cluster; infinite before the first list."""
        return float("inf") if self.confirmed_at is None else self._api.clock.now() - self.confirmed_at

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except KubernetesError as error:
                await self._recover(error)

    async def _list(self) -> None:
        started = self._api.clock.now()
        listed = await self._api.list(self.kind, self._where)
        self.odd = dict(listed.odd)
        self.store.replace(listed.items)
        self._version = listed.version
        self.lists += 1
        # What a consistent list shows was true when it began, at the earliest.
        self.confirmed_at = started
        if self.lists == 1:
            self._on_first_list()

    async def _watch(self) -> None:
        """Follow one watch to its end. Silence is an end like any other: the next watch goes on from there."""
        began = self._api.clock.now()
        async with self._api.watch(
            self.kind,
            self._where,
            self._version,
            silence_seconds=self._watching.silence_seconds,
            duration_seconds=self._watching.watch_seconds(),
        ) as lines:
            self.confirmed_at = self._api.clock.now()
            try:
                async for line in lines:
                    self._follow(line)
                    self.confirmed_at = self._api.clock.now()
                    self._recovered()
            except httpx2.ReadTimeout:
                _log.info("watch %s: silent for %g s; resuming", self.kind, self._watching.silence_seconds)
            except httpx2.HTTPError as error:
                _log.info("watch %s: cut (%s); resuming", self.kind, str(error) or type(error).__name__)
        if self._api.clock.now() - began < self._watching.first_pause_seconds:
            # A server or proxy that hangs up at once must not be asked in a busy loop.
            await self._pause(None)
        else:
            self._recovered()

    def _recovered(self) -> None:
        if self.failures:
            _log.info("watch %s: well again after %d failures", self.kind, self.failures)
            self.failures = 0

    def _follow(self, line: bytes) -> None:
        """Take over one event."""
        try:
            event = _EVENT.decode(line)
        except msgspec.MsgspecError as error:
            raise InvalidError(f"watch {self.kind}: a line is no event ({error})", status=200) from error
        if event.type == "ERROR":
            status = read_status(event.object)
            raise error_of(f"watch {self.kind}", status.code, status)
        if event.type in ("ADDED", "MODIFIED"):
            self._put(event.object)
        elif event.type == "DELETED":
            key = read_meta(event.object).key
            self.odd.pop(key, None)
            self.store.remove(key)
        self._version = read_meta(event.object).resource_version or self._version

    def _put(self, raw: msgspec.Raw) -> None:
        try:
            stored = self.kind.read(raw)
        except MalformedObjectError as error:
            key = read_meta(raw).key
            _log.warning("watch %s: ignored: %s", self.kind, error)
            self.odd[key] = str(error)
            # What it was before is no longer true, what it is now is unknown: to act on either would be to guess.
            self.store.remove(key)
        else:
            self.odd.pop(stored.key, None)
            self.store.put(stored)

    async def _recover(self, error: KubernetesError) -> None:
        """Wait, after deciding whether the version that we watch from is still good."""
        answered = error.status != 0 and not isinstance(error, ThrottledError)
        if answered:
            # Also on a 5xx: after a restore from backup the server knows no version as new as ours, for ever.
            self._version = ""
        level = logging.WARNING if self.failures == 0 and not isinstance(error, GoneError) else logging.INFO
        _log.log(level, "%s", error)
        await self._pause(error)

    async def _pause(self, error: KubernetesError | None) -> None:
        self.failures += 1
        wished = error.retry_after_seconds if error is not None else None
        await self._api.clock.sleep(max(wished or 0.0, self._watching.pause_seconds(self.failures)))


def describe(reflectors: "tuple[Reflector[Any], ...]", patience_seconds: float) -> tuple[str, ...]:
    """Say, for `/readyz`, what is not in step: one sentence for each such kind, nothing when all is well."""
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
