"""The watches of many nodes on a real API server, as NMI opens them: `watches.py`, its task as JSON on standard input.

The task: `server` (host and port), `ca` (a path), `token`, `nodes` (how many), `scale_sets`, `machines` (the names of
their objects), `watches` (the request targets that NMI of one node sent, with `{node}` and `{machine}` in place of its
own), and `is_multiplexed`: one HTTP/2 connection for each node, or as NMI has it a connection for each watch. Prints
`open` once all are accepted; after the next line of standard input the bytes that arrived, and how many watches ended.
"""

import abc
import asyncio
import json
import re
import resource
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
import httpx2
import uvloop

AT_ONCE = 8
BATCH_NODES = 50
AGAIN_SECONDS = 1.0  # what the API server's 429 asks for
WATCH_SECONDS = 3600  # NMI's own end after 5 to 10 minutes: here none ends while it is measured
_VERSION, _TIME = re.compile(r"resourceVersion=\d+"), re.compile(r"timeoutSeconds=\d+")
_ERROR_EVENT = b'"type":"ERROR"'


@dataclass
class Fleet:
    """What all connections share. `versions` are the newest resource versions, one for each kind of watch."""

    task: dict[str, Any]
    tls: ssl.SSLContext
    versions: list[str] = field(default_factory=list)
    connections: "list[Connection]" = field(default_factory=list)
    bytes_received: int = 0
    watches_ended: int = 0

    def targets(self, node: int) -> list[str]:
        """Return the request targets of a node's watches."""
        words = {"{node}": f"n-{node}", "{machine}": self.task["machines"][node % self.task["scale_sets"]]}
        return [
            _with_version(template, version).replace("{node}", words["{node}"]).replace("{machine}", words["{machine}"])
            for template, version in zip(self.task["watches"], self.versions, strict=True)
        ]

    def head_fields(self) -> list[tuple[str, str]]:
        """Return the header fields of each request, in lower case."""
        return [
            ("authorization", f"Bearer {self.task['token']}"),
            ("user-agent", "podidentity/bench"),
            ("accept-encoding", "identity"),
            ("accept", "*/*"),
        ]

    def note(self, data: bytes) -> None:
        """Count what a watch sent."""
        self.bytes_received += len(data)
        self.watches_ended += _ERROR_EVENT in data


class Connection(asyncio.Protocol, abc.ABC):
    """One connection with watches on it. `answers` gets True for each that is accepted, False for one that is not."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.answers: asyncio.Queue[bool] = asyncio.Queue()
        self.is_kept = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Note an end."""
        del error
        self.answers.put_nowait(False)
        self.fleet.watches_ended += self.is_kept

    @abc.abstractmethod
    def ask(self, target: str) -> None:
        """Send the request of a watch."""


class Plain(Connection):
    """HTTP/1.1: one watch."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._is_answered = False

    def ask(self, target: str) -> None:
        """Send the request of the watch."""
        host, port = self.fleet.task["server"]
        lines = [f"GET {target} HTTP/1.1", f"host: {host}:{port}"]
        lines += [f"{name}: {value}" for name, value in self.fleet.head_fields()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        """Read the status, then count."""
        if self._is_answered:
            self.fleet.note(data)
        else:
            self._is_answered = True
            self.answers.put_nowait(data.startswith(b"HTTP/1.1 200 "))


class Multiplexed(Connection):
    """HTTP/2: all watches of a node."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the preface."""
        super().connection_made(transport)
        self._http.initiate_connection()
        self._flush()

    def ask(self, target: str) -> None:
        """Open a stream."""
        host, port = self.fleet.task["server"]
        stream = self._http.get_next_available_stream_id()
        pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", f"{host}:{port}"), (":path", target)]
        self._http.send_headers(stream, [*pseudo, *self.fleet.head_fields()], end_stream=True)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Read frames."""
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self.answers.put_nowait((b":status", b"200") in event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.fleet.note(event.data)
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.fleet.watches_ended += self.is_kept
        self._flush()

    def _flush(self) -> None:
        if data := self._http.data_to_send():
            self.transport.write(data)


def _with_version(template: str, version: str) -> str:
    return _TIME.sub(f"timeoutSeconds={WATCH_SECONDS}", _VERSION.sub(f"resourceVersion={version}", template))


async def open_watches(fleet: Fleet, targets: list[str], factory: type[Connection]) -> None:
    """Open one connection with these watches; when the API server refuses one for now, all of them again."""
    host, port = fleet.task["server"]
    while True:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: factory(fleet), host, port, ssl=fleet.tls, server_hostname=host
        )
        for target in targets:
            connection.ask(target)
        if all([await connection.answers.get() for _ in targets]):
            break
        connection.transport.abort()
        await asyncio.sleep(AGAIN_SECONDS)
    connection.is_kept = True
    fleet.connections.append(connection)


async def open_all(fleet: Fleet) -> None:
    """Open the watches of all nodes, some at a time, each from the newest version of its kind."""
    is_multiplexed = fleet.task["is_multiplexed"]
    factory: type[Connection] = Multiplexed if is_multiplexed else Plain
    free = asyncio.Semaphore(AT_ONCE)

    async def open_one(targets: list[str]) -> None:
        async with free:
            await open_watches(fleet, targets, factory)

    host, port = fleet.task["server"]
    trust = ssl.create_default_context(cafile=fleet.task["ca"])
    async with httpx2.AsyncClient(base_url=f"https://{host}:{port}", verify=trust, trust_env=False, timeout=60) as http:
        for first in range(0, fleet.task["nodes"], BATCH_NODES):
            fleet.versions = [version async for version in newest_versions(http, fleet)]
            nodes = range(first, min(first + BATCH_NODES, fleet.task["nodes"]))
            groups = [
                group for node in nodes for group in groups_of(fleet.targets(node), is_multiplexed=is_multiplexed)
            ]
            await asyncio.gather(*(open_one(group) for group in groups))


def groups_of(targets: list[str], *, is_multiplexed: bool) -> Iterator[list[str]]:
    """Yield the watches of each connection."""
    if is_multiplexed:
        yield targets
    else:
        yield from ([target] for target in targets)


async def newest_versions(http: httpx2.AsyncClient, fleet: Fleet) -> AsyncIterator[str]:
    """Yield the version from which to watch, for each kind."""
    for template in fleet.task["watches"]:
        url = httpx2.URL(template.replace("{node}", "n-0").replace("{machine}", "none"))
        parameters = {name: value for name, value in url.params.items() if name.endswith("Selector")}
        response = await http.get(url.path, params={**parameters, "limit": "1"}, headers=fleet.head_fields())
        yield response.raise_for_status().json()["metadata"]["resourceVersion"]


async def main() -> None:
    """Open, wait for the next line, and say what happened."""
    task = json.loads(sys.stdin.readline())
    tls = ssl.create_default_context(cafile=task["ca"])
    if task["is_multiplexed"]:
        tls.set_alpn_protocols(["h2"])
    fleet = Fleet(task, tls)
    await open_all(fleet)
    print("open", flush=True)
    fleet.bytes_received = 0
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    line = {"bytes": fleet.bytes_received, "ended": fleet.watches_ended, "connections": len(fleet.connections)}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    uvloop.run(main())
