"""`kubectl port-forward`: connections to a pod's ports, as SPDY streams within one WebSocket.

Subprotocol `SPDY/3.1+portforward.k8s.io` (KEP-4006), kubectl's own since 1.31. For each connection the client opens two
streams with the same `requestid`: one of `streamtype` error, then one of data. What is written to the first is an
error; its end says that the connection is over.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from podidentity_lab.kubernetes import spdy

PROTOCOL = "SPDY/3.1+portforward.k8s.io"
CHUNK_BYTES = 32 * 1024
CONNECT_SECONDS = 5.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[int], Awaitable[Connection]]
"""Connects to a port of the pod. Raises `OSError`."""


class Forwarding:
    """The connections of one WebSocket."""

    def __init__(self, socket: WebSocket, connect: Connect) -> None:
        self._socket = socket
        self._connect = connect
        self._session = spdy.Session()
        self._error_streams: dict[str, int] = {}
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._pumps: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Carry bytes until the client has gone."""
        try:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError, spdy.ProtocolError):
                while True:
                    for event in self._session.receive(await self._socket.receive_bytes()):
                        await self._take(event)
        finally:
            pumps = tuple(self._pumps)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in self._writers.values():
                writer.close()

    async def _take(self, event: spdy.Event) -> None:
        match event:
            case spdy.StreamOpening(stream, {"streamtype": "error", "requestid": request}):
                self._error_streams[request] = stream
                await self._send(self._session.reply(stream))
            case spdy.StreamOpening(stream, {"streamtype": "data", "port": port, "requestid": request}) if (
                port.isdecimal()
            ):
                await self._send(self._session.reply(stream))
                await self._open(stream, int(port), self._error_streams.pop(request, 0))
            case spdy.StreamOpening(stream, _):
                await self._send(spdy.reset(stream, spdy.PROTOCOL_ERROR))
            case spdy.StreamData(stream, content, last) if stream in self._writers:
                await _write(self._writers[stream], content, last=last)
            case spdy.StreamReset(stream) if stream in self._writers:
                self._writers[stream].close()
            case spdy.Ping(answer):
                await self._send(answer)

    async def _open(self, stream: int, port: int, errors: int) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await self._connect(port)
        except OSError as error:  # TimeoutError is one
            reason = os.strerror(error.errno) if error.errno else str(error) or "no answer"
            await self._send(spdy.data(errors, f"port {port} of the pod: {reason}".encode(), last=True))
            await self._send(spdy.data(stream, b"", last=True))
            return
        self._writers[stream] = writer
        pump = asyncio.create_task(self._pump(stream, reader, errors))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)

    async def _pump(self, stream: int, reader: asyncio.StreamReader, errors: int) -> None:
        """Send what the pod says, then the ends of both streams."""
        try:
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(CHUNK_BYTES):
                    await self._send(spdy.data(stream, chunk))
            await self._send(spdy.data(stream, b"", last=True))
            await self._send(spdy.data(errors, b"", last=True))
        finally:
            self._writers.pop(stream).close()

    async def _send(self, frame: bytes) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has gone; the reader sees it
            await self._socket.send_bytes(frame)


async def _write(writer: asyncio.StreamWriter, content: bytes, *, last: bool) -> None:
    """Pass data on. As long as the pod does not read it, nothing more is taken from the client."""
    with contextlib.suppress(ConnectionError, RuntimeError):
        writer.write(content)
        await writer.drain()
        if last and writer.can_write_eof():
            writer.write_eof()
