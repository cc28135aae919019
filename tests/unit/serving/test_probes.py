"""The pages for probes and metrics, on real sockets."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from podidentity.errors import HostError
from podidentity.nmi.tcp_info import has_unaccepted
from podidentity.serving import probes
from podidentity.serving.probes import Page, listen_for_pages, serve_pages, serve_pages_on

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
async def test_pages(sent: bytes, status: bytes, body: bytes) -> None:
    """Each page has its status and text; any other request is answered with an error."""
    async with serve_pages(0, PAGES, "127.0.0.1") as port:
        response = await fetch(port, sent)
    head, _, received = response.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == status
    assert received == body


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few connections are allowed; of loopback's addresses, only 127.0.0.1 counts as this host's."""
    monkeypatch.setattr(probes, "_CONNECTIONS", 6)
    monkeypatch.setattr(probes, "_CONNECTIONS_OF_ONE_ADDRESS", 4)
    monkeypatch.setattr(probes, "_is_local", lambda peer, _: peer == "127.0.0.1")


async def hold(opened: contextlib.AsyncExitStack, port: int, address: str) -> asyncio.StreamReader:
    """Open a connection from an address and send nothing, until `opened` is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    opened.callback(writer.close)
    return reader


async def ended(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of a connection."""
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    return True


@pytest.mark.usefixtures("few")
async def test_what_is_over_a_share_costs_whoever_has_it() -> None:
    """An address over its share loses its own oldest connection.

    When all places are taken, the address with the most connections loses one, never a newcomer.
    """
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as opened:
        port = await opened.enter_async_context(serve_pages(0, PAGES, "127.0.0.1"))
        greedy = [await hold(opened, port, "127.0.0.2") for _ in range(5)]
        assert await ended(greedy[0])
        modest = [await hold(opened, port, f"127.0.0.{number}") for number in (3, 4, 5)]
        assert await ended(greedy[1])
        own = [await fetch(port, b"GET /healthz HTTP/1.1\r\n\r\n") for _ in range(3)]
        assert [answer.split(b" ")[1] for answer in own] == [b"200"] * 3
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.6", 0))
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert await ended(greedy[2])
        assert not any(one.at_eof() for one in (*greedy[3:], *modest))


async def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request is closed after the time limit."""
    monkeypatch.setattr(probes, "_TIME_LIMIT_SECONDS", 0.2)
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as opened:
        port = await opened.enter_async_context(serve_pages(0, PAGES, "127.0.0.1"))
        assert await ended(await hold(opened, port, "127.0.0.1"))


@pytest.mark.usefixtures("few")
async def test_strangers_get_their_own_pages() -> None:
    """Other hosts get other pages than this host; a large page is made for them once a second, however many ask."""
    made = []

    def large() -> Page:
        made.append(1)
        return Page(200, b"x" * 5000)

    strangers = {"/healthz": lambda: Page(200, b"yes"), "/metrics": large}
    async with asyncio.timeout(60), serve_pages(0, PAGES, "127.0.0.1", strangers=strangers) as port:
        answers = []
        for address, path in [("127.0.0.1", "healthz"), ("127.0.0.2", "healthz"), *[("127.0.0.2", "metrics")] * 3]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            writer.write(b"GET /%b HTTP/1.1\r\n\r\n" % path.encode())
            answers.append((await reader.read()).partition(b"\r\n\r\n")[2])
            writer.close()
    assert answers == [b"Active", b"yes", *[b"x" * 5000] * 3]
    assert 1 <= len(made) < 3


@pytest.mark.usefixtures("few")
async def test_strangers_come_in_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stranger the next one of its queue waits in the kernel; this host's own connections wait for nothing."""
    monkeypatch.setattr(probes, "_PAUSE_SECONDS", 3600)
    (listening, *others) = listen_for_pages(0, "127.0.0.1")
    port = listening.getsockname()[1]
    request = b"GET /healthz HTTP/1.1\r\n\r\n"
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as opened:
        await opened.enter_async_context(serve_pages_on((listening, *others), PAGES))
        for _ in range(3):
            assert (await fetch(port, request)).startswith(b"HTTP/1.1 200")
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        writer.write(request)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        waiting = socket.create_connection(("127.0.0.1", port), 5, source_address=("127.0.0.2", 0))
        for _ in range(20):
            await asyncio.sleep(0)
        assert has_unaccepted(listening)
        waiting.close()
        writer.close()


async def test_all_addresses_are_served() -> None:
    """One port serves IPv4 and IPv6."""
    async with asyncio.timeout(60), serve_pages(0, PAGES) as port:
        answers = []
        for address in ("127.0.0.1", "::1"):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            answers.append((await reader.read()).partition(b"\r\n\r\n")[2])
            writer.close()
    assert answers == [b"Active", b"Active"]


async def test_a_client_that_does_not_read_a_page_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection of a client that does not read a large page is closed when its time is up."""
    monkeypatch.setattr(probes, "_TIME_LIMIT_SECONDS", 1.0)
    pages = {"/metrics": lambda: Page(200, b"x" * 10_000_000)}

    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

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


async def test_a_taken_port_is_one_sentence() -> None:
    """The error names the port."""

    async def act(port: int) -> None:
        async with serve_pages(port, PAGES, "127.0.0.1"):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"port {port} cannot be listened on"):
            await act(port)
