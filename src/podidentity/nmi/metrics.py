"""What NMI reports of its work: metrics under upstream's names, and one audit line for each token request.

Labels come from fixed sets or from the cluster's own namespaces, never from what a client wrote. One pod writes so many
audit lines a second and no more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from podidentity.bounded import BoundedDict
from podidentity.core.model import redact
from podidentity.core.model.federation import TOKEN_FILE_PATH
from podidentity.core.model.token_bucket import full_bucket
from podidentity.core.tokens.imds import (
    TOKEN_PATH,
    Forward,
    HostTokenRequest,
    ParsedRequest,
    TokenFileRequest,
    TokenRequest,
)
from podidentity.core.tokens.sources import BrokerIdentity, ManagedIdentity, ProvenIdentity, Source
from podidentity.errors import AzureError
from podidentity.nmi.answers import Answer
from podidentity.serving.logs import Lines
from podidentity.serving.metrics import PREFIX, REQUEST_BUCKETS_SECONDS, SHORT_BUCKETS_SECONDS, Cell, Durations, Tally

now = perf_counter
"""Seconds of a clock that measures durations."""

HOST_PATH = "/host/token"
_OTHER = "other"
_HOSTS = 64
_NOTES = 4096
_PODS = 4096
_SHOWN_CHARACTERS = 128
_OK = 200
LINES_AT_ONCE = 500
LINE_SECONDS = 0.05
"""Audit lines that one address may cause at once, and after how many seconds each it may cause another.

An SDK caches its token: the lines of a pod that asks more often for long say nothing new.
"""


class Metrics:
    """Everything NMI counts, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.operations = Durations(
            f"{PREFIX}nmi_operations_duration_seconds",
            "Time from a request to its answer.",
            ("operation_type", "status_code", "namespace", "resource"),
            buckets=REQUEST_BUCKETS_SECONDS,
            registry=registry,
        )
        self.source_seconds = Histogram(
            f"{PREFIX}imds_operations_duration_seconds",
            "Time of a call to IMDS or Entra ID.",
            ("operation_type",),
            buckets=SHORT_BUCKETS_SECONDS,
            registry=registry,
        )
        self.source_errors = Counter(
            f"{PREFIX}imds_operations_errors_count",
            "Calls to IMDS or Entra ID that gave no token.",
            ("operation_type",),
            registry=registry,
        )
        self.api_errors = Counter(
            f"{PREFIX}kubernetes_api_operations_errors_count",
            "Calls to the Kubernetes API that failed.",
            ("operation_type",),
            registry=registry,
        )
        self.repairs = Counter(
            f"{PREFIX}nmi_redirect_repairs_count", "How often the redirect was found changed.", registry=registry
        )
        self.is_intercepting, self.proven_pods, self.unproven_pods = _host_gauges(registry)
        self.direct = Counter(
            f"{PREFIX}nmi_direct_connections_count",
            "Connections refused because they were dialled directly.",
            registry=registry,
        )
        self.bugs = Counter(
            f"{PREFIX}nmi_internal_errors_count", "Requests answered 500 because of a bug.", registry=registry
        )
        self.omitted_lines = 0
        Tally(
            f"{PREFIX}nmi_omitted_audit_lines_count",
            "Audit lines that were left out because one pod asked very often.",
            lambda: self.omitted_lines,
            registry,
        )
        self.connections = Gauge(f"{PREFIX}nmi_connections", "Open connections of pods.", registry=registry)
        self.waiting = Gauge(f"{PREFIX}nmi_waiting_requests", "Requests waiting for an identity.", registry=registry)

    def note_call(self, source: Source, seconds: float, error: AzureError | None) -> None:
        """Count a call for a token, and how long it took."""
        kind = source_kind(source)
        self.source_seconds.labels(kind).observe(seconds)
        if error is not None:
            self.source_errors.labels(kind).inc()

    def api_failed(self, operation: str) -> None:
        """Count a request to the Kubernetes API that failed."""
        self.api_errors.labels(operation).inc()


def _host_gauges(registry: CollectorRegistry) -> tuple[Gauge, Gauge, Gauge]:
    """Return the gauges of this node's interception, which are read whenever the page is."""
    return (
        Gauge(f"{PREFIX}nmi_redirect_stands", "1 while guard, redirect and listener are all there.", registry=registry),
        Gauge(
            f"{PREFIX}nmi_proven_pods",
            "Pods of whom it is known by which interface or port they ask.",
            registry=registry,
        ),
        Gauge(
            f"{PREFIX}nmi_unproven_pods",
            "Pods on bridges of whom it is not known which port is theirs.",
            registry=registry,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Note:
    """What equal answers have in common: where they are counted, and their audit line but for the time it took."""

    address: str
    cell: Cell
    line: bytes | None
    allowance: "_Allowance"


class _Allowance:
    """How many audit lines an address may still cause, and how many were left out since its last one.

    Lines are taken from the bucket all at once, and again when none are left: to ask it for each would cost more than
    the rest of an answer's metrics.
    """

    __slots__ = ("_bucket", "_lines", "omitted")

    def __init__(self) -> None:
        self._bucket = full_bucket(LINES_AT_ONCE, LINE_SECONDS, now())
        self._lines = 0
        self.omitted = 0

    def take(self) -> bool:
        """Take one line; return whether there was one."""
        if not self._lines:
            moment = now()
            self._lines = int(self._bucket.tokens_at(moment))
            if not self._lines:
                self.omitted += 1
                return False
            self._bucket = self._bucket.take(moment, self._lines)
        self._lines -= 1
        return True


FirstTokenHook = Callable[[Answer], None]


class Observer:
    """Counts and logs each answer. What equal answers have in common is made once.

    `on_first_token` is called with the answer of each pod's first token by a binding.
    """

    def __init__(self, metrics: Metrics, lines: Lines, on_first_token: FirstTokenHook = lambda _: None) -> None:
        self.metrics = metrics
        self._lines = lines
        self._on_first_token = on_first_token
        self._uids_served: BoundedDict[str, None] = BoundedDict(_PODS)
        self._notes: dict[tuple[object, ...], _Note] = {}
        self._hosts: dict[str, str] = {}
        self._allowances: BoundedDict[str, _Allowance] = BoundedDict(_PODS)

    def note(self, request: ParsedRequest, address: str, answer: Answer, seconds: float) -> None:
        """Note one answer, `seconds` after its request."""
        note = answer.note
        if not isinstance(note, _Note) or note.address != address:  # a pod may have two
            note = answer.note = self._note_of(request, address, answer)
        note.cell.observe(seconds)
        if note.line is not None:
            self._write(note.line, note.allowance, address, seconds)

    def _write(self, line: bytes, allowance: _Allowance, address: str, seconds: float) -> None:
        """Write an audit line, unless its address has had too many; the next line says how many were left out."""
        if not allowance.take():
            self.metrics.omitted_lines += 1
            return
        if allowance.omitted:
            omitted: dict[str, str | int] = {"msg": "lines left out", "address": address, "count": allowance.omitted}
            allowance.omitted = 0
            self._lines.write(self._lines.prepare(omitted), 0.0)
        self._lines.write(line, seconds * 1000)

    def _allowance(self, address: str) -> _Allowance:
        allowance = self._allowances.get(address)
        if allowance is None:
            allowance = self._allowances[address] = _Allowance()
        return allowance

    def _note_of(self, request: ParsedRequest, address: str, answer: Answer) -> _Note:
        pod, identity = answer.pod, answer.identity
        identity_key = (identity.key, identity.client_id) if identity else None  # several may share a source
        resource: object = request.resource if isinstance(request, TokenRequest) else request
        if isinstance(request, TokenFileRequest):  # without the proof that is in it
            resource = TokenFileRequest, request.token_request.resource
        uid = pod.uid if pod else ""
        key = (answer.status, uid, address, identity_key, answer.source, resource, answer.cached, answer.reason)
        note = self._notes.get(key)
        if note is None:
            if len(self._notes) >= _NOTES:
                self._notes.clear()
            note = self._notes[key] = self._make_note(request, address, answer)
        return note

    def _make_note(self, request: ParsedRequest, address: str, answer: Answer) -> _Note:
        token_request = request.token_request if isinstance(request, HostTokenRequest | TokenFileRequest) else request
        namespace = answer.pod.key.namespace if answer.pod else ""
        if not isinstance(token_request, TokenRequest):
            cell = self.metrics.operations.labels(_operation(request), str(answer.status), namespace, "")
            return _Note(address, cell, None, self._allowance(address))
        host = self._host(token_request.resource, answer.status)
        cell = self.metrics.operations.labels(_operation(request), str(answer.status), namespace, host)
        if answer.status == _OK:
            self._note_served(answer)
        line = self._lines.prepare(_audit(_resource_label(token_request.resource), address, answer))
        return _Note(address, cell, line, self._allowance(address))

    def _note_served(self, answer: Answer) -> None:
        uid = answer.pod.uid if answer.pod else ""
        if answer.binding is None or uid in self._uids_served:
            return
        self._uids_served[uid] = None
        self._on_first_token(answer)

    def _host(self, resource: str, status: int) -> str:
        """Return the host of a resource as a label; `other` for all for which there was no token."""
        host = self._hosts.get(resource)
        if host is not None:
            return host
        if status != _OK or len(self._hosts) >= _HOSTS:
            return _OTHER
        host = self._hosts[resource] = _host_of(resource) or _OTHER
        return host


def source_kind(source: Source) -> str:
    """Return the name of a source in upstream's metrics."""
    if isinstance(source, BrokerIdentity | ProvenIdentity):
        return "broker_token"
    if not isinstance(source, ManagedIdentity):
        return "adal_token"
    return "adal_token_msi_userassignedid" if any(source) else "adal_token_msi"


def _redact(reason: str, source: Source | None) -> str:
    """Return the reason with a shortened client ID, which IMDS and Entra ID repeat."""
    client_id = source.client_id if source is not None else ""
    return reason.replace(client_id, redact.client_id(client_id)) if client_id else reason


def _host_of(resource: str) -> str:
    """Return the host of a resource that is a URL; empty for all else."""
    try:
        return (urlsplit(resource).hostname or "") if "//" in resource else ""
    except ValueError:  # brackets that enclose no address
        return ""


def _resource_label(resource: str) -> str:
    """Return what the audit line says of a resource: its host, else the beginning of what the client wrote."""
    return (_host_of(resource) or resource)[:_SHOWN_CHARACTERS]


def _operation(request: ParsedRequest) -> str:
    if isinstance(request, TokenRequest):
        return TOKEN_PATH
    if isinstance(request, HostTokenRequest):
        return HOST_PATH
    if isinstance(request, TokenFileRequest):
        return TOKEN_FILE_PATH
    if isinstance(request, Forward):
        return "/metadata/" + request.target.split("/", 3)[2].partition("?")[0]
    return _OTHER


def _audit(resource: str, address: str, answer: Answer) -> dict[str, str | int]:
    pod, identity = answer.pod, answer.identity
    line: dict[str, str | int] = {
        "msg": "token",
        "status": answer.status,
        "pod": pod.key.name if pod else "",
        "namespace": pod.key.namespace if pod else "",
        "uid": pod.uid if pod else "",
        "address": address,
        "resource": resource,
        "cached": "true" if answer.cached else "false",
    }
    if identity is not None:
        line["identity"] = f"{identity.key.namespace}/{identity.key.name}"
        line["client_id"] = redact.client_id(identity.client_id)
    if isinstance(answer.source, ProvenIdentity):
        line["door"] = "token-file"
        line["client_id"] = redact.client_id(answer.source.client_id)
    if answer.source is not None:
        line["source"] = source_kind(answer.source)
    if answer.reason:
        line["why"] = _redact(answer.reason, answer.source)
    return line
