"""Writes Kubernetes Events about users' objects, which `kubectl describe` shows.

`record` returns at once and never fails: the same statement again raises its count, an object with too many statements
is silenced for a while, and when the queue is full, statements are dropped.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from podidentity.bounded import BoundedDict
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.token_bucket import TokenBucket, full_bucket
from podidentity.errors import ForbiddenError, KubernetesError, NotFoundError, TerminatingError
from podidentity.kube.api import Api
from podidentity.kube.resources import EVENTS, Kind
from podidentity.timing import render_rfc3339

COMPONENT = "aadpodidentity.k8s.io"
"""Upstream's name for the source of its events."""

QUEUE_LENGTH = 1000
SERIES_REMEMBERED = 4096  # as in client-go: about as many as a busy cluster has in the hour that events live
BURST = 25  # statements about one object before it is silenced, and
REFILL_SECONDS = 300.0  # until one more statement is allowed; both as in client-go's spam filter
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
    def of_kind(cls, kind: Kind[Any], key: ObjectKey, uid: str = "") -> "Subject":
        """Return the subject for an object of a kind."""
        return cls(kind.api_version, kind.name, key, uid)

    @property
    def namespace(self) -> str:
        """The namespace of its events: its own; `default` for cluster-scoped objects."""
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
    event_name: str = ""
    queued: bool = False


class Recorder:
    """Queues events; `run` writes them one after the other."""

    def __init__(self, api: Api, host: str = "", wall_clock: Callable[[], float] = time.time) -> None:
        self.drop_count = 0
        """The number of statements that were silenced, or dropped because the queue was full."""
        self._api = api
        self._host = host
        self._wall_clock = wall_clock
        self._series: BoundedDict[Statement, _Series] = BoundedDict(SERIES_REMEMBERED)
        self._allowances: BoundedDict[tuple[Subject, str], TokenBucket] = BoundedDict(SERIES_REMEMBERED)
        self._queue: deque[_Series] = deque()
        self._wakeup = asyncio.Event()
        self._held_off: dict[str, float] = {}
        self._warned = False

    def record(
        self, subject: Subject, kind: Literal["Normal", "Warning"], reason: str, message: str, cause: str = ""
    ) -> None:
        """Queue an event about `subject`: `reason` is a short word for programs, `message` a sentence for people.

        `cause` is the namespace that caused it, when that is another one: it has an allowance of its own and cannot use
        up that of the object's owner.
        """
        if not self._may_speak(subject, cause):
            self.drop_count += 1
            return
        now = self._wall_clock()
        statement = Statement(subject, kind, reason, message[:MESSAGE_LIMIT])
        series = self._series.get(statement) or _Series(statement, now, now)
        self._series[statement] = series
        series.count += 1
        series.last_at = now
        self._enqueue(series)

    async def run(self) -> None:
        """Write queued events until cancelled."""
        while True:
            await self._wakeup.wait()
            while self._queue:
                series = self._queue.popleft()
                series.queued = False
                await self._write(series)
            self._wakeup.clear()

    def _enqueue(self, series: _Series) -> None:
        if series.queued:
            return
        if len(self._queue) >= QUEUE_LENGTH:
            self.drop_count += 1
            return
        series.queued = True
        self._queue.append(series)
        self._wakeup.set()

    def _may_speak(self, subject: Subject, cause: str) -> bool:
        now = self._api.clock.steady()
        allowance = self._allowances.get((subject, cause)) or full_bucket(BURST, REFILL_SECONDS, now)
        may_speak = allowance.tokens_at(now) >= 1
        self._allowances[subject, cause] = allowance.take(now) if may_speak else allowance
        return may_speak

    async def _write(self, series: _Series) -> None:
        namespace = series.statement.subject.namespace
        if self._api.clock.steady() < self._held_off.get(namespace, float("-inf")):
            return
        try:
            if not (series.event_name and await self._raise_count(series)):
                await self._create(series)
        except TerminatingError as error:
            self._held_off[namespace] = self._api.clock.steady() + HOLD_OFF_SECONDS
            _log.debug("an event was lost: %s", error)
        except ForbiddenError as error:
            self._held_off[namespace] = self._api.clock.steady() + HOLD_OFF_SECONDS
            _log.log(logging.DEBUG if self._warned else logging.WARNING, "events are not written: %s", error)
            self._warned = True
        except KubernetesError as error:
            _log.info("an event was lost: %s", error)

    async def _raise_count(self, series: _Series) -> bool:
        """Raise the count of the event that was written; return False when that has expired."""
        key = ObjectKey(series.statement.subject.namespace, series.event_name)
        try:
            await self._api.patch(EVENTS, key, {"count": series.count, "lastTimestamp": render_rfc3339(series.last_at)})
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
                "firstTimestamp": render_rfc3339(series.first_at),
                "lastTimestamp": render_rfc3339(series.last_at),
                "count": series.count,
            },
        )
        series.event_name = name
