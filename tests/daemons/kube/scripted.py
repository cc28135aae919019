"""A small API server on a real socket that does what a test tells it: refuse, hang up, fall silent, send garbage.

It keeps objects as JSON and serves get, list, create, replace, merge patch, delete and watch well enough for a client;
everything that the real server checks besides is left out.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_watch(self) -> bool:
        """Whether it asks for a watch."""
        return self.query.get("watch") == "true"


@dataclass(frozen=True)
class Reply:
    """An answer of the script's."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def refusal(cls, status: int, message: str = "no", causes: Sequence[str] = (), **headers: str) -> "Reply":
        """Make a Status as the API server does."""
        body: dict[str, Any] = {"kind": "Status", "status": "Failure", "message": message, "code": status}
        body["details"] = {"causes": [{"reason": cause} for cause in causes]}
        return cls(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


EXPIRED_STATUS = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


class Watch:
    """One open watch, on the server's side."""

    def __init__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._writer = writer
        self.ended = asyncio.Event()

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as one chunk, whatever they are."""
        self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def send(self, kind: str, obj: Any) -> None:
        """Send one event."""
        self.send_bytes(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    def end(self) -> None:
        """End the stream in order, as the server does when its time is up."""
        self._writer.write(b"0\r\n\r\n")
        self.ended.set()

    def expire(self) -> None:
        """Tell the client that its version is too old."""
        self.send("ERROR", EXPIRED_STATUS)
        self.end()

    def cut(self) -> None:
        """Break the connection in the middle."""
        self._writer.transport.abort()
        self.ended.set()


class Late:
    """A request that arrived, and that the server carries out when a test says so, its client there or not."""

    def __init__(self, fits: Callable[[Request], bool]) -> None:
        self.fits = fits
        self.request: Request | None = None

    def arrived(self) -> bool:
        """Whether it is here."""
        return self.request is not None


class ScriptedServer:
    """The server: objects by path, open watches, and what was asked."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.version = 100
        self.oldest = 0
        self.requests: list[Request] = []
        self.watches: list[Watch] = []
        self.unwatched: deque[Callable[[Watch], None]] = deque()
        self._script: deque[tuple[Callable[[Request], bool], Reply | None]] = deque()
        self._late: deque[Late] = deque()
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0
        self.reachable = True

    @classmethod
    @asynccontextmanager
    async def listening(cls) -> AsyncIterator["ScriptedServer"]:
        """Serve on a free loopback port."""
        server = cls()
        listener = await asyncio.start_server(server._accept, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        try:
            yield server
        finally:
            listener.close()
            for task in tuple(server._connections):
                task.cancel()
            await asyncio.gather(*server._connections, return_exceptions=True)

    def write_kubeconfig(self, directory: Path) -> Path:
        """Write a kubeconfig for this server."""
        path = directory / "kubeconfig"
        path.write_text(json.dumps(kubeconfig(f"http://127.0.0.1:{self.port}")))
        return path

    # What tests say.

    def put(self, path: str, obj: Any) -> Any:
        """Store an object at its path, under a new version; bytes are stored as they are."""
        if isinstance(obj, dict):
            self.version += 1
            obj.setdefault("metadata", {})["resourceVersion"] = str(self.version)
        self.objects[path] = obj
        return obj

    def answer_next(self, reply: Reply | None, *, to: Callable[[Request], bool] = lambda _: True) -> None:
        """Answer the next request that fits with `reply` instead; None: never answer it."""
        self._script.append((to, reply))

    def hold_next(self, fits: Callable[[Request], bool]) -> Late:
        """Let the next request that fits arrive, and do nothing yet; no answer ever comes back."""
        self._late.append(Late(fits))
        return self._late[-1]

    def carry_out(self, late: Late) -> Reply:
        """Do what a held request asked for; what the answer would have been."""
        assert late.request is not None
        return self._answer(late.request)

    def on_next_watch(self, act: Callable[[Watch], None]) -> None:
        """Do something to the next watch as soon as it is open."""
        self.unwatched.append(act)

    def forget_history(self) -> None:
        """Know nothing of what happened until now: a watch that goes on from before is told that it is too old."""
        self.version += 1
        self.oldest = self.version

    def count(self, method: str, *, watch: bool = False) -> int:
        """Count requests."""
        return sum(1 for request in self.requests if request.method == method and request.is_watch == watch)

    # How it serves.

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while self.reachable and (request := await _read(reader)):
                self.requests.append(request)
                if not await self._serve(request, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client is gone, or the server ends
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _serve(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        late = next((reply for reply in self._late if reply.fits(request)), None)
        if late is not None:
            self._late.remove(late)
            late.request = request
            await asyncio.Event().wait()
        scripted = next((entry for entry in self._script if entry[0](request)), None)
        if scripted is not None:
            self._script.remove(scripted)
            if scripted[1] is None:
                await asyncio.Event().wait()
            assert scripted[1] is not None
            _write(writer, scripted[1])
            return True
        if request.is_watch:
            await self._watch(request, writer)
            return False
        _write(writer, self._answer(request))
        return True

    async def _watch(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        watch = Watch(request, writer)
        self.watches.append(watch)
        if int(request.query.get("resourceVersion", self.version)) < self.oldest:
            watch.expire()
        elif self.unwatched:
            self.unwatched.popleft()(watch)
        await watch.ended.wait()
        await writer.drain()

    def _answer(self, request: Request) -> Reply:
        stored_object = self.objects.get(request.path)
        if request.method == "POST":
            return self._create(request)
        if request.method == "GET" and stored_object is None:
            return self._list(request)
        if stored_object is None:
            return Reply.refusal(404, f'"{request.path}" not found')
        if request.method == "GET":
            return Reply(200, stored_object)
        return self._change(request, stored_object)

    def _change(self, request: Request, current: Json) -> Reply:
        body: Json = json.loads(request.body or b"{}")
        if request.method == "DELETE":
            preconditions = body.get("preconditions", {})
            if any(current["metadata"].get(name) != value for name, value in preconditions.items()):
                return Reply.refusal(409, "the object is another one")
            return Reply(200, self.objects.pop(request.path))
        if request.method == "PATCH":
            return Reply(200, self.put(request.path, {**current, **body}))
        if body["metadata"].get("resourceVersion") not in (None, current["metadata"]["resourceVersion"]):
            return Reply.refusal(409, "the object has been modified")
        return Reply(200, self.put(request.path, body))

    def _create(self, request: Request) -> Reply:
        body: Json = json.loads(request.body)
        path = f"{request.path}/{body['metadata']['name']}"
        if path in self.objects:
            return Reply.refusal(409, f'"{path}" already exists')
        return Reply(201, self.put(path, body))

    def _list(self, request: Request) -> Reply:
        plural = request.path.rsplit("/", 1)[-1]
        objects = [obj for path, obj in self.objects.items() if path.rsplit("/", 2)[-2] == plural]
        if not objects and "/namespaces/" in request.path:
            return Reply.refusal(404, f'"{request.path}" not found')
        start, limit = int(request.query.get("continue", 0)), int(request.query.get("limit", len(objects)))
        following = {"continue": str(start + limit)} if start + limit < len(objects) else {}
        items = b",".join(_json(obj) for obj in objects[start : start + limit])
        metadata = _json({"resourceVersion": str(self.version), **following})
        return Reply(200, b'{"metadata":' + metadata + b',"items":[' + items + b"]}")


def kubeconfig(server: str) -> Json:
    """Make a kubeconfig for a server without authentication."""
    return {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": server}}],
    }


def pod(name: str, ip: str = "", **metadata: Any) -> Json:
    """Make a pod as the API server stores it."""
    return {
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}", **metadata},
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}] if ip else []},
    }


def _json(obj: Any) -> bytes:
    return obj if isinstance(obj, bytes) else json.dumps(obj).encode()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *header_lines = head.decode().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in header_lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    url = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    return Request(method, url.path, query, headers, body)


def _write(writer: asyncio.StreamWriter, reply: Reply) -> None:
    body = _json(reply.body)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {reply.status} Scripted\r\n{lines}\r\n".encode() + body)
