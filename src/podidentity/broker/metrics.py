"""What the broker counts, and one audit line for each request for a token.

Labels come from fixed sets: never from what a client wrote. No line has a token.
"""

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from podidentity.bounded import BoundedDict
from podidentity.core.exchange.answers import codes_of
from podidentity.core.exchange.callers import Caller
from podidentity.core.exchange.requests import TokenRequest
from podidentity.core.model.token_bucket import TokenBucket, full_bucket
from podidentity.core.tokens.sources import Source
from podidentity.errors import AzureError
from podidentity.serving.logs import Lines
from podidentity.serving.metrics import PREFIX, REQUEST_BUCKETS_SECONDS, SHORT_BUCKETS_SECONDS, Durations, Tally
from podidentity.timing import Clock

_REFUSALS_AT_ONCE = 200.0
_REFUSAL_SECONDS = 0.05
_ADDRESSES = 4096
_USUAL_NUMBERS = frozenset(
    {7000215, 7000272, 70021, 700016, 700024, 70025, 700211, 700212, 700213, 50027, 501661, 90002, 900612, 1002012}
)
_OK = 200


class Record(NamedTuple):
    """What happened to one request for a token. `door` is the way that it came in."""

    door: str
    address: str
    request: TokenRequest | None
    caller: Caller | None
    status: int
    reason: str
    cached: bool
    trace_id: str


class Metrics:
    """Everything the broker counts, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Durations(
            f"{PREFIX}broker_request_duration_seconds",
            "Time from a request for a token to its answer.",
            ("door", "status_code", "cached"),
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=registry,
        )
        self.exchange_seconds = Histogram(
            f"{PREFIX}broker_exchange_duration_seconds",
            "Time of a call to Entra ID.",
            buckets=SHORT_BUCKETS_SECONDS,
            registry=registry,
        )
        self.exchange_errors = Counter(
            f"{PREFIX}broker_exchange_errors_count",
            "Calls to Entra ID that gave no token, by its error number.",
            ("code",),
            registry=registry,
        )
        self.bugs = Counter(
            f"{PREFIX}broker_internal_errors_count", "Requests answered 500 because of a bug.", registry=registry
        )
        self.connections = Gauge(f"{PREFIX}broker_connections", "Open connections.", registry=registry)
        self.refused_connections = Counter(
            f"{PREFIX}broker_refused_connections_count",
            "Connections that were closed because their address has too many.",
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            f"{PREFIX}broker_certificate_expiry_seconds",
            "When the serving certificate expires, in seconds since 1970.",
            registry=registry,
        )
        self.omitted_lines = 0
        Tally(
            f"{PREFIX}broker_omitted_audit_lines_count",
            "Audit lines of refusals that were left out because one address asked very often.",
            lambda: self.omitted_lines,
            registry,
        )

    def note_call(self, _: Source, seconds: float, error: AzureError | None) -> None:
        """Count a call to Entra ID, and how long it took."""
        self.exchange_seconds.observe(seconds)
        if error is not None:
            self.exchange_errors.labels(_code(error)).inc()


class Audit:
    """Writes down what happened, as a count and a line. Of an address's refusals only so many lines a second."""

    def __init__(self, metrics: Metrics, lines: Lines, clock: Clock) -> None:
        self._metrics = metrics
        self._lines = lines
        self._clock = clock
        self._allowances: BoundedDict[str, TokenBucket] = BoundedDict(_ADDRESSES)

    def write(self, record: Record, seconds: float) -> None:
        """Count and write down one request that took `seconds`."""
        cached = "true" if record.cached else "false"
        self._metrics.requests.labels(record.door, str(record.status), cached).observe(seconds)
        if record.status != _OK and not self._may_tell(record.address):
            self._metrics.omitted_lines += 1
            return
        self._lines.write(self._lines.prepare(_line(record)), seconds * 1000)

    def count_bug(self) -> None:
        """Count a request that is answered 500."""
        self._metrics.bugs.inc()

    def _may_tell(self, address: str) -> bool:
        now = self._clock.steady()
        bucket = self._allowances.get(address) or full_bucket(_REFUSALS_AT_ONCE, _REFUSAL_SECONDS, now)
        if bucket.tokens_at(now) < 1:
            return False
        self._allowances[address] = bucket.take(now)
        return True


def _code(error: AzureError) -> str:
    """Return Entra ID's number if it is a usual one: a label has few values."""
    number = next((number for number in codes_of(error) if number in _USUAL_NUMBERS), None)
    if number is not None:
        return f"AADSTS{number}"
    return str(error.status) if error.status else "no answer"


def _line(record: Record) -> dict[str, str | int]:
    line: dict[str, str | int] = {"door": record.door, "peer": record.address, "status": record.status}
    if record.caller is not None:
        caller = record.caller
        line |= {"namespace": caller.namespace, "service_account": caller.service_account}
        line |= {"pod": caller.pod, "pod_uid": caller.pod_uid, "node": caller.node}
    if record.request is not None:
        line |= {"client_id": record.request.client_id, "resource": record.request.scope.removesuffix("/.default")}
    line["cached"] = "true" if record.cached else "false"
    if record.trace_id:
        line["trace_id"] = record.trace_id
    if record.reason:
        line["why"] = record.reason
    return line
