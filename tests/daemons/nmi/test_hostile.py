"""Hostile bytes against the raw socket: each gets its status, and IMDS never sees what it should not.

The pod here has an identity, so that a request that slips through as a token request would be answered 200.
"""

import asyncio
import itertools

import pytest

import make
from daemons.nmi.harness import Client, Serving, pod, serving
from podidentity.nmi.heads import HEAD_LIMIT_BYTES
from podidentity.nmi.http import Limits
from podidentity.nmi.settings import Settings

GOOD = "/metadata/identity/oauth2/token"
QUERY = "?api-version=2018-02-01&resource=https://vault.azure.net"
PLAIN = ("Host: 169.254.169.254", "Metadata: true")


def request(target: str, *headers: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    """Write a request; with no headers given, those of a well-behaved client."""
    lines = (f"{method} {target} {version}", *(headers or PLAIN), "", "")
    return "\r\n".join(lines).encode("latin-1")


def spellings() -> list[str]:
    """Paths that look like the token path and are not: encodings, separators, case, extra characters."""
    found = []
    for at in range(1, len(GOOD)):
        if GOOD[at] == "/":
            found += [
                GOOD[:at] + other + GOOD[at + 1 :] for other in ("\\", "//", "/./", "/../", "%2f", "%5c", ";/", "/;")
            ]
            found += [GOOD[:at] + other + GOOD[at + 1 :] for other in ("%252f", "/%2e/", "/%2e%2e/", "\x0b/", "/x/../")]
    for segment in ("identity", "oauth2", "token"):
        found += [GOOD.replace(segment, other) for other in (segment.upper(), segment.title(), f"{segment}%00")]
        found += [
            GOOD.replace(segment, f"%{ord(segment[0]):02x}{segment[1:]}"),
            GOOD.replace(segment, f"{segment};a=b"),
        ]
        found += [GOOD.replace(segment, f"{segment}."), GOOD.replace(segment, f"{segment}..;")]
    found += [
        f"{GOOD}{tail}" for tail in ("foo", "/foo", "//", "/.", "/..", "%20", "#", "%3f", ";", "\\", "/token", "%2f")
    ]
    found += [f"/{lead}{GOOD}" for lead in ("", ".", "..", "metadata", "a/..", "%2e", "\\")]
    found += [
        "/metadata\\identity\\oauth2\\token",
        "/metadata/identity\\oauth2\\token/",
        "\\metadata/identity/oauth2/token",
    ]
    found += [
        "/Metadata/identity/%6fauth2/token",
        "/metadata/identity/oauth2",
        "/metadata/identity",
        "/metadata/identity/",
    ]
    for at, extra in itertools.product(range(1, len(GOOD) + 1, 2), ("%00", "\\", "\x80", "|", "\t")):
        found.append(GOOD[:at] + extra + GOOD[at:])
    found += ["/metadata/identity/info", "/metadata/identity/oauth2/authorize", "/metadata/identity/tokens"]
    return found


def almost_instances() -> list[str]:
    """Paths near the metadata that may be passed on: none of these may be."""
    found = [
        f"/metadata/instance/{tail}" for tail in ("../identity/oauth2/token", "..%2fidentity", "a\\..\\b", "%2e%2e/x")
    ]
    found += [f"/metadata/{name}" for name in ("Instance", "instances", "attested", "attested/identity", "xyz", "")]
    found += ["/metadata", "/", "/instance", "/vmAgentVersion", "/machine", "/metadata/scheduledevents/x"]
    return found


SPELLINGS = [request(path + QUERY) for path in spellings()]
NEAR = [request(path + "?api-version=2021-02-01") for path in almost_instances()]
FORMS = [
    request(f"http://169.254.169.254{GOOD}{QUERY}"),
    request(f"//169.254.169.254{GOOD}{QUERY}"),
    request("169.254.169.254:80", method="CONNECT"),
    request("*", method="OPTIONS"),
    request("*"),
    request(f"metadata/identity/oauth2/token{QUERY}"),
    request(f"?{QUERY}"),
    request(f"{GOOD}{QUERY}", version="HTTP/2.0"),
    request(f"{GOOD}{QUERY}", version="HTTP/0.9"),
    request(f"{GOOD}{QUERY}", version="HTTP/1.2"),
    request(f"{GOOD}{QUERY}", version="http/1.1"),
    request(f"{GOOD}{QUERY}", version="HTTP/1.1 x"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET \r\n\r\n",
    f"GET {GOOD}{QUERY}\r\n\r\n".encode(),
    f"GET {GOOD}{QUERY} HTTP/1.1\n\n\r\n\r\n".encode(),
    f"GET {GOOD}{QUERY} HTTP/1.1\nHost: x\nMetadata: true\r\n\r\n".encode(),
    f"GET\t{GOOD}{QUERY}\tHTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n".encode(),
    f"GET  {GOOD}{QUERY} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n".encode(),
    f" GET {GOOD}{QUERY} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n".encode(),
]
METHODS = [
    request(GOOD + QUERY, method=method)
    for method in ("POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "GETT", "PROPFIND", "M-SEARCH")
]
HEADERS = [
    request(GOOD + QUERY, "Host: x", *headers)
    for headers in (
        (),
        ("Metadata: false",),
        ("Metadata:",),
        ("Metadata: true, true",),
        ("Metadata: true", "Metadata: true"),
        ("Metadata: true", "metadata: false"),
        ("Metadata: true", "METADATA: true"),
        ("Meta\tdata: true",),
        ("Metadata : true",),
        (" Metadata: true",),
        ("Metadata: t", " rue"),
        ("X-A: b", " Metadata: true"),
        ("Metadata: true\x00",),
        ("Metadata\x00: true",),
        ("Metadata: true", "X-Forwarded-For: 10.0.0.1"),
        ("Metadata: true", "x-forwarded-for:"),
        ("Metadata: true", "Host: y"),
        ("Metadata: true", "host: y"),
        ("Metadata: true", "Content-Length: 5"),
        ("Metadata: true", "Content-Length: 0", "Content-Length: 5"),
        ("Metadata: true", "Content-Length: -1"),
        ("Metadata: true", "Content-Length: 0x0"),
        ("Metadata: true", "Content-Length: +0"),
        ("Metadata: true", "Transfer-Encoding: chunked"),
        ("Metadata: true", "Transfer-Encoding: identity"),
        ("Metadata: true", "Transfer-Encoding: xchunked"),
        ("Metadata: true", "Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Metadata: true", "Transfer-Encoding: chunked", "Content-Length: 0"),
        ("Metadata: true", "Transfer-Encoding:\x0bchunked"),
        ("Metadata: true", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings"),
        ("Metadata: true", "X-A: b\rX-C: d"),
        ("Metadata: true", "no colon"),
        ("Metadata: true", ": no name"),
        ("Metadata: true", *(f"X-{number}: y" for number in range(80))),
    )
] + [f"GET {GOOD}{QUERY} HTTP/1.1\r\nMetadata: true\r\n\r\n".encode()]
QUERIES = [
    request(f"{GOOD}?{query}")
    for query in (
        "",
        "api-version=2018-02-01",
        "resource=",
        "resource",
        "Resource=https://vault.azure.net",
        "resource=a&resource=b",
        "resource=a&resource=a",
        "resource=a&%72esource=b",
        "resource=a&client_id=x&client_id=y",
        "resource=a&client_id=x&object_id=y",
        "resource=a&client_id=x&msi_res_id=y",
        "resource=a&msi_res_id=x&mi_res_id=y",
        "resource=a%00b",
        "resource=a%0d%0aX:%20y",
        "resource=%ff%fe",
        "resource=a#b",
        "resource=a\x7f",
        "resource=a\xe9",
        "resource=a b",
        "resource=a&&x=y&=z&resource=b",
    )
]
BLOCKS = [
    request(f"/metadata/{path}?api-version=2021-02-01{extra}")
    for path, extra in itertools.product(
        ("instance", "versions", "attested/document", "loadbalancer", "scheduledevents"),
        (
            "&resource=x",
            "&api-version=2021-02-01",
            "&format=a%0d%0ab",
            "&format=a%20b",
            "&format=a&format=b",
            "&nonce=%00",
        ),
    )
] + [
    request("/metadata/instance?api-version=2021-02-01", "Host: x"),
    request("/metadata/instance", *PLAIN, method="POST"),
]
HOST = [request(f"/host/token{QUERY}", "Host: x", "podname: web", "podns: default"), request("/HOST/token" + QUERY)]

CORPUS = [*SPELLINGS, *NEAR, *FORMS, *METHODS, *HEADERS, *QUERIES, *BLOCKS, *HOST]


def test_the_corpus_is_large() -> None:
    """At least 300 different hostile requests."""
    assert len(set(CORPUS)) >= 300


def test_no_hostile_request_is_answered_or_passed_on() -> None:
    """Each is refused with a 4xx, on a connection of its own, and IMDS hears of none."""

    async def test() -> list[tuple[bytes, int]]:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            # The token is in the cache: whatever passes for a token request is answered 200 at once.
            assert (await nmi.ask()).status == 200
            answers = [(sent, await status_of(nmi, sent)) for sent in CORPUS]
            assert len(nmi.imds.asked) == 1
            return answers

    wrong = [(sent, status) for sent, status in asyncio.run(test()) if not 400 <= status < 500]
    assert wrong == []


async def status_of(nmi: Serving, sent: bytes) -> int:
    """Send bytes, say that no more will come, and read the status; 499 when the connection ends without one."""
    client = await nmi.connect()
    try:
        client.writer.write(sent)
        client.writer.write_eof()
        return (await client.read()).status
    except (asyncio.IncompleteReadError, ConnectionError):
        return 499
    finally:
        client.hang_up()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request(GOOD + QUERY), 200),
        (request(f"{GOOD}/{QUERY}"), 200),
        (request(GOOD.replace("metadata", "MetaData") + QUERY), 200),
        (request(GOOD + QUERY, *PLAIN, "Content-Type: application/x-www-form-urlencoded"), 200),
        (request(GOOD + QUERY, *PLAIN, "Content-Length: 0"), 200),
        (request(GOOD + QUERY, *PLAIN, "Accept: a", "Accept: b"), 200),
        (request(GOOD + QUERY, "Host: x", "METADATA: TRUE"), 200),
        (request(GOOD + QUERY, version="HTTP/1.0"), 200),
        (request(GOOD), 400),
        (request(GOOD, "Host: x"), 400),
        (request(GOOD + QUERY, "Host: x"), 400),
        (request("/metadata/identity\\oauth2\\token" + QUERY), 400),
        (request("/metadata/identity/oauth2/tokenfoo" + QUERY), 400),
        (request("/metadata/xyz"), 404),
        (request(GOOD + QUERY, method="POST"), 405),
        (request(GOOD + QUERY, *PLAIN, *(f"X-{number}: y" for number in range(80))), 431),
        (b"G" * (HEAD_LIMIT_BYTES + 10), 431),
    ],
)
def test_statuses(head: bytes, status: int) -> None:
    """What real clients send is answered; what is refused has the status that says why."""

    async def test() -> int:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            return await status_of_open(nmi, head)

    assert asyncio.run(test()) == status


async def status_of_open(nmi: Serving, sent: bytes) -> int:
    """Send bytes on a connection that stays open and read the status."""
    client = await nmi.connect()
    return (await client.send(sent)).status


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_head_may_arrive_in_pieces(size: int) -> None:
    """However the network cuts it, the request is the same."""

    async def test() -> int:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            client = await nmi.connect()
            head = request(GOOD + QUERY)
            for start in range(0, len(head), size):
                client.writer.write(head[start : start + size])
                await client.writer.drain()
                await asyncio.sleep(0)
            return (await client.read()).status

    assert asyncio.run(test()) == 200


def test_pipelined_requests_are_answered_in_order() -> None:
    """One after the other, the refused ones too; nothing is mixed up."""

    async def test() -> list[int]:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            client = await nmi.connect()
            client.writer.write(request(GOOD + QUERY) + request("/metadata/xyz") + request(GOOD + QUERY))
            return [(await client.read()).status for _ in range(3)]

    assert asyncio.run(test()) == [200, 404, 200]


def test_what_follows_a_refused_body_is_not_a_request() -> None:
    """Request smuggling: after a request with a body the connection ends, whatever the body contains."""

    async def test() -> None:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            smuggled = request(GOOD + QUERY)
            for headers in (("Content-Length: 500",), ("Transfer-Encoding: chunked",)):
                client = await nmi.connect()
                answer = await client.send(request("/metadata/xyz", *PLAIN, *headers) + smuggled)
                assert (answer.status, answer.headers["connection"]) == (400, "close")
                assert await client.ended()
            assert nmi.imds.asked == []

    asyncio.run(test())


def test_a_head_without_end_is_cut_off() -> None:
    """Bytes without an empty line are refused at the limit, and no more is read."""

    async def test() -> None:
        async with serving() as nmi:
            client = await nmi.connect()
            answer = await client.send(b"GET / HTTP/1.1\r\nX: " + b"y" * HEAD_LIMIT_BYTES)
            assert (answer.status, answer.headers["connection"]) == (431, "close")

    asyncio.run(test())


def test_slow_and_idle_connections_end() -> None:
    """A head that does not come to its end is answered 408; an idle connection is closed without a word."""

    async def test() -> None:
        async with serving() as nmi:
            slow, idle = await nmi.connect(), await nmi.connect()
            slow.writer.write(b"GET /metadata")
            await slow.writer.drain()
            async with asyncio.timeout(5):
                while sum(bool(one._buffer) for one in nmi.listener.connections) != 1:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            nmi.listener.second += 11
            check_all(nmi)
            assert (await slow.read()).status == 408
            nmi.listener.second += 120
            check_all(nmi)
            assert await idle.ended()

    asyncio.run(test())


def check_all(nmi: Serving) -> None:
    """Do what the listener does each second."""
    for connection in tuple(nmi.listener.connections):
        connection.check_time()


def test_a_client_that_sends_on_while_it_waits_is_cut_off() -> None:
    """What is sent while an answer is waited for is bounded too."""

    async def test() -> None:
        async with serving() as nmi:
            nmi.cluster.add(pod())
            client: Client = await nmi.connect()
            client.writer.write(request(GOOD + QUERY) + b"x" * (HEAD_LIMIT_BYTES + 1))
            assert await client.ended()

    asyncio.run(test())


def test_one_pod_cannot_take_every_connection() -> None:
    """Connections of one address are bounded; what is over is refused, the others go on."""

    async def test() -> None:
        async with serving(limits=Limits(per_address=3)) as nmi:
            nmi.cluster.add(pod(), make.identity())
            clients = [await nmi.connect() for _ in range(3)]
            assert [(await client.send(request(GOOD + QUERY))).status for client in clients] == [200] * 3
            assert await (await nmi.connect()).ended()
            assert (await clients[0].send(request(GOOD + QUERY))).status == 200

    asyncio.run(test())


def test_a_flood_of_different_heads_does_not_grow_memory() -> None:
    """What is remembered of heads is bounded, and right after a flood."""

    async def test() -> None:
        async with serving() as nmi:
            nmi.cluster.add(pod(), make.identity())
            client = await nmi.connect()
            for number in range(3000):
                assert (await client.send(request(GOOD + QUERY, *PLAIN, f"X: {number}"))).status == 200
            assert len(nmi.listener.heads._whole) <= 1024
            assert len(nmi.listener.heads._parts) <= 1024

    asyncio.run(test())


@pytest.mark.parametrize("target", ["/metadata/instance?api-version=2021-02-01&format=json", "/METADATA/versions"])
def test_what_may_be_passed_on_is_rebuilt(target: str) -> None:
    """IMDS sees a path made of constants and none of the client's headers."""

    async def test() -> None:
        async with serving() as nmi:
            client = await nmi.connect()
            answer = await client.send(request(target, *PLAIN, "X-Secret: s", "Authorization: Bearer x", "Cookie: c"))
            assert answer.status == 200
            (asked,) = nmi.imds.asked
            assert asked.target.lower() == target.lower()
            assert asked.target.startswith("/metadata/")
            assert not {"x-secret", "authorization", "cookie"} & asked.headers.keys()

    asyncio.run(test())


def test_instance_metadata_can_be_blocked() -> None:
    """--block-instance-metadata: 403, and IMDS is not asked; other metadata still is."""

    async def test() -> None:
        async with serving(Settings("n1", block_instance_metadata=True)) as nmi:
            assert await status_of_open(nmi, request("/metadata/instance?api-version=2021-02-01")) == 403
            assert await status_of_open(nmi, request("/metadata/instance/compute/name", "Host: x")) == 403
            assert nmi.imds.asked == []
            assert await status_of_open(nmi, request("/metadata/versions")) == 200

    asyncio.run(test())
