"""`kubectl exec`, `kubectl attach` and `kubectl port-forward`: each over one WebSocket.

Protocol of the first two: the first byte of each message is its channel (kubernetes.io/docs/reference/using-api/
api-concepts and the remote-command subprotocol `v5.channel.k8s.io`, `v4` without the closing of single channels).
"""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect

from podidentity_lab.kubernetes import forwarding, places
from podidentity_lab.kubernetes.auth import Access, Authority
from podidentity_lab.kubernetes.kinds import Kinds
from podidentity_lab.kubernetes.places import Place
from podidentity_lab.kubernetes.sessions import ContainerPlace, Session
from podidentity_lab.kubernetes.statuses import ApiError, beyond_the_lab
from podidentity_lab.kubernetes.storage import Storage

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, ERROR, RESIZE, CLOSE = 0, 3, 4, 255
Json = dict[str, Any]


class Containers(Protocol):
    """What has containers' streams, starts programs beside them, and reaches their ports: the kubelets."""

    async def execute(self, container: ContainerPlace, command: list[str], *, tty: bool) -> Session | None:
        """Start a program beside a container; return None when the container does not run. Raises `OSError`."""
        ...

    def attach(self, container: ContainerPlace, *, stdin: bool) -> Session | None:
        """Return a container's own streams; None when it does not run."""
        ...

    async def connect(self, namespace: str, pod: str, port: int) -> forwarding.Connection:
        """Connect to a port of a pod as from inside of it. Raises `OSError`."""
        ...


class NoContainers:
    """A cluster without kubelets: nothing runs."""

    async def execute(self, *_: object, tty: bool) -> None:
        """Return None: no container runs."""

    def attach(self, *_: object, stdin: bool) -> None:
        """Return None: no container runs."""

    async def connect(self, *_: object) -> forwarding.Connection:
        """Raise `OSError`: no pod runs."""
        raise OSError("no pod runs")


class Streams:
    """Answers WebSockets."""

    def __init__(self, storage: Storage, kinds: Kinds, authority: Authority, containers: Containers) -> None:
        self._storage = storage
        self._kinds = kinds
        self._authority = authority
        self._containers = containers

    async def serve(self, socket: WebSocket) -> None:
        """Carry one program's streams until it ends, or forward ports, or the client has gone."""
        offered = socket.scope["subprotocols"]
        if forwarding.PROTOCOL in offered:
            await self._forward(socket)
            return
        spoken = next((protocol for protocol in PROTOCOLS if protocol in offered), None)
        await socket.accept(subprotocol=spoken)
        try:
            session = await self._open(socket, spoken)
        except ApiError as error:
            await _finish(socket, error.body())
            return
        try:
            await _carry(socket, session)
        finally:
            await session.leave()

    async def _forward(self, socket: WebSocket) -> None:
        """Forward ports of a pod. A refusal has no text here: kubectl asks again by a POST, which the API refuses."""
        try:
            place = self._place(socket, {"portforward"})
            self._storage.get("pods", place.namespace, place.name)
        except ApiError:
            await socket.close()
            return
        await socket.accept(subprotocol=forwarding.PROTOCOL)
        connect = functools.partial(self._containers.connect, place.namespace or "", place.name)
        await forwarding.Forwarding(socket, connect).run()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await socket.close()

    def _place(self, socket: WebSocket, subresources: set[str]) -> Place:
        """Return what a request is about, if it is one of these of a pod and the user may use it. Raises ApiError."""
        place = places.find(self._kinds, socket.url.path.strip("/"))
        if place.subresource not in subresources:
            raise beyond_the_lab(f"{place.kind.plural}/{place.subresource}")
        user = self._authority.user(socket.headers.get("authorization", ""))
        resource = f"pods/{place.subresource}"
        self._authority.require(user, Access("create", "", resource, place.namespace or "", place.name))
        return place

    async def _open(self, socket: WebSocket, spoken: str | None) -> Session:
        if spoken is None:
            raise ApiError(400, f"this server speaks {' and '.join(PROTOCOLS)}")
        place = self._place(socket, {"exec", "attach"})
        pod = self._storage.get("pods", place.namespace, place.name)
        query = socket.query_params
        name = query.get("container") or pod["spec"]["containers"][0]["name"]
        container = ContainerPlace(place.namespace or "", place.name, name)
        try:
            if place.subresource == "attach":
                session = self._containers.attach(container, stdin=query.get("stdin") == "true")
            else:
                tty = query.get("tty") == "true"
                session = await self._containers.execute(container, query.getlist("command"), tty=tty)
        except OSError as error:
            raise ApiError(500, f'container "{name}" of pod "{place.name}": {error}; try it again') from None
        if session is None:
            raise ApiError(400, f'container "{name}" of pod "{place.name}" does not run')
        return session


async def _carry(socket: WebSocket, session: Session) -> None:
    """Carry the streams until the program has ended and all its output is sent, or the client has gone."""
    listening = asyncio.create_task(_listen(socket, session))
    speaking = asyncio.create_task(_speak(socket, session))
    try:
        await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
        if speaking.done():
            await _finish(socket, _outcome(speaking.result()))
    finally:
        for task in (listening, speaking):
            task.cancel()
        await asyncio.wait({listening, speaking})


async def _listen(socket: WebSocket, session: Session) -> None:
    """Pass standard input and the terminal's sizes on; returns when the client is gone."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            message = await socket.receive_bytes()
            channel, content = message[:1], message[1:]
            if channel == bytes((RESIZE,)) and session.resize is not None:
                session.resize(*_size(content))
            elif session.input is None:
                continue
            elif channel == bytes((STDIN,)):
                await session.input.send(content)
            elif message == bytes((CLOSE, STDIN)):
                session.input.end()


def _size(content: bytes) -> tuple[int, int]:
    """Return columns and rows; zeros for what is no size."""
    try:
        size = json.loads(content)
        return int(size["Width"]), int(size["Height"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0, 0


async def _speak(socket: WebSocket, session: Session) -> int:
    """Send the program's output; return its exit status."""

    async def pump(channel: int, chunks: AsyncIterator[bytes]) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has gone; `_listen` sees it
            async for chunk in chunks:
                await socket.send_bytes(bytes((channel,)) + chunk)

    async with asyncio.TaskGroup() as group:
        for channel, chunks in session.outputs.items():
            group.create_task(pump(channel, chunks))
    return await session.status()


def _outcome(status: int) -> Json:
    if status == 0:
        return {"metadata": {}, "status": "Success"}
    causes = [{"reason": "ExitCode", "message": str(status)}]
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {status}",
        "reason": "NonZeroExitCode",
        "details": {"causes": causes},
    }


async def _finish(socket: WebSocket, status: Json) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_bytes(bytes((ERROR,)) + json.dumps(status).encode())
        await socket.close()
