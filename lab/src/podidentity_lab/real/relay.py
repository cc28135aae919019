"""Carries bytes between a socket on the host's side and an address in the lab."""

import asyncio
import contextlib
import socket

CHUNK_BYTES = 64 * 1024


async def serve(listener: socket.socket, address: str, port: int) -> None:
    """Relay every connection to `address`:`port` until cancelled."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()  # the client sees a connection that ends, as with a server that is down
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(_carry(reader, onward[1]))
            group.create_task(_carry(onward[0], writer))

    server = await asyncio.start_server(relay, sock=listener)
    async with server:
        await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    writer.close()
