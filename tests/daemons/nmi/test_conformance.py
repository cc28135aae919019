"""What RFC 9110 and RFC 9112 ask of a server, on the raw socket: the table docs/reference/http-conformance.md."""

import ast
import asyncio
import re
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

import make
from daemons.nmi.corpus import PLAIN, QUERY, TOKEN_PATH, request
from daemons.nmi.harness import Answer, pod, serving
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs/reference/http-conformance.md"
GOOD = TOKEN_PATH + QUERY


async def exchange(head: bytes, *, has_content: bool = True) -> tuple[Answer, bool]:
    """Send bytes to an NMI that has a token cached; return its first answer, and whether the connection then ends."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        assert (await nmi.ask()).status == 200
        client = await nmi.connect()
        client.writer.write(head)
        answer = await client.read(has_content=has_content)
        try:
            async with asyncio.timeout(0.2):
                return answer, await client.has_ended()
        except TimeoutError:
            return answer, False


def test_each_row_names_a_test_that_is_there() -> None:
    """Every row of the table names at least one test, and each test that it names exists."""
    names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TABLE.read_text())
    assert len(names) >= 20
    for path, name in names:
        functions = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert name in functions, f"{path} has no {name}"
    rows = [line for line in TABLE.read_text().splitlines() if re.match(r"\| \d", line)]
    assert [row for row in rows if "`tests/" not in row] == []


@pytest.mark.parametrize("option", ["close", "Close", "keep-alive, close", "x,close,y", " close "])
async def test_close_is_honoured(option: str) -> None:
    """A request with `Connection: close` is answered, the answer says `close` as well, and the connection ends."""
    answer, is_closed = await exchange(request(GOOD, *PLAIN, f"Connection: {option}"))
    assert (answer.status, answer.headers["connection"], is_closed) == (200, "close", True)


async def test_close_is_honoured_when_it_is_remembered() -> None:
    """`close` also counts in a request that NMI knows from memory, by the same bytes or all but the request ID."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        for number in (1, 1, 2, 2):
            line = f"x-ms-client-request-id: {number}"
            client = await nmi.connect()
            answer = await client.send(request(GOOD, *PLAIN, line, "Connection: close"))
            assert (answer.status, answer.headers["connection"], await client.has_ended()) == (200, "close", True)
            other = await nmi.connect()
            for _ in range(2):
                assert "connection" not in (await other.send(request(GOOD, *PLAIN, line))).headers


async def test_nothing_after_close_is_processed() -> None:
    """A second request after one with `close` is not answered, even when both came in the same packet."""
    answer, is_closed = await exchange(request(GOOD, *PLAIN, "Connection: close") + request("/metadata/xyz"))
    assert (answer.status, is_closed) == (200, True)


@pytest.mark.parametrize("headers", [("Metadata: true",), (*PLAIN, "Connection: keep-alive")])
async def test_http_1_0_ends_with_its_answer(headers: tuple[str, ...]) -> None:
    """A request by HTTP/1.0 needs no Host; it is answered, and its connection ends."""
    answer, is_closed = await exchange(request(GOOD, *headers, version="HTTP/1.0"))
    assert (answer.status, answer.headers["connection"], is_closed) == (200, "close", True)


async def test_http_1_1_persists() -> None:
    """Without `close` a connection by HTTP/1.1 stays open."""
    answer, is_closed = await exchange(request(GOOD))
    assert (answer.status, answer.headers.get("connection"), is_closed) == (200, None, False)


async def test_upgrade_in_http_1_0_is_ignored() -> None:
    """A request by HTTP/1.0 with `Upgrade` is answered as if the header were not there."""
    head = request(GOOD, *PLAIN, "Upgrade: h2c", "Connection: Upgrade", version="HTTP/1.0")
    assert (await exchange(head))[0].status == 200


@pytest.mark.parametrize(
    "headers",
    [
        ("Metadata: true",),
        ("Host: a", "Host: a", "Metadata: true"),
        ("Host: a b", "Metadata: true"),
        ("Host: a/b", "Metadata: true"),
        ("Host: user@a", "Metadata: true"),
    ],
)
async def test_no_host_two_hosts_or_a_host_that_is_none(headers: tuple[str, ...]) -> None:
    """A request without a Host, with two, or with a malformed one gets 400."""
    assert (await exchange(request(GOOD, *headers)))[0].status == 400


@pytest.mark.parametrize("host", ["", "a", "169.254.169.254:80", "[fe80::1]:80", "a.b-c_d~"])
async def test_a_host_may_be_any_or_empty(host: str) -> None:
    """The name in Host decides nothing, because 169.254.169.254 is reached by its address."""
    assert (await exchange(request(GOOD, f"Host: {host}", "Metadata: true")))[0].status == 200


@pytest.mark.parametrize("headers", [("Host: a\t", "Metadata:\ttrue \t"), ("Host:a", "Metadata:true\t")])
async def test_whitespace_around_values_does_not_count(headers: tuple[str, ...]) -> None:
    """Spaces and tabs before and after a header's value are not part of it."""
    assert (await exchange(request(GOOD, *headers)))[0].status == 200


@pytest.mark.parametrize(
    "head",
    [
        request(GOOD, *PLAIN, "X : y"),
        request(GOOD, *PLAIN, "X: y", " folded"),
        request(GOOD).replace(b"\r\nHost", b"\r\n Host", 1),
        request(GOOD, *PLAIN, "X: a\rb"),
        request(GOOD, *PLAIN, "X: a\0b"),
        request(GOOD, *PLAIN, "X: a\nY: b"),
    ],
    ids=["space before colon", "folded", "space before first", "bare CR", "NUL", "bare LF"],
)
async def test_lines_on_which_parsers_differ_are_refused(head: bytes) -> None:
    """A header line that parsers read differently gets 400, and the connection ends."""
    answer, is_closed = await exchange(head)
    assert (answer.status, answer.headers["connection"], is_closed) == (400, "close", True)


@pytest.mark.parametrize(
    "headers",
    [
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: chunked, gzip",),
        ("Transfer-Encoding: chunked",),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Content-Length: x",),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: -1",),
        ("Content-Length: 5",),
        ("Expect: 100-continue", "Content-Length: 5"),
    ],
)
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
async def test_a_body_or_its_announcement_is_refused(headers: tuple[str, ...], version: str) -> None:
    """A request with a body, or the announcement of one, gets 400 without a 100 before it, and the connection ends."""
    answer, is_closed = await exchange(request(GOOD, *PLAIN, *headers, version=version))
    assert (answer.status, answer.headers["connection"], is_closed) == (400, "close", True)


async def test_an_expectation_without_a_body_is_met() -> None:
    """`Expect: 100-continue` without a body gets the final answer at once, with no 100 before it."""
    assert (await exchange(request(GOOD, *PLAIN, "Expect: 100-continue")))[0].status == 200


async def test_head_has_no_content() -> None:
    """The refusal of HEAD has no content, because a client would take it for the next answer."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        client = await nmi.connect()
        client.writer.write(request(GOOD, method="HEAD") + request(GOOD))
        refusal = await client.read(has_content=False)
        assert (refusal.status, refusal.headers["allow"]) == (405, "GET")
        assert (await client.read()).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
async def test_405_names_what_is_allowed(method: str) -> None:
    """A method other than GET gets 405 with the header `Allow`, as RFC 9110 demands."""
    answer, _ = await exchange(request(GOOD, method=method))
    assert (answer.status, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("head", [request(GOOD), request("/metadata/xyz"), request("/", "Host: a")])
async def test_every_answer_has_a_date_and_a_length(head: bytes) -> None:
    """Answers 2xx and 4xx have a Date and a Content-Length, so none is delimited by the connection's end."""
    answer, _ = await exchange(head)
    assert parsedate_to_datetime(answer.headers["date"]).tzinfo is not None
    assert len(answer.body) == int(answer.headers["content-length"])
    assert "transfer-encoding" not in answer.headers


@pytest.mark.parametrize(("length", "status"), [(16 * 1024 + 4, 200), (16 * 1024 + 5, 431)])
async def test_a_head_too_long_is_431(length: int, status: int) -> None:
    """A head of 16 KiB and its empty line is read; one byte more gets 431 (RFC 6585, section 5)."""
    start = len(request(GOOD, *PLAIN, "A: "))
    answer, is_closed = await exchange(request(GOOD, *PLAIN, "A: " + "a" * (length - start)))
    assert (answer.status, is_closed) == (status, status != 200)


async def test_a_target_too_long_is_414() -> None:
    """A request target of 4,010 bytes gets 414."""
    assert (await exchange(request("/metadata/" + "x" * 4000)))[0].status == 414


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/1", "http/1.1"])
async def test_other_versions_are_refused(version: str) -> None:
    """A request of another version than HTTP/1.0 and HTTP/1.1 gets 400, and the connection ends."""
    answer, is_closed = await exchange(request(GOOD, version=version))
    assert (answer.status, is_closed) == (400, True)
