"""What was asked and answered, as values: for `podidentity lab log`, for the demo and for tests.

`record` makes an `Entry` of a request and its answer; `Log` keeps the last ones and lets followers wait for the next.
No token, secret or body is kept: paths, names and the service's own reason for saying no.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from podidentity.lab.azure.state import State

KEPT = 10_000

_SELECTORS = ("client_id", "object_id", "msi_res_id", "mi_res_id")


@dataclass(frozen=True, slots=True)
class Entry:
    """One request and its answer.

    `service` is imds, entra, arm, graph or keyvault, "" for a host that Azure does not have. `asker` is the pod
    (`namespace/name`), node or host that the request came from, `host` where it went. `who` is the client ID of the
    identity that asked, or whose token it asked for, `identity` its name; both are empty when nobody was told apart.
    `resource` is what a token was asked for. `why` is the service's reason for saying no. `time` is in Unix seconds.
    """

    number: int
    time: float
    service: str
    asker: str
    host: str
    method: str
    what: str
    resource: str
    who: str
    identity: str
    status: int
    why: str


@dataclass(slots=True)
class Log:
    """The last requests, oldest first. `asker_of` names the owner of an address in the lab."""

    asker_of: Callable[[str], str] = str
    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=KEPT))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, entry: Entry) -> None:
        """Remember one request."""
        self.entries.append(entry)
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def next_number(self) -> int:
        """The number of the next entry; the first one is 1."""
        return self.entries[-1].number + 1 if self.entries else 1

    def after(self, number: int) -> list[Entry]:
        """The entries with a higher number."""
        return [one for one in self.entries if one.number > number]

    async def wait_after(self, number: int, seconds: float) -> list[Entry]:
        """The same; when there is none, wait up to `seconds` for one."""
        try:
            async with asyncio.timeout(seconds):
                while not self.after(number):
                    await self._changed.wait()
        except TimeoutError:
            return []
        return self.after(number)


def record(log: Log, state: State, time: float, service: str, request: Request, response: Response) -> Entry:
    """Make the entry of a request: `request.state` holds what the service found out about it."""
    principal = state.principal_of(request.state.who) if request.state.who else None
    return Entry(
        number=log.next_number,
        time=time,
        service=service,
        asker=log.asker_of(request.client.host) if request.client else "",
        host=request.headers.get("host", ""),
        method=request.method,
        what=_what(request),
        resource=request.state.resource,
        who=request.state.who,
        identity=principal.name if principal else "",
        status=response.status_code,
        why=_why(response),
    )


def _what(request: Request) -> str:
    """The path, and which identity was named: other parameters say nothing about who gets what."""
    named = "&".join(f"{name}={value}" for name in _SELECTORS if (value := request.query_params.get(name)))
    return f"{request.url.path}{'?' if named else ''}{named}"


def _why(response: Response) -> str:
    if response.status_code < 400:
        return ""
    try:
        said = json.loads(bytes(response.body))
    except ValueError:
        return ""
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, dict):
        return f"{error.get('code', '')}: {error.get('message', '')}"
    return str(said.get("error_description") or error or "") if isinstance(said, dict) else ""
