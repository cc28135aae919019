"""The way of bytes to the API server: connections kept and given up, and never another's answer."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from daemons.kube.scripted import ScriptedServer
from daemons.mic.conftest import NoLogs
from podidentity.kube import transport
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.transport import DEFAULT_POOL, Pool, Transport
from podidentity_lab.kubernetes import Kubernetes
from waiting import eventually

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Far:
    """A server that answers each request with the next of `answers`; None: never."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.heads: list[bytes] = []
        self.connections: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections.append(writer)
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0) if self.answers else OK
                if answer is None:
                    await asyncio.Event().wait()
                    continue
                writer.write(answer)
                if b"\r\n\r\n" not in answer or b"close" in answer or b"ontent-" not in answer:
                    writer.close()
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.transport.abort()


@asynccontextmanager
async def client(far: Far, pool: Pool = DEFAULT_POOL) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of that server."""
    server = await asyncio.start_server(far.serve, "127.0.0.1", 0)
    base = httpx2.URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    own_transport = Transport(base, None, pool)
    try:
        async with httpx2.AsyncClient(base_url=base, transport=own_transport, timeout=30, trust_env=False) as http:
            yield http
    finally:
        server.close()
        for writer in far.connections:
            writer.transport.abort()


async def test_a_connection_is_kept() -> None:
    """Requests that follow each other share one connection, and each gets its own answer."""
    far = Far(OK, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    async with client(far) as http:
        assert [(await http.get(path)).status_code for path in ("/a", "/b", "/c")] == [200, 404, 200]
    assert len(far.connections) == 1
    assert [head.split()[1] for head in far.heads] == [b"/a", b"/b", b"/c"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        OK + OK,
        OK + b"more",
    ],
)
async def test_a_connection_that_ends_or_says_more_is_not_used_again(answer: bytes) -> None:
    """Bytes after the answer belong to no request, so the connection is not used for the next one."""
    far = Far(answer)
    async with client(far) as http:
        assert (await http.get("/first")).text == "ok"
        assert (await http.get("/second")).text == "ok"
    assert len(far.connections) == 2


async def test_a_connection_that_spoke_unasked_is_not_used_again() -> None:
    """Bytes that arrive before a request would be taken for its answer, so that connection is not used again."""
    far = Far(OK)
    async with client(far) as http:
        await http.get("/first")
        far.connections[0].write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        connections = http._transport._connections  # type: ignore[attr-defined]
        await eventually(lambda: not connections, "the end of the connection")
        assert (await http.get("/second")).text == "ok"


async def test_an_answer_that_nobody_waits_for_is_never_anothers() -> None:
    """A cancelled request closes its connection, so that its answer is never read as another request's."""
    far = Far(None)
    async with client(far) as http:
        call = asyncio.create_task(http.get("/slow"))
        await eventually(lambda: far.heads, "the request")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await http.get("/next")).text == "ok"
    assert len(far.connections) == 2


async def test_a_body_left_unread_is_never_anothers() -> None:
    """Closing an answer before its end closes the connection, so that its rest is never read as another's answer."""
    far = Far(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
    async with client(far) as http:
        async with http.stream("GET", "/half"):
            pass
        assert (await http.get("/next")).text == "ok"
    assert len(far.connections) == 2


async def test_a_connection_that_was_closed_meanwhile_costs_nothing() -> None:
    """When the server has closed an idle connection, the next request uses a new one and does not fail."""
    far = Far()
    async with client(far) as http:
        await http.get("/first")
        far.connections[0].close()
        connections = http._transport._connections  # type: ignore[attr-defined]
        await eventually(lambda: not connections, "the end of the connection")
        assert (await http.get("/second")).text == "ok"


@pytest.mark.parametrize("pool", [Pool(idle_seconds=0.0), Pool(age_seconds=0.0), Pool(idle=0)])
async def test_an_old_connection_is_not_trusted(pool: Pool) -> None:
    """What was idle for long is not used again (load balancers drop it silently), nor what is old, or one too many."""
    far = Far()
    async with client(far, pool) as http:
        await http.get("/first")
        await http.get("/second")
    assert len(far.connections) == 2


async def test_unused_connections_are_closed_in_time() -> None:
    """A connection that nobody needs any more does not keep a place of the server's."""
    far = Far()
    async with client(far, Pool(idle_seconds=0.01)) as http:
        await asyncio.gather(http.get("/first"), http.get("/second"))
        connections = http._transport._connections  # type: ignore[attr-defined]
        await eventually(lambda: not connections, "the end of both")
        assert (await http.get("/third")).text == "ok"
        await eventually(lambda: not connections, "the end of the third")


async def test_a_transport_that_retires_finishes_what_is_under_way() -> None:
    """Unused connections are closed at once, the others with their answers, and none is used a second time."""
    far = Far(OK, None)
    async with client(far) as http:
        await http.get("/idle")
        slow = asyncio.create_task(http.get("/slow"))
        await eventually(lambda: len(far.heads) == 2, "the slow request")
        await http.get("/beside")
        own = http._transport
        assert isinstance(own, Transport)
        own.retire()
        await eventually(lambda: len(own._connections) == 1, "the end of what is unused")
        far.connections[0].write(OK)
        assert (await slow).text == "ok"
        await eventually(lambda: not own._connections, "the end of what was used")
        assert (await http.get("/next")).text == "ok"
    assert len(far.connections) == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * transport.HEAD_LIMIT_BYTES * 2,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_an_error(answer: bytes) -> None:
    """Cut off, ambiguous, endless or no HTTP at all: an error of httpx2's, and the connection is given up."""
    far = Far(answer)
    async with client(far) as http:
        with pytest.raises(httpx2.RemoteProtocolError):
            await http.get("/")
        assert (await http.get("/next")).text == "ok"
    assert len(far.connections) == 2


async def test_interim_answers_are_passed_over() -> None:
    """Interim answers (102, 103), which a proxy may send first, are skipped."""
    far = Far(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK)
    async with client(far) as http:
        answer = await http.get("/")
    assert (answer.status_code, "link" in answer.headers, answer.text) == (200, False, "ok")


async def test_waiting_has_an_end() -> None:
    """A request fails after a limited time, whether it waits for a free connection or for its answer."""
    far = Far(None)
    async with client(far, Pool(connections=1)) as http:
        call = asyncio.create_task(http.get("/"))
        await eventually(lambda: far.heads, "the request")
        with pytest.raises(httpx2.PoolTimeout):
            await http.get("/", timeout=httpx2.Timeout(30, pool=0.05))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        far.answers.append(None)
        with pytest.raises(httpx2.ReadTimeout):
            await http.get("/", timeout=httpx2.Timeout(30, read=0.05))
        assert (await http.get("/")).text == "ok"


async def test_a_server_that_is_not_there_is_an_error() -> None:
    """A connection that the server refuses raises ConnectError."""
    far = Far()
    async with client(far) as http:
        pass
    base = http.base_url
    async with httpx2.AsyncClient(base_url=base, transport=Transport(base, None), trust_env=False) as http:
        with pytest.raises(httpx2.ConnectError):
            await http.get("/")


async def test_a_long_body_waits_for_its_reader() -> None:
    """A limited part of a body that is read slowly is buffered, and in the end all of it arrives."""
    size = transport.BUFFER_BYTES * 12
    far = Far(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    async with client(far) as http, http.stream("GET", "/") as answer:
        connection = next(iter(http._transport._connections))  # type: ignore[attr-defined]
        await eventually(lambda: connection._buffered > transport.BUFFER_BYTES, "a full buffer")
        read = 0
        async for part in answer.aiter_bytes():
            assert len(part) < transport.BUFFER_BYTES * 3
            read += len(part)
    assert read == size


async def test_another_server_never_sees_a_token() -> None:
    """A URL that names another host, whoever made it, goes nowhere; a redirect is an answer and nothing else."""
    redirect = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:1/\r\nContent-Length: 0\r\n\r\n"
    far = Far(redirect)
    async with client(far) as http:
        assert (await http.get("/")).status_code == 302
        with pytest.raises(httpx2.UnsupportedProtocol):
            await http.get("http://127.0.0.2:1/")


async def test_no_header_breaks_out_of_its_line() -> None:
    """A header with a line break in it is refused: the rest of it would be read as another header or request."""
    far = Far()
    async with client(far) as http:
        for value in (b"a\r\nX: y", b"a\nb", b"a\0b"):
            with pytest.raises(httpx2.LocalProtocolError):
                await http.get("/", headers=[(b"Authorization", value)])
    assert far.heads == []


async def test_a_certificate_of_another_authority_is_refused() -> None:
    """The way is encrypted, and the server is who the CA says, under the name that was asked for."""
    kubernetes, other_kubernetes = Kubernetes(NoLogs()), Kubernetes(NoLogs())
    server = await asyncio.start_server(Far().serve, "127.0.0.1", 0, ssl=kubernetes.tls_context())
    port = server.sockets[0].getsockname()[1]

    async def get(host: str, ca_pem: bytes) -> str:
        base, tls = httpx2.URL(f"https://{host}:{port}"), ssl.create_default_context(cadata=ca_pem.decode())
        async with httpx2.AsyncClient(base_url=base, transport=Transport(base, tls), trust_env=False) as http:
            return (await http.get("/")).text

    async with server:
        assert await get("localhost", kubernetes.ca_pem) == "ok"
        for host, ca_pem in (("localhost", other_kubernetes.ca_pem), ("127.0.0.9", kubernetes.ca_pem)):
            with pytest.raises(httpx2.ConnectError):
                await get(host, ca_pem)


async def test_a_proxy_of_the_environment_is_gone_through(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A proxy named by the environment is used, as a laptop may need it to reach the cluster."""
    path = server.write_kubeconfig(tmp_path_factory.mktemp("kube"))
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{server.port}")
    async with open_client(find_cluster(str(path))) as http:
        assert not isinstance(http._transport, Transport)
    monkeypatch.delenv("ALL_PROXY")
    async with open_client(find_cluster(str(path))) as http:
        assert isinstance(http._transport, Transport)
