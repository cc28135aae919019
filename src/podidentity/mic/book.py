"""The record of what MIC put where, shared by all workers. Who asks while a write is under way shares the next one."""

import asyncio
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from podidentity.core.arm import IdentityId, Target
from podidentity.mic.ports import Put, Records


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    target: Target
    add: AbstractSet[IdentityId]
    drop: AbstractSet[IdentityId]


class Book:
    """What is durable is in `put`."""

    def __init__(self, records: Records, put: Put) -> None:
        self._records = records
        self._lock = asyncio.Lock()
        self._waiting: list[_Entry] = []
        self.put: dict[Target, frozenset[IdentityId]] = dict(put)

    async def change(
        self, target: Target, *, add: AbstractSet[IdentityId] = frozenset(), drop: AbstractSet[IdentityId] = frozenset()
    ) -> None:
        """Note what is being put on, or is no longer on, a target; returns when it is durable.

        Raises KubernetesError; what others asked for at the same time is then still to be written by them.
        """
        entry = _Entry(target, add, drop)
        self._waiting.append(entry)
        try:
            async with self._lock:
                if entry in self._waiting:
                    await self._write(tuple(self._waiting))
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    async def _write(self, entries: tuple[_Entry, ...]) -> None:
        fresh = dict(self.put)
        for entry in entries:
            fresh[entry.target] = (fresh.get(entry.target, frozenset()) | entry.add) - entry.drop
        fresh = {target: identities for target, identities in fresh.items() if identities}
        if fresh != self.put:
            await self._records.store(fresh)
            self.put = fresh
        self._waiting = [one for one in self._waiting if one not in entries]
