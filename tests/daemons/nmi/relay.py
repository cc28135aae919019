"""A way to a server that tests can watch and cut: bytes in both directions, as they come."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

ADDRESS = "127.0.0.1"
_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: closing sends RST


class Relay:
    """Counts connections, and ends them when a test says so."""

    def __init__(self) -> None:
        self.count = 0
        self.clients: set[asyncio.StreamWriter] = set()
        self._fragile: set[asyncio.StreamWriter] = set()
        self._port = 0

    @contextlib.asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[int]:
        """Relay to a port during the body; yield the port to connect to."""
        self._port = port
        server = await asyncio.start_server(self._serve, ADDRESS, 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        for client in self.clients:
            client.transport.abort()

    def cut_at_next_request(self, *, reset: bool) -> None:
        """Close the connections that there are, or reset them, when the next bytes of a request have arrived."""
        self._fragile = set(self.clients)
        for client in self.clients:
            if reset:
                client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        self.clients.add(writer)
        far_reader, far_writer = await asyncio.open_connection(ADDRESS, self._port)
        answers = asyncio.ensure_future(_pass_answers(far_reader, writer))
        with contextlib.suppress(ConnectionError):
            while (data := await reader.read(65536)) and writer not in self._fragile:
                far_writer.write(data)
        answers.cancel()
        writer.transport.abort()
        far_writer.transport.abort()
        self.clients.discard(writer)


async def _pass_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()
