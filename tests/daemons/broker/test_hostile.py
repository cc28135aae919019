"""The token proxy against clients that mean harm: on the raw TLS socket, and before it."""

import asyncio
import socket
import ssl

import pytest

from daemons.broker.harness import PATH, Broker, encoded, form, serving
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.broker.wiring import LONG_BODIES_OF_ONE_ADDRESS
from waiting import eventually

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"


async def exchange(broker: Broker, request: bytes) -> tuple[int, bytes]:
    """Send bytes on a connection of their own; return the status of the first answer and everything that came."""
    reader, writer = await asyncio.open_connection("localhost", broker.port, ssl=broker.tls)
    writer.write(request)
    try:
        async with asyncio.timeout(10):
            content = await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()
    return int(content.split(b" ", 2)[1]), content


def post(body: bytes, *headers: str) -> bytes:
    """Return a request with its length."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"{HEAD}{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET https://login.microsoftonline.com/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT login.microsoftonline.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_request_gets_no_token(request_bytes: bytes) -> None:
    """A malformed request gets a 4xx or the end of its connection, and the broker goes on serving."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        try:
            status, _ = await exchange(broker, request_bytes)
        except (asyncio.IncompleteReadError, ConnectionError):
            status = 400
        assert 400 <= status < 500
        assert broker.entra.forms == []
        assert (await broker.ask(broker.cluster.token("shop/cart"))).status_code == 200


async def test_tricks_with_the_body() -> None:
    """Assertions in two places, another encoding, a form in the query of the long path: nothing but 4xx."""
    async with serving() as broker:
        broker.cluster.grant("bank/vault")
        mine, stolen = broker.cluster.token("shop/cart"), broker.cluster.token("bank/vault")
        body = encoded(mine)
        for request in (
            post(body + b"&client_assertion=" + stolen.encode()),
            post(b"client_assertion=" + stolen.encode() + b"&" + body),
            post(body + b"&client%5Fassertion=" + stolen.encode()),
            post(body, "Content-Encoding: deflate"),
            post(body.replace(b"&", b";")),
            post(body + b"\r\n\r\n" + encoded(stolen)),
            post(body, f"Authorization: Bearer {stolen}", f"X-Client-Assertion: {stolen}"),
        ):
            status, content = await exchange(broker, request)
            assert 400 <= status < 500, content
        answer = await broker.client.post(PATH, params=form(stolen), data=form(mine))
        assert answer.status_code == 403
        assert broker.entra.forms == []


async def test_a_connection_without_a_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends its head byte by byte, or nothing, holds no place for long."""
    monkeypatch.setattr("podidentity.https.server.HEAD_SECONDS", 0.2)

    async with serving() as broker:
        reader, writer = await asyncio.open_connection("localhost", broker.port, ssl=broker.tls)
        writer.write(b"POST / HT")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            async with asyncio.timeout(10):
                await reader.readexactly(1)
        writer.transport.abort()


async def test_a_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a body does not arrive in time, the answer is 408 and the connection ends."""
    monkeypatch.setattr("podidentity.https.server.BODY_SECONDS", 0.2)

    async with serving() as broker:
        status, content = await exchange(broker, f"{HEAD}Content-Length: 100\r\n\r\nx".encode())
        assert status == 408
        assert b"connection: close" in content.lower()


async def test_a_client_that_was_answered_last_and_stays_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not say that it closes, too, as TLS wants it: its place and its body are given back all the same."""
    monkeypatch.setattr("podidentity.https.server.SHUTDOWN_SECONDS", 0.2)

    async with serving() as broker:
        connection = socket.create_connection(("localhost", broker.port))
        with broker.tls.wrap_socket(connection, server_hostname="localhost", do_handshake_on_connect=False) as client:
            await asyncio.to_thread(client.do_handshake)
            client.sendall(post(b"x", "Content-Encoding: deflate"))
            await asyncio.to_thread(client.recv, 1)
            await eventually(lambda: _count(broker) == 0, "the place is back", 20)


async def test_no_handshake_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without TLS ends, and gives its place back."""
    monkeypatch.setattr("podidentity.https.server.HANDSHAKE_SECONDS", 0.2)

    async with serving() as broker:
        idle = [await asyncio.open_connection("localhost", broker.port) for _ in range(3)]
        idle[0][1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: _count(broker) == 0, "places are back")
        for _, writer in idle:
            writer.transport.abort()


async def test_one_address_has_a_share_of_the_places() -> None:
    """Its further connections are closed, and counted; when it closes some, others are taken."""
    async with serving() as broker:
        held = []
        for _ in range(300):
            connection = socket.create_connection(("localhost", broker.port))
            connection.setblocking(False)
            held.append(connection)
        await eventually(lambda: _refused(broker) >= 300 - 256, "the rest was refused")
        for connection in held:
            connection.close()
        await eventually(lambda: _count(broker) == 0, "places are back")
        broker.cluster.grant("shop/cart")
        assert (await broker.ask(broker.cluster.token("shop/cart"))).status_code == 200


async def test_long_bodies_have_a_share() -> None:
    """An address that begins many gets 503 for more until they have ended; short ones are always read."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        head = f"{HEAD}Content-Length: 60000\r\n\r\nx".encode()
        connections = []
        for _ in range(LONG_BODIES_OF_ONE_ADDRESS):
            connections.append(await asyncio.open_connection("localhost", broker.port, ssl=broker.tls))
            connections[-1][1].write(head)

        async def status(request: bytes) -> int:
            return (await exchange(broker, request))[0]

        token = broker.cluster.token("shop/cart")
        padding = b"&x=" + b"y" * 20_000
        assert await status(post(encoded(token) + padding)) == 503
        assert await status(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n".encode()) == 503
        assert await status(post(encoded(token))) == 200
        for _, writer in connections:
            writer.transport.abort()
        await eventually(lambda: _count(broker) == 0, "places are back")
        assert await status(post(encoded(token) + padding)) == 200


async def test_another_name_fails_verification() -> None:
    """The broker has one certificate, whatever name a client sends, so verifying any other name fails."""
    async with serving() as broker:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(
                "localhost", broker.port, ssl=broker.tls, server_hostname="login.microsoftonline.com"
            )


async def test_draining_ends_connections_with_their_answers() -> None:
    """While the broker drains, each connection ends with its answer, so that clients connect to another replica."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")
        assert "connection" not in (await broker.ask(token)).headers
        broker.server.drain()
        answer = await broker.ask(token)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def _count(broker: Broker) -> float:
    return next(iter(broker.metrics.connections.collect())).samples[0].value


def _refused(broker: Broker) -> float:
    return next(iter(broker.metrics.refused_connections.collect())).samples[0].value
