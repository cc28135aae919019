"""Tells users through Kubernetes Events what happened to their objects (`kubectl describe` shows them).

`record` returns at once and never fails: the same statement again raises a count, an object that talks too much is
silenced for a while, and a queue that is full drops. Used by MIC for bindings and assigned identities and by NMI; what
to say is decided there.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from podidentity.core.identities import ObjectKey
from podidentity.errors import ForbiddenError, KubernetesError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import EVENTS, Kind

COMPONENT = "aadpodidentity.k8s.io"
"""Upstream's name for the source of its events."""

QUEUE_LENGTH = 1000
SERIES_REMEMBERED = 4096  # as client-go: about as many as a busy cluster sees in the hour that events live
BURST = 25  # statements about one object before it is silenced, and
REFILL_SECONDS = 300.0  # how long until it may speak once more; both as client-go's spam filter has them
HOLD_OFF_SECONDS = 600.0  # after a refusal, before the next try in that namespace
MESSAGE_LIMIT = 1024  # what the newer events API allows
_NAME_LIMIT = 253 - 17

_log = logging.getLogger(__name__)


class Subject(NamedTuple):
    """The object that an event is about."""

    api_version: str
    kind: str
    key: ObjectKey
    uid: str = ""

    @classmethod
    def of(cls, kind: Kind[Any], key: ObjectKey, uid: str = "") -> "Subject":
        """Name an object of a kind."""
        return cls(kind.api_version, kind.name, key, uid)

    @property
    def namespace(self) -> str:
        """Where its events live: its own namespace; `default` for cluster-scoped objects."""
        return self.key.namespace or "default"


class Statement(NamedTuple):
    """What an event says. The same statement again is the same event with a higher count."""

    subject: Subject
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(slots=True)
class _Series:
    statement: Statement
    first_at: float
    last_at: float
    count: int = 0
    written_as: str = ""
    queued: bool = False


@dataclass(slots=True)
class _Allowance:
    """How many more statements about one object: refilled slowly."""

    left: float
    at: float

    def take(self, now: float) -> bool:
        self.left = min(self.left + (now - self.at) / REFILL_SECONDS, BURST)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Recorder:
    """Queues events and writes them one after the other while `run` runs."""

    def __init__(self, api: Api, host: str = "", wall_clock: Callable[[], float] = time.time) -> None:
        self.dropped = 0
        """Statements that were silenced or found the queue full."""
        self._api = api
        self._host = host
        self._wall_clock = wall_clock
        self._series: OrderedDict[Statement, _Series] = OrderedDict()
        self._allowances: OrderedDict[Subject, _Allowance] = OrderedDict()
        self._queue: deque[_Series] = deque()
        self._filled = asyncio.Event()
        self._held_off: dict[str, float] = {}
        self._warned = False

    def record(self, subject: Subject, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Say something about `subject`; `reason` is a short word for programs, `message` a sentence for people."""
        if not self._may_speak(subject):
            self.dropped += 1
            return
        now = self._wall_clock()
        statement = Statement(subject, kind, reason, message[:MESSAGE_LIMIT])
        series = self._series.get(statement)
        if series is None:
            series = self._series[statement] = _Series(statement, now, now)
        self._series.move_to_end(statement)
        if len(self._series) > SERIES_REMEMBERED:
            self._series.popitem(last=False)
        series.count += 1
        series.last_at = now
        self._enqueue(series)

    async def run(self) -> None:
        """Write what is queued until cancelled."""
        while True:
            await self._filled.wait()
            while self._queue:
                series = self._queue.popleft()
                series.queued = False
                await self._write(series)
            self._filled.clear()

    def _enqueue(self, series: _Series) -> None:
        if series.queued:
            return
        if len(self._queue) >= QUEUE_LENGTH:
            self.dropped += 1
            return
        series.queued = True
        self._queue.append(series)
        self._filled.set()

    def _may_speak(self, subject: Subject) -> bool:
        now = self._api.clock.now()
        allowance = self._allowances.get(subject)
        if allowance is None:
            allowance = self._allowances[subject] = _Allowance(BURST, now)
        self._allowances.move_to_end(subject)
        if len(self._allowances) > SERIES_REMEMBERED:
            self._allowances.popitem(last=False)
        return allowance.take(now)

    async def _write(self, series: _Series) -> None:
        namespace = series.statement.subject.namespace
        if self._api.clock.now() < self._held_off.get(namespace, float("-inf")):
            return
        try:
            if not (series.written_as and await self._raise_count(series)):
                await self._create(series)
        except ForbiddenError as error:
            # By namespace, because one that is being deleted refuses new events in the same way as a role does.
            self._held_off[namespace] = self._api.clock.now() + HOLD_OFF_SECONDS
            _log.log(logging.DEBUG if self._warned else logging.WARNING, "events are not written: %s", error)
            self._warned = True
        except KubernetesError as error:
            _log.info("an event was lost: %s", error)

    async def _raise_count(self, series: _Series) -> bool:
        """Update the event that says it already; False when it has expired."""
        key = ObjectKey(series.statement.subject.namespace, series.written_as)
        try:
            await self._api.patch(EVENTS, key, {"count": series.count, "lastTimestamp": _time(series.last_at)})
        except NotFoundError:
            series.count, series.first_at = 1, series.last_at
            return False
        return True

    async def _create(self, series: _Series) -> None:
        subject = series.statement.subject
        name = f"{subject.key.name[:_NAME_LIMIT].rstrip('.-')}.{secrets.token_hex(8)}"
        await self._api.create(
            EVENTS,
            {
                "metadata": {"name": name, "namespace": subject.namespace},
                "involvedObject": {
                    "apiVersion": subject.api_version,
                    "kind": subject.kind,
                    "namespace": subject.key.namespace,
                    "name": subject.key.name,
                    "uid": subject.uid,
                },
                "type": series.statement.type,
                "reason": series.statement.reason,
                "message": series.statement.message,
                "source": {"component": COMPONENT, "host": self._host},
                "reportingComponent": COMPONENT,
                "reportingInstance": self._host,
                "firstTimestamp": _time(series.first_at),
                "lastTimestamp": _time(series.last_at),
                "count": series.count,
            },
        )
        series.written_as = name


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
