"""Who gets a place, a turn and an answer at NMI's listener, on real sockets and under the daemon's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import make
from daemons.nmi.corpus import QUERY, TOKEN_PATH, request
from daemons.nmi.harness import ADDRESS, Client, Serving, pod, serving
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.core.tokens.imds import ParsedRequest
from podidentity.nmi.answers import Answer
from podidentity.nmi.doors import QUEUES
from podidentity.nmi.heads import HEAD_LIMIT_BYTES
from podidentity.nmi.listener import NODE_LIMITS, Site
from podidentity.nmi.places import ANSWERS_BESIDE_OTHERS, ANSWERS_PER_TURN, PUT_OFF_PER_TURN, Limits
from podidentity.nmi.ports import Peer
from waiting import eventually

GREEDY = "127.0.0.2"
SHORT = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n"
PIPELINED = SHORT * (15_000 // len(SHORT))
TURNS_OF_A_NEWCOMER = 4
"""A new connection is accepted in one turn and read in the next; asyncio begins tasks of its own between them."""


@asynccontextmanager
async def listening(limits: Limits | None = None) -> AsyncIterator[Serving]:
    """Run NMI with a pod that has an identity and a token in the cache."""
    async with serving(limits=limits) as nmi:
        nmi.cluster.add(pod(), make.identity())
        assert (await nmi.ask()).status == 200
        yield nmi


def count_answers(nmi: Serving, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each answer adds the address of its client."""
    clients: list[str] = []
    original = nmi.listener.app._observer.note

    def note(request: ParsedRequest, address: str, answer: Answer, seconds: float) -> None:
        clients.append(address)
        original(request, address, answer, seconds)

    monkeypatch.setattr(nmi.listener.app._observer, "note", note)
    return clients


async def test_pipelined_requests_keep_no_neighbour_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 23,000 pipelined requests of one pod only a few hundred are answered before a neighbour's new connection."""
    async with listening() as nmi:
        clients = count_answers(nmi, monkeypatch)
        greedy = [await nmi.connect(GREEDY) for _ in range(40)]
        for client in greedy:
            client.writer.write(PIPELINED)
        await eventually(lambda: clients, "the first is answered")
        assert (await nmi.ask()).status == 200
        assert clients.index(ADDRESS) <= 12 * ANSWERS_PER_TURN
        assert len(clients) < 40 * len(PIPELINED) // len(SHORT)


async def test_a_newcomer_waits_for_few_turns_and_few_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside 250 pipelining connections of one pod, a new one is answered within four turns of the event loop."""
    async with listening() as nmi:
        clients = count_answers(nmi, monkeypatch)
        greedy = [await nmi.connect(GREEDY) for _ in range(250)]
        for client in greedy:
            client.writer.write(PIPELINED)
        await eventually(lambda: len(clients) > 2 * len(greedy), "all are answered, and wait for their next turns")
        for _ in range(10):
            with socket.create_connection((ADDRESS, nmi.port), 5) as newcomer:
                newcomer.sendall(request(TOKEN_PATH + QUERY))
                newcomer.setblocking(False)
                turns, answers_before = 0, len(clients)
                while not is_answered(newcomer):
                    await asyncio.sleep(0)
                    turns += 1
                assert turns <= TURNS_OF_A_NEWCOMER
                assert len(clients) - answers_before <= (turns + 1) * PUT_OFF_PER_TURN + 1


async def test_every_pipelined_request_is_answered_in_order() -> None:
    """Pipelined requests that are put off are not lost, also when the client has ended its side."""
    async with listening() as nmi:
        clients = [await nmi.connect(GREEDY) for _ in range(2 * ANSWERS_PER_TURN)]
        for client in clients:
            client.writer.write(SHORT * 5 + request("/metadata/xyz") + SHORT)
            client.writer.write_eof()
        for client in clients:
            answers = [await client.read() for _ in range(7)]
            assert [answer.status for answer in answers] == [400] * 5 + [404, 400]
            assert await client.has_ended()
        await eventually(lambda: not nmi.listener.connections, "all are ended")


async def test_what_is_sent_ahead_of_answers_stays_with_the_client() -> None:
    """However much a client pipelines, NMI holds little of it at a time, and answers all of it in the end."""
    async with listening() as nmi:
        client = await nmi.connect(GREEDY)
        client.writer.write(PIPELINED * 4)
        for _ in range(4 * len(PIPELINED) // len(SHORT)):
            assert (await client.read()).status == 400
            assert nmi_buffer(nmi) <= 2 * HEAD_LIMIT_BYTES
        assert (await nmi.ask()).status == 200


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_head_that_arrives_in_single_bytes_is_looked_through_once(pieces: int) -> None:
    """Bytes that were searched for the head's end are not searched again, so work grows only with the head's length."""
    async with listening() as nmi:
        client = await nmi.connect()
        head = request(TOKEN_PATH + QUERY, "Host: a", "Metadata: true", "X: " + "y" * 400)
        for start in range(0, len(head) - pieces, pieces):
            client.writer.write(head[start : start + pieces])
            await eventually(lambda end=start + pieces: nmi_buffer(nmi) == end, "it has arrived")  # type: ignore[misc]
            (connection,) = (candidate for candidate in nmi.listener.connections if candidate._buffer)
            assert connection._searched >= len(connection._buffer) - 3
        client.writer.write(head[start + pieces :])
        assert (await client.read()).status == 200


def is_reset(connection: socket.socket) -> bool:
    """Whether NMI has ended a connection."""
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


def nmi_buffer(nmi: Serving) -> int:
    """Return how many bytes of unfinished heads NMI holds."""
    return sum(len(candidate._buffer) for candidate in nmi.listener.connections)


async def waiting_half_closed(nmi: Serving, version: str = "HTTP/1.1") -> Client:
    """Ask for a token that has to be waited for, end our side, and let the time pass in which most are answered."""
    nmi.cluster.assigned_identities.clear()
    nmi.cluster.notify()
    client = await nmi.connect()
    client.writer.write(request(TOKEN_PATH + QUERY, version=version))
    await eventually(lambda: len(nmi.listener.app._flow._waiting), "it waits")
    client.writer.write_eof()
    connection = next(candidate for candidate in nmi.listener.connections if candidate._task)
    await eventually(lambda: connection.half_closed, "its end has arrived")
    for _ in range(5):
        nmi.listener.second += 1
        connection.check_time()
    return client


def new_pod(nmi: Serving) -> None:
    """Put a pod that was never assigned anything in the place of the one with an identity."""
    nmi.cluster.remove(nmi.cluster.pods[0])
    nmi.cluster.add(pod(uid="another"))


async def test_a_half_closed_client_that_waits_long_is_asked_whether_it_is_there() -> None:
    """Such a client gets one `100 Continue`, which clients skip, and then its answer."""
    async with listening() as nmi:
        new_pod(nmi)
        client = await waiting_half_closed(nmi)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        nmi.cluster.assign(nmi.cluster.pods[0], make.identity())
        assert (await client.read()).status == 200
        assert await client.has_ended()


async def test_http_1_0_gets_no_interim_answer() -> None:
    """A client of HTTP/1.0, which has no interim answers, gets the final answer alone."""
    async with listening() as nmi:
        new_pod(nmi)
        client = await waiting_half_closed(nmi, "HTTP/1.0")
        nmi.cluster.assign(nmi.cluster.pods[0], make.identity())
        assert (await client.read()).status == 200


async def test_what_a_client_has_left_takes_no_place_from_its_next_try() -> None:
    """At its limit an address first loses a connection that its client has ended, so an SDK's next try gets a place."""
    async with listening(Limits(per_address=2)) as nmi:
        new_pod(nmi)
        abandoned = await waiting_half_closed(nmi)
        await abandoned.reader.readuntil(b"\r\n\r\n")
        nmi.cluster.assign(nmi.cluster.pods[0], make.identity())
        clients = [await nmi.connect() for _ in range(2)]
        assert [(await client.ask()).status for client in clients] == [200, 200]
        assert len(nmi.listener.connections) <= 2


async def test_programs_of_the_node_lock_no_pod_out() -> None:
    """All of 127.0.0.0/8 is one client, with places of its own; pods' places stay free, and newcomers get in."""
    async with listening() as nmi:
        nmi.listener.places.limits = Limits(per_address=8, in_all=8)
        connections = []
        for number in range(NODE_LIMITS.in_all + 44):
            connection = socket.socket()
            connection.bind((f"127.1.{number // 250}.{1 + number % 250}", 0))
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (ADDRESS, nmi.node_port))
            connections.append(connection)
        await eventually(lambda: any(map(is_reset, connections)), "places are given up")
        await eventually(lambda: len(nmi.listener.connections) == NODE_LIMITS.in_all, "as many are left as may be")
        assert (await nmi.ask()).status == 200
        assert (await (await nmi.connect_as_node()).ask("/metadata/xyz")).status == 404
        for connection in connections:
            connection.close()


async def test_a_turn_has_room_for_everybody() -> None:
    """However many clients have used up their shares, another one gets an answer in the same turn."""
    async with listening() as nmi:
        shares = nmi.listener.shares
        for client in range(50):
            while shares.take(f"10.0.0.{client}"):
                pass
        assert shares.take("10.1.0.1")
        assert not shares.take("10.0.0.1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert shares.take("10.0.0.1")


async def test_a_client_that_is_alone_has_more_of_a_turn() -> None:
    """A client gets many answers in a turn of the event loop until another one asks, and again a while after that."""
    async with listening() as nmi:
        shares = nmi.listener.shares

        async def count(client: str) -> int:
            answers = 0
            while shares.take(client):
                answers += 1
            await asyncio.sleep(0)  # the next turn
            await asyncio.sleep(0)
            return answers

        for _ in ("at first", "again"):
            shares.begin_second()
            shares.begin_second()
            await count(ADDRESS)
            assert [await count(ADDRESS), await count(ADDRESS)] == [ANSWERS_PER_TURN] * 2
            await count(GREEDY)
            assert [await count(ADDRESS), await count(ADDRESS)] == [ANSWERS_BESIDE_OTHERS] * 2


async def test_an_answer_that_breaks_is_500_and_ends_its_own_connection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bug in one answer its connection ends with 500, pipelined requests included; other connections go on."""
    async with listening() as nmi:
        other = await nmi.connect()
        flow = nmi.listener.app._flow
        step = flow.step

        def broken(request: object, peer: Peer, lookup: object = None) -> object:
            if peer.address == GREEDY:
                raise ValueError("a bug")
            return step(request, peer, lookup)  # type: ignore[arg-type]

        monkeypatch.setattr(flow, "step", broken)
        client = await nmi.connect(GREEDY)
        client.writer.write(request(TOKEN_PATH + QUERY) * 2)
        assert (await client.read()).status == 500
        assert await client.has_ended()
        assert (await other.ask()).status == 200


async def test_a_newcomer_does_not_wait_a_turn_for_each_connection_before_it() -> None:
    """NMI accepts several connections in one turn of the event loop: the last of 64 is answered within 32 turns."""
    queue = 64

    async with listening() as nmi:

        def connect() -> socket.socket:
            connection = socket.create_connection((ADDRESS, nmi.port), 5)
            connection.sendall(SHORT)
            connection.setblocking(False)
            return connection

        connections = [connect() for _ in range(queue)]  # the event loop does not run meanwhile
        turns = 0
        while not is_answered(connections[-1]):
            await asyncio.sleep(0)
            turns += 1
        assert turns < queue / 2
        for connection in connections:
            connection.close()


async def test_a_pod_that_connects_all_the_time_keeps_no_other_in_its_queue() -> None:
    """A pod's connection does not wait behind 400 of another pod that came first; those are answered later."""
    async with listening() as nmi:
        nmi.listener.places.limits = Limits(per_address=1000)
        site = Site(nmi.listener.app.answer, lambda _, client: Peer(client[0], port=client[1]), queues=QUEUES)
        port = await nmi.listener.listen(ADDRESS, 0, site)

        def connect(source: str, head: bytes) -> socket.socket:
            connection = socket.create_connection((ADDRESS, port), 5, (source, 0))
            connection.sendall(head)
            connection.setblocking(False)
            return connection

        connections = [connect(GREEDY, SHORT) for _ in range(400)]  # the event loop does not run meanwhile
        neighbour = connect(ADDRESS, request(TOKEN_PATH + QUERY))
        turns = 0
        while not is_answered(neighbour):
            await asyncio.sleep(0)
            turns += 1
        assert turns <= TURNS_OF_A_NEWCOMER
        assert not is_answered(connections[4 * TURNS_OF_A_NEWCOMER])
        await eventually(lambda: all(map(is_answered, connections)), "its own are answered, too")
        for connection in (*connections, neighbour):
            connection.close()


def is_answered(connection: socket.socket) -> bool:
    """Whether an answer has arrived."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
