"""What the lab's logs say, as values of one form: a line of NMI, a line of the broker, an entry of Azure's log. Pure.

The audit lines are those of `--log-format text` and `json`; docs/reference names their fields.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

NMI, BROKER, IMDS, ENTRA = "nmi", "broker", "imds", "entra"
RESOURCES = ("keyvault", "blob", "arm", "graph")
"""Services that take tokens."""
FIRST_REFUSAL = 400
TEXT_LIMIT = 2_000
"""Characters of a text that a pod may have chosen: a browser gets no more of it."""

_OMISSION = "lines left out"
_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')
"""A field of a text line: its value is plain, or a JSON string."""


@dataclass(frozen=True, slots=True)
class Event:
    """One request and its answer at one station.

    `station` is nmi, broker, imds, entra, keyvault, blob, arm, graph, or "" for a host that Azure does not have.
    `asker` is the pod (`namespace/name`), node or host that asked. `place` is where it was answered: the node of an
    NMI, the pod of a broker, a host name of Azure. `client_id` may be shortened to its ends, as NMI writes it;
    `identity` is the name of the AzureIdentity at NMI and of Azure's identity elsewhere. `time` is that of the answer
    in Unix seconds, `seconds` how long it took, None where the log does not say.
    """

    time: float
    station: str
    asker: str
    place: str
    target: str
    resource: str
    client_id: str
    identity: str
    status: int
    reason: str
    seconds: float | None = None
    cached: bool = False

    @property
    def start(self) -> float:
        """When the request came, in Unix seconds."""
        return self.time - (self.seconds or 0.0)

    @property
    def is_refused(self) -> bool:
        """Whether the answer is a refusal or a failure."""
        return self.status >= FIRST_REFUSAL

    def as_json(self) -> dict[str, Any]:
        """Return the event as a line of the download."""
        return asdict(self)


def of_entry(entry: Mapping[str, Any]) -> Event:
    """Return the event of an entry of `podidentity lab log -o json`."""
    path, _, query = entry["what"].partition("?")
    client_id = entry["who"] or (query.partition("client_id=")[2] if query.startswith("client_id=") else "")
    return Event(
        time=entry["time"],
        station=entry["service"],
        asker=entry["asker"][:TEXT_LIMIT],
        place=entry["host"][:TEXT_LIMIT],
        target=f"{entry['method']} {path}"[:TEXT_LIMIT],
        resource=entry["resource"][:TEXT_LIMIT],
        client_id=client_id[:TEXT_LIMIT],
        identity=(entry["identity"] or _last_name(query))[:TEXT_LIMIT],
        status=entry["status"],
        reason=entry["why"][:TEXT_LIMIT],
    )


def of_audit_line(line: str, station: str, place: str) -> Event | None:
    """Return the event of a line that NMI or the broker at `place` wrote; None for one that is not about a token."""
    fields = _fields(line)
    if fields is None or "status" not in fields:
        return None
    try:
        time = datetime.fromisoformat(fields["ts"]).timestamp()
        status, seconds = int(fields["status"]), float(fields.get("ms", 0)) / 1000
    except (KeyError, ValueError):
        return None
    pod = f"{fields.get('namespace', '')}/{fields['pod']}" if fields.get("pod") else ""
    return Event(
        time=time,
        station=station,
        asker=(pod or fields.get("address") or fields.get("peer", ""))[:TEXT_LIMIT],
        place=place,
        target="",
        resource=fields.get("resource", "")[:TEXT_LIMIT],
        client_id=fields.get("client_id", "")[:TEXT_LIMIT],
        identity=fields.get("identity", "")[:TEXT_LIMIT],
        status=status,
        reason=fields.get("why", "")[:TEXT_LIMIT],
        seconds=seconds,
        cached=fields.get("cached") == "true",
    )


def omitted_lines(line: str) -> int:
    """Return how many audit lines of a pod NMI left out, if that is what a line says; 0 for any other."""
    if _OMISSION not in line:
        return 0
    fields = _fields(line) or {}
    count = fields.get("count", "")
    return int(count) if fields.get("msg") == _OMISSION and count.isdecimal() else 0


def is_same_client(first: str, second: str) -> bool:
    """Whether two client IDs may be the same one, of which either may be shortened to its ends."""
    if not first or not second:
        return False
    if "#" in first or "#" in second:
        return (first[:4].lower(), first[-4:].lower()) == (second[:4].lower(), second[-4:].lower())
    return first.lower() == second.lower()


def host_of(resource: str) -> str:
    """Return what two stations call a resource alike: its host, or the text without a scheme."""
    return resource.partition("://")[2].partition("/")[0] if "://" in resource else resource.rstrip("/")


def _last_name(query: str) -> str:
    """Return the name of the identity that a query names by its ARM ID, or ""."""
    return query.rpartition("/")[2] if "res_id=" in query else ""


def _fields(line: str) -> dict[str, str] | None:
    """Return the fields of an audit line, `ts` included; None for any other line."""
    if line.startswith("{"):
        return _json_fields(line)
    moment, _, text = line.partition(" ")
    _, _, text = text.partition(" ")
    kind, _, text = text.partition(": ")
    if kind != "audit":
        return None
    try:
        return {"ts": moment, **{name: _value(text) for name, text in _FIELD.findall(text)}}
    except ValueError:
        return None


def _value(text: str) -> str:
    return str(json.loads(text)) if text.startswith('"') else text


def _json_fields(line: str) -> dict[str, str] | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    if not isinstance(fields, dict) or fields.get("logger") != "audit":
        return None
    return {name: _text(value) for name, value in fields.items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
