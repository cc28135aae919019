"""What NMI tells of its work: metrics under upstream's names, and one audit line for each token request.

Labels come from fixed sets or from the cluster's own namespaces, never from what a client wrote. Called by `app`, the
token sources and the redirect.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from podidentity.core import redact
from podidentity.core.imds import Forward, HostTokenRequest, Parsed, TokenRequest
from podidentity.core.sources import ManagedIdentity, Source
from podidentity.nmi.answers import Answer
from podidentity.serving.logs import Lines
from podidentity.serving.metrics import PREFIX, REQUEST_BUCKETS_SECONDS, SHORT_BUCKETS_SECONDS, Cell, Durations

now = perf_counter
"""Seconds of a clock that measures durations."""

TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105  # a path
HOST_PATH = "/host/token"
_OTHER = "other"
_HOSTS = 64
_NOTES = 4096
_PODS = 4096
_SHOWN_CHARACTERS = 128
_OK = 200


class Metrics:
    """Everything NMI counts, in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
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
        self.stands, self.proven, self.unproven = _host_gauges(registry)
        self.direct = Counter(
            f"{PREFIX}nmi_direct_connections_count",
            "Connections refused because they were dialled directly.",
            registry=registry,
        )
        self.bugs = Counter(
            f"{PREFIX}nmi_internal_errors_count", "Requests answered 500 because of a bug.", registry=registry
        )
        self.connections = Gauge(f"{PREFIX}nmi_connections", "Open connections of pods.", registry=registry)
        self.waiting = Gauge(f"{PREFIX}nmi_waiting_requests", "Requests waiting for an identity.", registry=registry)

    def api_failed(self, operation: str) -> None:
        """Count a request to the Kubernetes API that failed."""
        self.api_errors.labels(operation).inc()


def _host_gauges(registry: CollectorRegistry) -> tuple[Gauge, Gauge, Gauge]:
    """Make what is told of this node's interception; read when the page is."""
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
    """What is the same for every answer of one kind: where it is counted, and its line but for the time it took."""

    address: str
    counted: Cell
    line: bytes | None


Told = Callable[[Answer], None]


class Observer:
    """Counts and writes down each answer. What it says of equal answers is made once and remembered.

    `first_token` hears of each pod's first token by a binding.
    """

    def __init__(self, metrics: Metrics, lines: Lines, first_token: Told = lambda _: None) -> None:
        self.metrics = metrics
        self._lines = lines
        self._first_token = first_token
        self._served: dict[str, None] = {}
        self._notes: dict[tuple[object, ...], _Note] = {}
        self._hosts: dict[str, str] = {}

    def answered(self, parsed: Parsed, address: str, answer: Answer, seconds: float) -> None:
        """Note one answer, `seconds` after its request."""
        note = answer.note
        if not isinstance(note, _Note) or note.address != address:  # a pod may have two
            note = answer.note = self._note(parsed, address, answer)
        note.counted.observe(seconds)
        if note.line is not None:
            self._lines.write(note.line, seconds * 1000)

    def _note(self, parsed: Parsed, address: str, answer: Answer) -> _Note:
        pod, identity = answer.pod, answer.identity
        named = (identity.key, identity.client_id) if identity else None  # several may share a source
        resource = parsed.resource if isinstance(parsed, TokenRequest) else parsed
        uid = pod.uid if pod else ""
        key = (answer.status, uid, address, named, answer.source, resource, answer.cached, answer.why)
        note = self._notes.get(key)
        if note is None:
            if len(self._notes) >= _NOTES:
                self._notes.clear()
            note = self._notes[key] = self._make_note(parsed, address, answer)
        return note

    def _make_note(self, parsed: Parsed, address: str, answer: Answer) -> _Note:
        asked = parsed.asked if isinstance(parsed, HostTokenRequest) else parsed
        namespace = answer.pod.key.namespace if answer.pod else ""
        if not isinstance(asked, TokenRequest):
            counted = self.metrics.operations.labels(_operation(parsed), str(answer.status), namespace, "")
            return _Note(address, counted, None)
        host = self._host(asked.resource, answer.status)
        counted = self.metrics.operations.labels(_operation(parsed), str(answer.status), namespace, host)
        if answer.status == _OK:
            self._note_served(answer)
        return _Note(address, counted, self._lines.prepare(_audit(_shown(asked.resource), address, answer)))

    def _note_served(self, answer: Answer) -> None:
        uid = answer.pod.uid if answer.pod else ""
        if answer.binding is None or uid in self._served:
            return
        self._served[uid] = None
        while len(self._served) > _PODS:
            del self._served[next(iter(self._served))]
        self._first_token(answer)

    def _host(self, resource: str, status: int) -> str:
        """Shorten a resource to its host. Only those for which there was a token get a name of their own."""
        host = self._hosts.get(resource)
        if host is not None:
            return host
        if status != _OK or len(self._hosts) >= _HOSTS:
            return _OTHER
        host = self._hosts[resource] = _host_of(resource) or _OTHER
        return host


def source_kind(source: Source) -> str:
    """Name a source as upstream's metrics do."""
    if not isinstance(source, ManagedIdentity):
        return "adal_token"
    return "adal_token_msi_userassignedid" if any(source) else "adal_token_msi"


def _shortened(why: str, source: Source | None) -> str:
    """Shorten the client ID also where IMDS or Entra ID repeats it."""
    client_id = source.client_id if source is not None else ""
    return why.replace(client_id, redact.client_id(client_id)) if client_id else why


def _host_of(resource: str) -> str:
    """Return the host of a resource that is a URL; empty for all else."""
    try:
        return (urlsplit(resource).hostname or "") if "//" in resource else ""
    except ValueError:  # brackets that enclose no address
        return ""


def _shown(resource: str) -> str:
    """What the audit line says of a resource: its host, else the beginning of what the client wrote."""
    return (_host_of(resource) or resource)[:_SHOWN_CHARACTERS]


def _operation(parsed: Parsed) -> str:
    if isinstance(parsed, TokenRequest):
        return TOKEN_PATH
    if isinstance(parsed, HostTokenRequest):
        return HOST_PATH
    if isinstance(parsed, Forward):
        return "/metadata/" + parsed.target.split("/", 3)[2].partition("?")[0]
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
    if answer.source is not None:
        line["source"] = source_kind(answer.source)
    if answer.why:
        line["why"] = _shortened(answer.why, answer.source)
    return line
