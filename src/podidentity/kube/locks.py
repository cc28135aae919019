"""The two objects that say who leads: upstream's annotation on an Endpoints object, and a Lease of the same name.

Each knows how to read and write one `Record`, in client-go's wire format, so that upstream's MIC and ours respect each
other. When to write is decided by `election`.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from podidentity.core.identities import ObjectKey
from podidentity.errors import NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import ENDPOINTS, LEASES

ANNOTATION = "control-plane.alpha.kubernetes.io/leader"


@dataclass(frozen=True, slots=True)
class Record:
    """Who leads, for how long without a renewal, since when. Times are seconds since 1970 by the holder's clock."""

    holder: str = ""
    duration_seconds: int = 0
    acquired_at: float = 0.0
    renewed_at: float = 0.0
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A record as it is stored. `stamp` differs whenever anything was written; `whole` is the object around it."""

    record: Record
    stamp: str
    whole: dict[str, Any]


class Lock(Protocol):
    """One object that carries a record."""

    async def read(self) -> Held | None:
        """Return what is stored; None when there is no such object."""
        ...

    async def write(self, record: Record, before: Held | None) -> Held:
        """Store `record` in place of `before`; ConflictError when somebody else wrote since."""
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

    async def read(self) -> Held | None:
        """Return what is stored; None when there is no such object."""
        try:
            return _from_annotation(await self._api.get(ENDPOINTS, self._key))
        except NotFoundError:
            return None

    async def write(self, record: Record, before: Held | None) -> Held:
        """Store `record`, leaving everything else in the object as it is."""
        wire = _WireRecord(
            record.holder,
            record.duration_seconds,
            _time(record.acquired_at),
            _time(record.renewed_at),
            record.transitions,
        )
        whole = _copy(before, self._key)
        annotations = whole["metadata"].get("annotations") or {}
        whole["metadata"]["annotations"] = {**annotations, ANNOTATION: msgspec.json.encode(wire).decode()}
        written = self._api.create(ENDPOINTS, whole) if before is None else self._api.replace(ENDPOINTS, whole)
        return _from_annotation(await written)


class LeaseLock:
    """A Lease, which today's tools show and which upstream's MIC does not know."""

    def __init__(self, api: Api, key: ObjectKey) -> None:
        self._api = api
        self._key = key

    def __str__(self) -> str:
        return f"Lease {self._key}"

    async def read(self) -> Held | None:
        """Return what is stored; None when there is no such object."""
        try:
            return _from_lease(await self._api.get(LEASES, self._key))
        except NotFoundError:
            return None

    async def write(self, record: Record, before: Held | None) -> Held:
        """Store `record`, leaving everything else in the object as it is."""
        whole = _copy(before, self._key)
        whole["spec"] = {
            **(whole.get("spec") or {}),
            "holderIdentity": record.holder,
            "leaseDurationSeconds": record.duration_seconds,
            "acquireTime": _micro_time(record.acquired_at),
            "renewTime": _micro_time(record.renewed_at),
            "leaseTransitions": record.transitions,
        }
        written = self._api.create(LEASES, whole) if before is None else self._api.replace(LEASES, whole)
        return _from_lease(await written)


def released(record: Record, now: float) -> Record:
    """Return the record that lets anybody else take over at once, as client-go writes it."""
    return replace(record, holder="", duration_seconds=1, acquired_at=now, renewed_at=now)


def _from_annotation(whole: dict[str, Any]) -> Held:
    text = (whole["metadata"].get("annotations") or {}).get(ANNOTATION, "")
    try:
        wire = msgspec.json.decode(text.encode() or b"{}", type=_WireRecord)
    except msgspec.MsgspecError:
        wire = _WireRecord()  # nobody can renew what nobody can read: free once it has not changed for a while
    record = Record(
        wire.holder_identity,
        wire.lease_duration_seconds,
        _seconds(wire.acquire_time),
        _seconds(wire.renew_time),
        wire.leader_transitions,
    )
    return Held(record, text, whole)


def _from_lease(whole: dict[str, Any]) -> Held:
    spec = whole.get("spec") or {}
    record = Record(
        spec.get("holderIdentity") or "",
        spec.get("leaseDurationSeconds") or 0,
        _seconds(spec.get("acquireTime")),
        _seconds(spec.get("renewTime")),
        spec.get("leaseTransitions") or 0,
    )
    return Held(record, str(spec), whole)


def _copy(before: Held | None, key: ObjectKey) -> dict[str, Any]:
    whole = {} if before is None else dict(before.whole)
    whole["metadata"] = dict(whole.get("metadata") or {"namespace": key.namespace, "name": key.name})
    return whole


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _micro_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _seconds(text: str | None) -> float:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return 0.0
