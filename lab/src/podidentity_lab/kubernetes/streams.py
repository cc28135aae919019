"""`kubectl exec`, a program beside a container, and `kubectl port-forward`: each over one WebSocket.

Protocol of exec: the first byte of each message is its channel (kubernetes.io/docs/reference/using-api/api-concepts and
the remote-command subprotocol `v5.channel.k8s.io`, `v4` without the closing of single channels).
"""

import asyncio
import contextlib
import functools
import json
import os
import signal
from typing import Any, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect

from podidentity_lab.kubernetes import forwarding, places
from podidentity_lab.kubernetes.auth import Access, Authority
from podidentity_lab.kubernetes.kinds import Kinds
from podidentity_lab.kubernetes.places import Place
from podidentity_lab.kubernetes.statuses import ApiError, beyond_the_lab
from podidentity_lab.kubernetes.storage import Storage

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, ERROR, CLOSE = 0, 1, 2, 3, 255
CHUNK_BYTES = 32 * 1024
PIPE = asyncio.subprocess.PIPE
Json = dict[str, Any]


class Containers(Protocol):
    """What starts programs beside containers, and reaches their ports: the kubelets."""

    async def start_beside(
        self, namespace: str, pod: str, container: str, command: list[str]
    ) -> asyncio.subprocess.Process | None:
        """Start a program with three pipes; return None when the container does not run."""
        ...

    async def connect(self, namespace: str, pod: str, port: int) -> forwarding.Connection:
        """Connect to a port of a pod as from inside of it. Raises `OSError`."""
        ...


class NoContainers:
    """A cluster without kubelets: nothing runs."""

    async def start_beside(self, *_: object) -> None:
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
        """Run one program until it ends, or forward ports, or the client has gone."""
        offered = socket.scope["subprotocols"]
        if forwarding.PROTOCOL in offered:
            await self._forward(socket)
            return
        spoken = next((protocol for protocol in PROTOCOLS if protocol in offered), None)
        await socket.accept(subprotocol=spoken)
        try:
            process = await self._start(socket, spoken)
        except ApiError as error:
            await _finish(socket, error.body())
            return
        try:
            await _carry(socket, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _forward(self, socket: WebSocket) -> None:
        """Forward ports of a pod. A refusal has no text here: kubectl asks again by a POST, which the API refuses."""
        try:
            place = self._place(socket, "portforward")
            self._storage.get("pods", place.namespace, place.name)
        except ApiError:
            await socket.close()
            return
        await socket.accept(subprotocol=forwarding.PROTOCOL)
        connect = functools.partial(self._containers.connect, place.namespace or "", place.name)
        await forwarding.Forwarding(socket, connect).run()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await socket.close()

    def _place(self, socket: WebSocket, subresource: str) -> Place:
        """Return what a request is about, if it is a pod's `subresource` and the user may use it. Raises ApiError."""
        place = places.find(self._kinds, socket.url.path.strip("/"))
        if place.subresource != subresource:
            raise beyond_the_lab(f"{place.kind.plural}/{place.subresource}")
        user = self._authority.user(socket.headers.get("authorization", ""))
        self._authority.require(user, Access("create", "", f"pods/{subresource}", place.namespace or "", place.name))
        return place

    async def _start(self, socket: WebSocket, spoken: str | None) -> asyncio.subprocess.Process:
        if spoken is None:
            raise ApiError(400, f"this server speaks {' and '.join(PROTOCOLS)}")
        place = self._place(socket, "exec")
        pod = self._storage.get("pods", place.namespace, place.name)
        query = socket.query_params
        if query.get("tty") == "true":
            raise beyond_the_lab("terminals; leave out -t")
        container = query.get("container") or pod["spec"]["containers"][0]["name"]
        command = query.getlist("command")
        process = await self._containers.start_beside(place.namespace or "", place.name, container, command)
        if process is None:
            raise ApiError(400, f'container "{container}" of pod "{place.name}" does not run')
        return process


async def _carry(socket: WebSocket, process: asyncio.subprocess.Process) -> None:
    """Carry the three streams until the program has ended and all its output is sent, or the client has gone."""
    listening = asyncio.create_task(_listen(socket, process))
    speaking = asyncio.create_task(_speak(socket, process))
    try:
        await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
        if speaking.done():
            await _finish(socket, _outcome(speaking.result()))
    finally:
        for task in (listening, speaking):
            task.cancel()
        await asyncio.wait({listening, speaking})


async def _listen(socket: WebSocket, process: asyncio.subprocess.Process) -> None:
    """Pass standard input on; returns when the client is gone."""
    assert process.stdin is not None  # noqa: S101  # it was started with a pipe
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            message = await socket.receive_bytes()
            if message[:1] == bytes((STDIN,)):
                with contextlib.suppress(ConnectionError):
                    process.stdin.write(message[1:])
                    await process.stdin.drain()
            elif message == bytes((CLOSE, STDIN)):
                process.stdin.close()


async def _speak(socket: WebSocket, process: asyncio.subprocess.Process) -> int:
    """Send the program's output; return its exit status."""

    async def pump(stream: asyncio.StreamReader, channel: int) -> None:
        while chunk := await stream.read(CHUNK_BYTES):
            await socket.send_bytes(bytes((channel,)) + chunk)

    assert process.stdout is not None  # noqa: S101  # likewise
    assert process.stderr is not None  # noqa: S101  # likewise
    async with asyncio.TaskGroup() as group:
        group.create_task(pump(process.stdout, STDOUT))
        group.create_task(pump(process.stderr, STDERR))
    return await process.wait()


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
