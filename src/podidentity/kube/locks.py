"""Reads and writes the two records of the leader: an annotation on an Endpoints object, and a Lease.

Both are in client-go's wire format, so that upstream's MIC and ours respect each other.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from podidentity.core.model.identities import ObjectKey
from podidentity.errors import NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import ENDPOINTS, LEASES
from podidentity.timing import parse_rfc3339, render_rfc3339

ANNOTATION = "control-plane.alpha.kubernetes.io/leader"


@dataclass(frozen=True, slots=True)
class LockRecord:
    """Who leads, since when, and for how long without a renewal. Times are seconds since 1970 by the holder's clock."""

    holder: str = ""
    duration_seconds: int = 0
    acquired_at: float = 0.0
    renewed_at: float = 0.0
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it is stored. `stamp` differs after each write; `document` is the whole object."""

    record: LockRecord
    stamp: str
    document: dict[str, Any]


class Lock(Protocol):
    """One object that carries a record."""

    async def read(self) -> StoredRecord | None:
        """Return the stored record; None when there is no such object."""
        ...

    async def write(self, record: LockRecord, previous: StoredRecord | None) -> StoredRecord:
        """Store `record` in place of `previous` and return it; ConflictError when it was changed since."""
        ...


class _WireRecord(msgspec.Struct, rename="camel"):
    """The annotation's text: k8s.io/client-go/tools/leaderelection/resourcelock, LeaderElectionRecord."""

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: str | None = None
    renew_time: str | None = None
    leader_transitions: int = 0


class EndpointsLock:
    """The annotation on an Endpoints object, which upstream's MIC uses."""

    def __init__(self, api: Api, key: ObjectKey) -> None:
        self._api = api
        self._key = key

    def __str__(self) -> str:
        return f"Endpoints {self._key}"

    async def read(self) -> StoredRecord | None:
        """Return the stored record; None when there is no such object."""
        try:
            return _from_annotation(await self._api.get(ENDPOINTS, self._key))
        except NotFoundError:
            return None

    async def write(self, record: LockRecord, previous: StoredRecord | None) -> StoredRecord:
        """Store `record`, leaving everything else in the object as it is. Raises KubernetesError."""
        wire = _WireRecord(
            record.holder,
            record.duration_seconds,
            render_rfc3339(record.acquired_at),
            render_rfc3339(record.renewed_at),
            record.transitions,
        )
        document = _copy(previous, self._key)
        annotations = document["metadata"].get("annotations") or {}
        document["metadata"]["annotations"] = {**annotations, ANNOTATION: msgspec.json.encode(wire).decode()}
        request = self._api.create(ENDPOINTS, document) if previous is None else self._api.replace(ENDPOINTS, document)
        return _from_annotation(await request)


class LeaseLock:
    """A Lease, which today's tools show and which upstream's MIC does not know."""

    def __init__(self, api: Api, key: ObjectKey) -> None:
        self._api = api
        self._key = key

    def __str__(self) -> str:
        return f"Lease {self._key}"

    async def read(self) -> StoredRecord | None:
        """Return the stored record; None when there is no such object."""
        try:
            return _from_lease(await self._api.get(LEASES, self._key))
        except NotFoundError:
            return None

    async def write(self, record: LockRecord, previous: StoredRecord | None) -> StoredRecord:
        """Store `record`, leaving everything else in the object as it is. Raises KubernetesError."""
        document = _copy(previous, self._key)
        document["spec"] = {
            **(document.get("spec") or {}),
            "holderIdentity": record.holder,
            "leaseDurationSeconds": record.duration_seconds,
            "acquireTime": render_rfc3339(record.acquired_at, micro=True),
            "renewTime": render_rfc3339(record.renewed_at, micro=True),
            "leaseTransitions": record.transitions,
        }
        request = self._api.create(LEASES, document) if previous is None else self._api.replace(LEASES, document)
        return _from_lease(await request)


def vacant_record(record: LockRecord, now: float) -> LockRecord:
    """Return a record without a holder, which lets another candidate take over at once, as client-go writes it."""
    return replace(record, holder="", duration_seconds=1, acquired_at=now, renewed_at=now)


def _from_annotation(document: dict[str, Any]) -> StoredRecord:
    text = (document["metadata"].get("annotations") or {}).get(ANNOTATION, "")
    try:
        wire = msgspec.json.decode(text.encode() or b"{}", type=_WireRecord)
    except (msgspec.MsgspecError, RecursionError):
        # No candidate can renew an unreadable record: it is free once it has not changed for a while.
        wire = _WireRecord()
    record = LockRecord(
        wire.holder_identity,
        wire.lease_duration_seconds,
        _seconds(wire.acquire_time),
        _seconds(wire.renew_time),
        wire.leader_transitions,
    )
    return StoredRecord(record, text, document)


def _from_lease(document: dict[str, Any]) -> StoredRecord:
    spec = document.get("spec") or {}
    record = LockRecord(
        spec.get("holderIdentity") or "",
        spec.get("leaseDurationSeconds") or 0,
        _seconds(spec.get("acquireTime")),
        _seconds(spec.get("renewTime")),
        spec.get("leaseTransitions") or 0,
    )
    return StoredRecord(record, str(spec), document)


def _copy(previous: StoredRecord | None, key: ObjectKey) -> dict[str, Any]:
    document = {} if previous is None else dict(previous.document)
    document["metadata"] = dict(document.get("metadata") or {"namespace": key.namespace, "name": key.name})
    return document


def _seconds(text: str | None) -> float:
    return parse_rfc3339(text or "") or 0.0
