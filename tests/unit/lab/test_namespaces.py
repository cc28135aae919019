"""Sockets of the lab's servers."""

import asyncio
import contextlib
import socket

from podidentity_lab.linux.namespaces import listener


async def test_answers_do_not_wait_for_acknowledgements() -> None:
    """A client that delays its own would hold back what is written after an answer's head for 40 ms."""
    options: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted: socket.socket = writer.get_extra_info("socket")
        options.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    server_socket = listener("127.0.0.1", 0)
    async with await asyncio.start_server(serve, sock=server_socket):
        _, writer = await asyncio.open_connection(*server_socket.getsockname())
        with contextlib.closing(writer):
            assert await options != 0
