"""The small pages, on real sockets."""

import asyncio
import socket

import pytest

from podidentity.errors import HostError
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


def test_a_taken_port_is_one_sentence() -> None:
    """It names the port."""

    async def act(port: int) -> None:
        async with serve_pages(port, PAGES, "127.0.0.1"):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"Cannot listen on port {port}"):
            asyncio.run(act(port))
