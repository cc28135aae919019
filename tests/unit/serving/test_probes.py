"""The small pages, on real sockets."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from podidentity.errors import HostError
from podidentity.serving import probes
from podidentity.serving.probes import Page, serve_pages

PAGES = {"/healthz": lambda: Page(200, b"Active"), "/readyz": lambda: Page(503, b"not yet\n")}


async def fetch(port: int, sent: bytes) -> bytes:
    """Send bytes and read until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    received = await reader.read()
    writer.close()
    return received


@pytest.mark.parametrize(
    ("sent", "status", "body"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200", b"Active"),
        (b"GET /healthz?x=y HTTP/1.1\r\n\r\n", b"200", b"Active"),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", b"200", b""),
        (b"GET /readyz HTTP/1.1\r\n\r\n", b"503", b"not yet\n"),
        (b"GET /other HTTP/1.1\r\n\r\n", b"404", b"no such page; there are: /healthz, /readyz\n"),
        (b"POST /healthz HTTP/1.1\r\n\r\n", b"405", b"only GET is answered here\n"),
        (b"nonsense\r\n\r\n", b"400", b"bad request\n"),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n", b"400", b"bad request\n"),
    ],
)
def test_pages(sent: bytes, status: bytes, body: bytes) -> None:
    """Each page has its status and text; anything else is told what there is."""

    async def act() -> bytes:
        async with serve_pages(0, PAGES, "127.0.0.1") as port:
            return await fetch(port, sent)

    head, _, received = asyncio.run(act()).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == status
    assert received == body


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ports are open to pods: what is over the limit is refused and not kept waiting, and silence ends."""
    monkeypatch.setattr(probes, "_CONNECTION_LIMIT", 2)
    monkeypatch.setattr(probes, "_TIME_LIMIT_SECONDS", 2.0)

    async def act() -> None:
        async with asyncio.timeout(60), serve_pages(0, PAGES, "127.0.0.1") as port:
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            with contextlib.suppress(ConnectionResetError):
                assert await fetch(port, b"") == b""
            assert not any(reader.at_eof() for reader, _ in silent)
            for reader, writer in silent:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
                writer.close()
            assert await fetch(port, b"GET /healthz HTTP/1.1\r\n\r\n")

    asyncio.run(act())


def test_a_client_that_does_not_read_a_page_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large page is not held for it: the connection is reset when its time is up."""
    monkeypatch.setattr(probes, "_TIME_LIMIT_SECONDS", 1.0)
    pages = {"/metrics": lambda: Page(200, b"x" * 10_000_000)}

    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    async def act() -> None:
        async with asyncio.timeout(30), serve_pages(0, pages, "127.0.0.1") as port:
            with socket.socket() as deaf:
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                before = open_files()
                deaf.connect(("127.0.0.1", port))
                deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                while open_files() == before:  # noqa: ASYNC110  # accepting says nothing to anybody
                    await asyncio.sleep(0.01)
                while open_files() > before:  # noqa: ASYNC110  # nor does closing
                    await asyncio.sleep(0.01)

    asyncio.run(act())


def test_a_taken_port_is_one_sentence() -> None:
    """It names the port."""

    async def act(port: int) -> None:
        async with serve_pages(port, PAGES, "127.0.0.1"):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"Cannot listen on port {port}"):
            asyncio.run(act(port))
