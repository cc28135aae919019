"""A stand-in for IMDS on a real socket: gives tokens named after identities, and whatever else a test asks for."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

NOT_FOUND = {"error": "invalid_request", "error_description": "Identity not found"}


class ImdsRequest(NamedTuple):
    """A request that arrived."""

    target: str
    headers: dict[str, str]

    @property
    def query(self) -> dict[str, str]:
        """The parameters, each once."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


class Reply(NamedTuple):
    """An answer that a test prescribes; with `None` as status the connection is closed without one."""

    status: int | None
    body: bytes = b"{}"
    headers: str = ""


class StandInImds:
    """Answers each token request with a token named after its identity.

    `script` holds answers that come first; `fault` may answer in its place at any time.
    """

    def __init__(self, life_seconds: int = 86400) -> None:
        self.life_seconds = life_seconds
        self.padding = 0
        self.requests: list[ImdsRequest] = []
        self.script: deque[Reply | Callable[[ImdsRequest], Reply]] = deque()
        self.fault: Callable[[ImdsRequest], Reply | None] | None = None
        self.gate: asyncio.Event | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.issued = 0
        self.port = 0
        self.clock: Callable[[], float] = time.time

    @asynccontextmanager
    async def listening(self, address: str = "127.0.0.1", port: int = 0) -> AsyncIterator["StandInImds"]:
        """Serve until the body ends."""
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._serve(reader, writer)
            except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
                pass  # the client is gone, or the server ends
            finally:
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, address, port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *header_lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (item.partition(":") for item in header_lines if item)
            }
            request = ImdsRequest(line.split(" ")[1], headers)
            self.requests.append(request)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                if self.gate is not None:
                    await self.gate.wait()
                reply = self._reply(request)
            finally:
                self.at_once -= 1
            if reply.status is None:
                writer.transport.abort()
                return
            writer.write(
                f"HTTP/1.1 {reply.status} Whatever\r\nContent-Type: application/json\r\n{reply.headers}"
                f"Content-Length: {len(reply.body)}\r\n\r\n".encode()
                + reply.body
            )
            await writer.drain()

    def _reply(self, request: ImdsRequest) -> Reply:
        if self.script:
            scripted = self.script.popleft()
            return scripted if isinstance(scripted, Reply) else scripted(request)
        if self.fault is not None and (fault := self.fault(request)):
            return fault
        if not request.target.startswith("/metadata/identity/oauth2/token?"):
            return Reply(200, json.dumps({"asked": request.target}).encode())
        return self.token(request)

    def hold(self, seconds: float) -> None:
        """Answer no request for so many seconds from now on."""
        gate = self.gate = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, gate.set)

    def token(self, request: ImdsRequest) -> Reply:
        """Make the token that the request asks for."""
        self.issued += 1
        query = request.query
        identity = query.get("msi_res_id", query.get("client_id", query.get("object_id", "the-machine")))
        now = int(self.clock())
        body = {
            "access_token": f"token of {identity.rpartition('/')[2]} for {query['resource']} no {self.issued}"
            + "." * self.padding,
            "refresh_token": "",
            "expires_in": str(self.life_seconds),
            "expires_on": str(now + self.life_seconds),
            "not_before": str(now - 5),
            "resource": query["resource"],
            "token_type": "Bearer",
        }
        return Reply(200, json.dumps(body).encode())
