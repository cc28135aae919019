"""A request that changes something leaves the process only while this MIC leads, whatever it waited for before."""

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from podidentity.errors import FencedError, KubernetesError
from podidentity.kube.transport import Pool, Transport
from podidentity.mic.fencing import AZURE_WRITES, KUBERNETES_WRITES, UNSENT_SECONDS, fence


class Leadership:
    """Whether MIC leads, and what the server receives."""

    def __init__(self) -> None:
        self.now = True
        self.requests: list[str] = []
        self.may_answer = asyncio.Event()


@asynccontextmanager
async def client(
    leading: Leadership, methods: frozenset[str], *, is_kubernetes: bool
) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client with one connection, over our transport or httpx2's; the server notes each request's method."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                leading.requests.append(line.split()[0].decode())
                while await reader.readline() != b"\r\n":
                    pass
                await leading.may_answer.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    base = httpx2.URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    way: httpx2.AsyncBaseTransport = Transport(base, None, Pool(connections=1))
    if not is_kubernetes:
        way = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_connections=1), trust_env=False)
    async with server, httpx2.AsyncClient(base_url=base, transport=way) as http:
        http.event_hooks["request"].append(fence(lambda: leading.now, methods))
        yield http


async def play(
    story: Callable[[Leadership, httpx2.AsyncClient], Any], methods: frozenset[str] = KUBERNETES_WRITES
) -> None:
    """Run a story with a fenced client: as the one of Kubernetes, and as the one of Azure."""
    for is_kubernetes in (True, False):
        leading = Leadership()
        async with client(leading, methods, is_kubernetes=is_kubernetes) as http:
            await story(leading, http)


async def test_a_leader_writes() -> None:
    """Every write of a leader is sent."""

    async def story(leading: Leadership, http: httpx2.AsyncClient) -> None:
        leading.may_answer.set()
        for method in sorted(KUBERNETES_WRITES):
            assert (await http.request(method, "/")).status_code == 200
        assert leading.requests == sorted(KUBERNETES_WRITES)

    await play(story)


@pytest.mark.parametrize("method", sorted(KUBERNETES_WRITES))
async def test_who_does_not_lead_only_reads(method: str) -> None:
    """Without the lead a write raises a KubernetesError, which every writer handles; reads are still sent."""

    async def story(leading: Leadership, http: httpx2.AsyncClient) -> None:
        leading.now = False
        leading.may_answer.set()
        with pytest.raises(FencedError, match="was not sent: this MIC no longer leads"):
            await http.request(method, "/path")
        assert (await http.get("/")).status_code == 200
        assert leading.requests == ["GET"]

    assert issubclass(FencedError, KubernetesError)
    await play(story)


async def test_a_write_that_waited_for_its_connection_is_asked_again() -> None:
    """Of a write whose connection becomes free only after the lead is lost, not a byte is sent."""

    async def story(leading: Leadership, http: httpx2.AsyncClient) -> None:
        reading = asyncio.create_task(http.get("/slow"))
        while not leading.requests:  # noqa: ASYNC110  # the far side of a socket
            await asyncio.sleep(0)
        writing = asyncio.create_task(http.patch("/late", content=b"1"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not writing.done()
        leading.now = False
        leading.may_answer.set()
        await reading
        with pytest.raises(FencedError):
            await writing
        assert leading.requests == ["GET"]

    await play(story)


async def test_tokens_of_azure_may_be_asked_by_anybody() -> None:
    """A POST to Entra ID changes nothing and is always sent; a PATCH to ARM needs the lead."""

    async def story(leading: Leadership, http: httpx2.AsyncClient) -> None:
        leading.now = False
        leading.may_answer.set()
        assert (await http.post("/token")).status_code == 200
        with pytest.raises(FencedError):
            await http.patch("/machine")

    await play(story, AZURE_WRITES)


async def test_what_is_not_acknowledged_is_dropped_in_time() -> None:
    """On every connection, the kernel drops unacknowledged bytes before the next leader may begin."""

    async def story(leading: Leadership, http: httpx2.AsyncClient) -> None:
        leading.may_answer.set()
        for method in ("GET", "PATCH"):
            async with http.stream(method, "/") as answer:
                connection = answer.extensions["network_stream"].get_extra_info("socket")
                timeout_ms = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert timeout_ms == UNSENT_SECONDS * 1000

    await play(story)


@pytest.mark.parametrize("is_kubernetes", [True, False])
async def test_a_request_leaves_memory_with_its_answer(*, is_kubernetes: bool) -> None:
    """No collection is needed: MIC's old objects are collected once an hour, and it writes twice for each pod."""
    leading = Leadership()
    leading.may_answer.set()
    requests: list[weakref.ref[httpx2.Request]] = []

    async def note(request: httpx2.Request) -> None:
        requests.append(weakref.ref(request))

    async with client(leading, KUBERNETES_WRITES, is_kubernetes=is_kubernetes) as http:
        http.event_hooks["request"].append(note)
        gc.disable()
        try:
            assert (await http.patch("/a")).status_code == 200
            assert [request() for request in requests] == [None]
        finally:
            gc.enable()
