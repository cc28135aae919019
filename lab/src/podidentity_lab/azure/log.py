"""Requests to the lab's Azure and their answers, as values: for `podidentity lab log`, for the demo and for tests.

`record` makes an `Entry` of a request and its answer; `Log` keeps the last ones and lets followers wait for the next.
An entry holds paths, names and the service's own reason for a refusal; never a token, a secret or a body.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from podidentity_lab.azure.answers import ContentError, StorageError
from podidentity_lab.azure.state import State

ENTRIES_LIMIT = 10_000
TEXT_LIMIT = 4_000
"""Characters of a text that a client chose."""

_FORMAT_NAMES = {"target": "what", "client_id": "who", "reason": "why"}
_SELECTORS = ("client_id", "object_id", "msi_res_id", "mi_res_id")


@dataclass(frozen=True, slots=True)
class Entry:
    """One request and its answer.

    `service` is imds, entra, arm, graph, keyvault or blob, "" for a host that Azure does not have. `asker` is the pod
    (`namespace/name`), node or host that the request came from, `host` the host name that it went to. `target` is the
    path and the identity that a query names. `client_id` is that of the identity that asked, or whose token was asked
    for, `identity` its name; both are empty when that is not known. `resource` is what a token is for, `reason` the
    service's own words for a refusal. `time` is in Unix seconds.
    """

    number: int
    time: float
    service: str
    asker: str
    host: str
    method: str
    target: str
    resource: str
    client_id: str
    identity: str
    status: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the entry as the control socket and `podidentity lab log` show it, with the names of that format."""
        return {_FORMAT_NAMES.get(name, name): value for name, value in asdict(self).items()}


@dataclass(slots=True)
class Log:
    """The last requests, oldest first. `asker_of` names the owner of an address in the lab."""

    asker_of: Callable[[str], str] = str
    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=ENTRIES_LIMIT))
    _next_entry: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, entry: Entry) -> None:
        """Keep one entry, and wake whoever waits for it."""
        self.entries.append(entry)
        self._next_entry.set()
        self._next_entry = asyncio.Event()

    @property
    def next_number(self) -> int:
        """The number of the next entry; the first one is 1."""
        return self.entries[-1].number + 1 if self.entries else 1

    def entries_after(self, number: int) -> list[Entry]:
        """Return the entries with a higher number than `number`."""
        return [entry for entry in self.entries if entry.number > number]

    async def wait_after(self, number: int, seconds: float) -> list[Entry]:
        """Return the entries with a higher number; when there is none yet, wait up to `seconds` for one."""
        try:
            async with asyncio.timeout(seconds):
                while not self.entries_after(number):
                    await self._next_entry.wait()
        except TimeoutError:
            return []
        return self.entries_after(number)


def record(log: Log, state: State, time: float, service: str, request: Request, response: Response) -> Entry:
    """Return the entry for a request: its service left `client_id`, `resource` and `name` in `request.state`."""
    principal = state.principal_of(request.state.client_id) if request.state.client_id else None
    return Entry(
        number=log.next_number,
        time=time,
        service=service,
        asker=log.asker_of(request.client.host) if request.client else "",
        host=request.headers.get("host", "")[:TEXT_LIMIT],
        method=request.method[:TEXT_LIMIT],
        target=_target_of(request)[:TEXT_LIMIT],
        resource=request.state.resource[:TEXT_LIMIT],
        client_id=request.state.client_id[:TEXT_LIMIT],
        identity=(request.state.name or (principal.name if principal else ""))[:TEXT_LIMIT],
        status=response.status_code,
        reason=_reason_of(response)[:TEXT_LIMIT],
    )


def _target_of(request: Request) -> str:
    """Return the path, and the parameter that names an identity: no other one says anything about who gets what."""
    selectors = "&".join(f"{name}={value}" for name in _SELECTORS if (value := request.query_params.get(name)))
    return f"{request.url.path}{'?' if selectors else ''}{selectors}"


def _reason_of(response: Response) -> str:
    """Return the service's own words for a refusal, in any of the services' forms; "" for a success."""
    if response.status_code < 400:
        return ""
    if isinstance(response, StorageError | ContentError):
        return response.reason
    try:
        body = json.loads(bytes(response.body))
    except ValueError:
        return ""
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return f"{error.get('code', '')}: {error.get('message', '')}"
    return str(body.get("error_description") or error or body.get("message") or "") if isinstance(body, dict) else ""
