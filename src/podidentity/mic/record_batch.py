"""The record of what MIC assigned, shared by all workers: requests made during one write share the next write."""

import asyncio
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from podidentity.core.model.arm import IdentityId, Target
from podidentity.mic.ports import AssignedByMic, Records


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    target: Target
    add: AbstractSet[IdentityId]
    drop: AbstractSet[IdentityId]


class BatchedRecord:
    """The record. `assigned_by_mic` is what has been written; it is replaced as a whole with each write."""

    def __init__(self, records: Records, assigned_by_mic: AssignedByMic) -> None:
        self._records = records
        self._lock = asyncio.Lock()
        self._waiting: list[_Entry] = []
        self.assigned_by_mic: dict[Target, frozenset[IdentityId]] = dict(assigned_by_mic)

    async def change(
        self, target: Target, *, add: AbstractSet[IdentityId] = frozenset(), drop: AbstractSet[IdentityId] = frozenset()
    ) -> None:
        """Add identities to a target's record and drop others from it; return once that is written.

        Raises KubernetesError. Requests that would have shared the failed write are not lost: their callers write them.
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
        updated = dict(self.assigned_by_mic)
        for entry in entries:
            updated[entry.target] = (updated.get(entry.target, frozenset()) | entry.add) - entry.drop
        updated = {target: identities for target, identities in updated.items() if identities}
        if updated != self.assigned_by_mic:
            await self._records.store(updated)
            self.assigned_by_mic = updated
        self._waiting = [entry for entry in self._waiting if entry not in entries]
