"""A proxy on loopback that leads every public name to servers of a test, for HTTPS_PROXY."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future

START_SECONDS = 60.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.contextmanager
def tunnel(ports: Mapping[str, int]) -> Iterator[str]:
    """Carry CONNECT to `ports` by host name and yield the proxy's address. Any other name is refused with 502."""
    ready: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            host = head.split(b" ")[1].rpartition(b":")[0].decode()
            if host not in ports:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
            else:
                server = await asyncio.open_connection("127.0.0.1", ports[host])
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await asyncio.gather(carry(reader, server[1]), carry(server[0], writer))

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while part := await reader.read(65_536):
                writer.write(part)
                await writer.drain()

    async def run() -> None:
        end = asyncio.Event()
        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        ready.set_result((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), end))
        await end.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    port, loop, end = ready.result(START_SECONDS)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(START_SECONDS)
