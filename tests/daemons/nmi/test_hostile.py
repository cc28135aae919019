"""Hostile bytes against the raw socket: each gets its status, and IMDS never sees what it should not.

The pod here has an identity, so that a request that slips through as a token request would be answered 200. What is
sent, and the status that each must get, is a table: `hostile.txt`.
"""

import asyncio
import fcntl
import socket
import struct
import termios

import pytest

import make
from daemons.nmi.corpus import HUNG_UP, PLAIN, QUERY, TOKEN_PATH, hostile, request
from daemons.nmi.harness import ADDRESS, Client, Serving, pod, serving
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.nmi.doors import SEND_BUFFER_BYTES
from podidentity.nmi.heads import HEAD_LIMIT_BYTES
from podidentity.nmi.places import Limits
from podidentity.nmi.settings import Settings
from waiting import eventually


def test_the_corpus_is_large() -> None:
    """At least 300 different hostile requests, and none twice."""
    head = [row.head for row in hostile()]
    assert len(head) == len(set(head)) >= 300


async def test_no_hostile_request_is_answered_or_passed_on() -> None:
    """Each hostile request gets the status of its row, on a connection of its own, and none reaches IMDS."""

    async def test() -> list[tuple[bytes, int, int]]:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            # The token is in the cache: whatever passes for a token request is answered 200 at once.
            assert (await nmi.ask()).status == 200
            answers = [(row.head, row.status, await status_of(nmi, row.head)) for row in hostile()]
            assert len(nmi.imds.requests) == 1
            return answers

    assert [row for row in await test() if row[1] != row[2]] == []


def test_every_row_is_a_refusal() -> None:
    """A row that expects anything but a client's error, or the end of the connection, is a mistake in the table."""
    assert {row.status for row in hostile()} <= {400, 404, 405, 408, 413, 414, 431, HUNG_UP}


async def status_of(nmi: Serving, head: bytes) -> int:
    """Send bytes, say that no more will come, and read the status; `HUNG_UP` when the connection ends without one."""
    client = await nmi.connect()
    try:
        client.writer.write(head)
        client.writer.write_eof()
        status = (await client.read(has_content=not head.startswith(b"HEAD "))).status
        assert await client.reader.read() == b"", "what follows the refused request was answered too"
    except (asyncio.IncompleteReadError, ConnectionError):
        return HUNG_UP
    else:
        return status
    finally:
        client.hang_up()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request(TOKEN_PATH + QUERY), 200),
        (request(f"{TOKEN_PATH}/{QUERY}"), 200),
        (request(TOKEN_PATH.replace("metadata", "MetaData") + QUERY), 200),
        (request(TOKEN_PATH + QUERY, *PLAIN, "Content-Type: application/x-www-form-urlencoded"), 200),
        (request(TOKEN_PATH + QUERY, *PLAIN, "Content-Length: 0"), 200),
        (request(TOKEN_PATH + QUERY, *PLAIN, "Accept: a", "Accept: b"), 200),
        (request(TOKEN_PATH + QUERY, "Host: x", "METADATA: TRUE"), 200),
        (request(TOKEN_PATH + QUERY, version="HTTP/1.0"), 200),
        (request(TOKEN_PATH), 400),
        (request(TOKEN_PATH, "Host: x"), 400),
        (request(TOKEN_PATH + QUERY, "Host: x"), 400),
        (request("/metadata/identity\\oauth2\\token" + QUERY), 400),
        (request("/metadata/identity/oauth2/tokenfoo" + QUERY), 400),
        (request("/metadata/xyz"), 404),
        (request(TOKEN_PATH + QUERY, method="POST"), 405),
        (request(TOKEN_PATH + QUERY, *PLAIN, *(f"X-{number}: y" for number in range(80))), 431),
        (b"G" * (HEAD_LIMIT_BYTES + 10), 431),
    ],
)
async def test_statuses(head: bytes, status: int) -> None:
    """Requests that real clients send are answered; a request that is refused gets the status that says why."""

    async def test() -> int:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            return await status_of_open(nmi, head)

    assert await test() == status


async def status_of_open(nmi: Serving, head: bytes) -> int:
    """Send bytes on a connection that stays open and read the status."""
    client = await nmi.connect()
    return (await client.send(head)).status


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_a_head_may_arrive_in_pieces(size: int) -> None:
    """A request is understood however small the pieces in which its head arrives."""

    async def test() -> int:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            client = await nmi.connect()
            head = request(TOKEN_PATH + QUERY)
            for start in range(0, len(head), size):
                client.writer.write(head[start : start + size])
                await client.writer.drain()
                await asyncio.sleep(0)
            return (await client.read()).status

    assert await test() == 200


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Pipelined requests are answered in their order, also when one of them is refused."""

    async def test() -> list[int]:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            client = await nmi.connect()
            client.writer.write(request(TOKEN_PATH + QUERY) + request("/metadata/xyz") + request(TOKEN_PATH + QUERY))
            return [(await client.read()).status for _ in range(3)]

    assert await test() == [200, 404, 200]


async def test_what_follows_a_refused_body_is_not_a_request() -> None:
    """Request smuggling: after a request with a body the connection ends, even when the body contains a request."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        smuggled = request(TOKEN_PATH + QUERY)
        for headers in (("Content-Length: 500",), ("Transfer-Encoding: chunked",)):
            client = await nmi.connect()
            answer = await client.send(request("/metadata/xyz", *PLAIN, *headers) + smuggled)
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert await client.has_ended()
        assert nmi.imds.requests == []


async def test_a_head_without_end_is_cut_off() -> None:
    """A head without an empty line gets 431 at the limit, with `Connection: close`."""
    async with serving() as nmi:
        client = await nmi.connect()
        answer = await client.send(b"GET / HTTP/1.1\r\nX: " + b"y" * HEAD_LIMIT_BYTES)
        assert (answer.status, answer.headers["connection"]) == (431, "close")


async def test_slow_and_idle_connections_end() -> None:
    """A head that does not come to its end gets 408; an idle connection is closed without an answer."""
    async with serving() as nmi:
        slow, idle = await nmi.connect(), await nmi.connect()
        slow.writer.write(b"GET /metadata")
        await slow.writer.drain()
        async with asyncio.timeout(5):
            while sum(bool(connection._buffer) for connection in nmi.listener.connections) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0)
        nmi.listener.second += 11
        check_all(nmi)
        assert (await slow.read()).status == 408
        nmi.listener.second += 120
        check_all(nmi)
        assert await idle.has_ended()


async def test_a_head_in_drops_ends_too() -> None:
    """The time for a head runs from its first byte: a client that sends a byte every few seconds gets 408 too."""
    async with serving() as nmi:
        client = await nmi.connect()
        for head in range(1, 4):
            client.writer.write(b"G")
            async with asyncio.timeout(5):
                while not any(len(connection._buffer) == head for connection in nmi.listener.connections):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            nmi.listener.second += 4
            check_all(nmi)
        assert (await client.read()).status == 408


async def test_a_client_that_does_not_read_ends() -> None:
    """A client that reads nothing is sent a few bytes, then nothing more, and is closed like an idle one."""
    loop = asyncio.get_running_loop()
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        assert (await nmi.ask()).status == 200
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each request arrives by itself
            deaf.connect((ADDRESS, nmi.port))
            deaf.setblocking(False)
            while not (full := [connection for connection in nmi.listener.connections if connection._full]):
                await loop.sock_sendall(deaf, request(TOKEN_PATH + QUERY))
                await asyncio.sleep(0)
            (stalled,) = full
            connection = stalled._transport.get_extra_info("socket")
            in_kernel = int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), "little")
            assert in_kernel <= 2 * SEND_BUFFER_BYTES
            assert stalled._transport.get_write_buffer_size() <= 2048  # one answer
            await loop.sock_sendall(deaf, b"GET ")
            while not stalled._buffer.endswith(b"GET "):  # noqa: ASYNC110
                await asyncio.sleep(0)
            unsent = []
            for _ in range(5):
                nmi.listener.second += 11
                check_all(nmi)
                unsent.append(stalled._transport.get_write_buffer_size())
            assert unsent == [unsent[0]] * 5
            nmi.listener.second += 120
            check_all(nmi)
            while stalled in nmi.listener.connections:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_client_that_is_gone_at_once_is_no_error() -> None:
    """A connection that was reset before NMI accepts it, and so has no address, is no error."""
    errors: list[object] = []

    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["message"]))
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        for _ in range(20):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.connect((ADDRESS, nmi.port))
        assert (await nmi.ask()).status == 200
    assert errors == []


def check_all(nmi: Serving) -> None:
    """Check the time limits of all connections, as the listener does each second."""
    for connection in tuple(nmi.listener.connections):
        connection.check_time()


async def test_a_client_that_sends_on_while_it_waits_is_cut_off() -> None:
    """A client that sends more than a head's limit while its request waits loses its connection."""
    async with serving() as nmi:
        nmi.cluster.add(pod())
        client: Client = await nmi.connect()
        client.writer.write(request(TOKEN_PATH + QUERY) + b"x" * (HEAD_LIMIT_BYTES + 1))
        assert await client.has_ended()


async def test_one_pod_cannot_take_every_connection() -> None:
    """An address has a limited number of connections: the next one is closed, and the open ones go on."""
    async with serving(limits=Limits(per_address=3)) as nmi:
        nmi.cluster.add(pod(), make.identity())
        clients = [await nmi.connect() for _ in range(3)]
        assert [(await client.send(request(TOKEN_PATH + QUERY))).status for client in clients] == [200] * 3
        assert await (await nmi.connect()).has_ended()
        assert (await clients[0].send(request(TOKEN_PATH + QUERY))).status == 200


async def test_a_few_pods_cannot_take_every_connection() -> None:
    """When all connections are taken, the address with most loses its idlest to a newcomer and cannot retake it."""
    async with serving(limits=Limits(per_address=4, in_all=6)) as nmi:
        nmi.cluster.add(pod(), make.identity())
        greedy = [await nmi.connect() for _ in range(4)]
        for client in greedy[1:] + greedy[:1]:
            assert (await client.send(request(TOKEN_PATH + QUERY))).status == 200
            nmi.listener.second += 1
        modest = [await nmi.connect(f"127.0.0.{2 + number}") for number in range(3)]
        assert [(await client.send(request(TOKEN_PATH + QUERY))).status for client in modest] == [404] * 3
        assert await greedy[1].has_ended()
        survivors = [greedy[0], greedy[2], greedy[3]]
        assert [(await client.send(request(TOKEN_PATH + QUERY))).status for client in survivors] == [200] * 3
        assert await (await nmi.connect()).has_ended()
        assert len(nmi.listener.connections) == 6


async def test_a_waiting_request_is_given_up_after_idle_connections() -> None:
    """Newcomers take a greedy pod's idle connections first, and then that of the request that has waited longest."""
    async with serving(limits=Limits(per_address=3, in_all=3)) as nmi:
        nmi.cluster.add(pod())  # no identity yet: whoever asks waits for it
        idle, *waiting = [await nmi.connect() for _ in range(3)]
        for number, client in enumerate(waiting, 1):
            nmi.listener.second = number
            client.writer.write(request(TOKEN_PATH + QUERY))
            await eventually(lambda number=number: len(nmi.listener.app._flow._waiting) == number, "it waits")  # type: ignore[misc]
        assert (await (await nmi.connect("127.0.0.2")).send(request(TOKEN_PATH + QUERY))).status == 404
        assert await idle.has_ended()
        first, second = (asyncio.ensure_future(client.has_ended()) for client in waiting)
        third = await nmi.connect("127.0.0.3")
        assert (await third.send(request(TOKEN_PATH + QUERY))).status == 404
        assert await first
        assert not second.done()
        second.cancel()


async def test_a_flood_of_different_heads_does_not_grow_memory() -> None:
    """After 3,000 different heads each memory has 1,024 entries at most, and every head was understood."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        client = await nmi.connect()
        for number in range(3000):
            assert (await client.send(request(TOKEN_PATH + QUERY, *PLAIN, f"X: {number}"))).status == 200
        assert len(nmi.listener.heads._by_head) <= 1024
        assert len(nmi.listener.heads._by_deciding_lines) <= 1024
        assert len(nmi.listener.heads._by_head_without_id) <= 1024


@pytest.mark.parametrize("target", ["/metadata/instance?api-version=2021-02-01&format=json", "/METADATA/versions"])
async def test_what_may_be_passed_on_is_rebuilt(target: str) -> None:
    """A request that is passed on reaches IMDS at the same path, without the client's own headers."""
    async with serving() as nmi:
        client = await nmi.connect()
        answer = await client.send(request(target, *PLAIN, "X-Secret: s", "Authorization: Bearer x", "Cookie: c"))
        assert answer.status == 200
        (imds_request,) = nmi.imds.requests
        assert imds_request.target.lower() == target.lower()
        assert imds_request.target.startswith("/metadata/")
        assert not {"x-secret", "authorization", "cookie"} & imds_request.headers.keys()


async def test_instance_metadata_can_be_blocked() -> None:
    """With --block-instance-metadata its paths get 403 and IMDS is not asked; other metadata is passed on."""
    async with serving(Settings("n1", block_instance_metadata=True)) as nmi:
        assert await status_of_open(nmi, request("/metadata/instance?api-version=2021-02-01")) == 403
        assert await status_of_open(nmi, request("/metadata/instance/compute/name", "Host: x")) == 403
        assert nmi.imds.requests == []
        assert await status_of_open(nmi, request("/metadata/versions")) == 200
