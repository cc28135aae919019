"""From the bytes of a request head to what it asks: llhttp cuts it, `core.imds` decides, and the outcome is remembered.

What a head means depends on its bytes alone, never on who sent it, so that the same bytes need not be understood
twice. Three memories, all bounded: for whole heads; for heads without the request ID that Azure's SDKs put into each;
for heads without all lines that decide nothing. What is left out is checked to be harmless first. Called by `http`.
"""

import re
from typing import Generic, NamedTuple, TypeVar

import httptools

from podidentity.core.imds import HEADERS_READ, Head, Parsed, Refusal, Rules, parse

HEAD_LIMIT_BYTES = 16 * 1024
HEADER_LIMIT = 64
_REMEMBERED = 512  # of each generation; SDKs send a handful of different heads
_REMEMBERED_HEAD_BYTES = 2048  # a flood of long heads must not hold memory

_OTHER_LINES = len(("request line", "empty line"))
_KEPT = HEADERS_READ | {b"host"}
_DECIDING = _KEPT | {b"connection", b"proxy-connection", b"upgrade"}
"""Every header that we or llhttp read."""

# A head without anything on which two parsers could differ: each header on a line of its own, of printable ASCII. All
# inner repetitions are possessive: the time this takes is proportional to the length, whatever the bytes.
_PLAIN = re.compile(
    rb"GET [!-~]++ HTTP/1\.[01](?:\r\n[!#$%%&'*+.^_`|~0-9A-Za-z-]++:[\t -~]*+){0,%d}\r\n\r\n" % HEADER_LIMIT
)
_DECIDING_LINE = re.compile(rb"\r\n(?:%b):[^\r]*+" % b"|".join(sorted(map(re.escape, _DECIDING))), re.IGNORECASE)

_REQUEST_ID_BYTES = 64  # a UUID has 36
_REQUEST_ID = b"\r\nx-ms-client-request-id: "

K = TypeVar("K")
V = TypeVar("V")


Headers = tuple[tuple[bytes, bytes], ...]


class Understood(NamedTuple):
    """What a head asks, and whether the connection may go on after the answer."""

    parsed: Parsed
    keep_open: bool


class Memory(Generic[K, V]):
    """A mapping that forgets: when it is full, what was not used since it was last full goes.

    `latest` is what was used since then: whoever finds something in it need not ask further.
    """

    __slots__ = ("_limit", "_older", "latest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.latest: dict[K, V] = {}
        self._older: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self.latest) + len(self._older)

    def recall(self, key: K) -> V | None:
        """Return what is remembered, or None."""
        found = self.latest.get(key)
        if found is None:
            found = self._older.get(key)
            if found is not None:
                self.remember(key, found)
        return found

    def remember(self, key: K, value: V) -> None:
        """Remember, at the price of what was not used for longest."""
        if len(self.latest) >= self._limit:
            self._older, self.latest = self.latest, {}
        self.latest[key] = value


class Heads:
    """Understands request heads under fixed `rules`."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._whole: Memory[bytes, Understood] = Memory(_REMEMBERED)
        self._unnumbered: Memory[bytes, Understood] = Memory(_REMEMBERED)
        self._alike: Memory[bytes, Understood] = Memory(_REMEMBERED)

    def known(self, head: bytes) -> Understood | None:
        """Return what these bytes, or others that differ in nothing that decides, were understood as before."""
        understood = self._whole.latest.get(head) or self._whole.recall(head)
        if understood is not None:
            return understood
        unnumbered = without_request_id(head)
        if unnumbered is not None:
            understood = self._unnumbered.recall(unnumbered)
            if understood is not None:
                return understood
        essence = essence_of(head)
        if essence is not None:
            understood = self._alike.recall(essence)
            if understood is not None:
                self._remember(head, unnumbered, understood)
        return understood

    def understand(self, head: bytes) -> Understood:
        """Understand a head: everything up to and including the empty line."""
        understood = self.known(head)
        if understood is None:
            understood = self._read(head)
            essence = essence_of(head)
            if essence is not None:
                self._alike.remember(essence, understood)
            self._remember(head, without_request_id(head) if essence else None, understood)
        return understood

    def _remember(self, head: bytes, unnumbered: bytes | None, understood: Understood) -> None:
        if unnumbered is not None:
            self._unnumbered.remember(unnumbered, understood)
        if len(head) <= _REMEMBERED_HEAD_BYTES:
            self._whole.remember(head, understood)

    def _read(self, head: bytes) -> Understood:
        lines = head.count(b"\r\n")
        # llhttp forgives a bare LF; somebody else between the client and us may not have.
        if not head.count(b"\n") == head.count(b"\r") == lines:
            return Understood(Refusal(400, "lines must end with CR LF"), keep_open=False)
        cut = _Cut()
        parser = httptools.HttpRequestParser(cut)
        try:
            parser.feed_data(head)
            headers = tuple(cut.headers.items())
            if len(headers) != lines - _OTHER_LINES:
                headers = _every_header(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return Understood(Refusal(400, "this is not an HTTP/1.1 request"), keep_open=False)
        if len(headers) != lines - _OTHER_LINES:
            return Understood(Refusal(400, "a header must stand on one line"), keep_open=False)
        # llhttp forgives spaces before and between; what it cut must be what stands there.
        if not head.startswith(b"%b %b HTTP/1." % (parser.get_method(), cut.target)):
            return Understood(Refusal(400, "the request line has spaces where none belong"), keep_open=False)
        return self._judge(headers, cut, parser)

    def _judge(self, headers: Headers, cut: "_Cut", parser: httptools.HttpRequestParser) -> Understood:
        if len(headers) > HEADER_LIMIT:
            return Understood(Refusal(431, f"more than {HEADER_LIMIT} headers"), keep_open=False)
        version = parser.get_http_version()
        named = [(lower, value) for name, value in headers if (lower := name.lower()) in _KEPT]
        hosts = sum(name == b"host" for name, _ in named)
        if version not in {"1.0", "1.1"} or hosts > 1 or (hosts == 0 and version == "1.1"):
            told = "HTTP/1.1 is spoken here, with exactly one Host header"
            return Understood(Refusal(400, told), keep_open=False)
        parts = tuple(header for header in named if header[0] != b"host")
        parsed = parse(Head(parser.get_method(), cut.target, parts), self._rules)
        # Without the end of the message a body is announced, which is never read.
        return Understood(parsed, cut.ended and version == "1.1" and parser.should_keep_alive())


def without_request_id(head: bytes) -> bytes | None:
    """Leave out the request ID, in the one spelling that Azure's SDKs use; None when it is not there like that.

    Cheaper than `essence_of`, for the commonest head of all. The bytes around the ID are all kept, and the line itself
    is a harmless header: what remains decides, wherever it was remembered from a plain head.
    """
    before, found, after = head.partition(_REQUEST_ID)
    number, end, rest = after.partition(b"\r\n")
    if not (found and end and len(number) <= _REQUEST_ID_BYTES and number.replace(b"-", b"").isalnum()):
        return None
    return before + _REQUEST_ID + b"\r\n" + rest


def essence_of(head: bytes) -> bytes | None:
    """Leave out of exactly one head the lines that decide nothing; None for a head that is anything but plain.

    Two heads with one essence are understood alike: their request lines and deciding headers are the same bytes in the
    same order, and of the other lines it is known that each is one harmless header.
    """
    if len(head) > _REMEMBERED_HEAD_BYTES or _PLAIN.fullmatch(head) is None:
        return None
    return head[: head.index(b"\r")] + b"".join(_DECIDING_LINE.findall(head))


class _Cut:
    """Takes what llhttp finds. Of headers with exactly the same name only the last is here: their number tells."""

    __slots__ = ("ended", "headers", "on_header", "target")

    def __init__(self) -> None:
        self.target = b""
        self.ended = False
        self.headers: dict[bytes, bytes] = {}
        self.on_header = self.headers.__setitem__  # no Python call for each header

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_message_complete(self) -> None:
        self.ended = True


class _CutAll:
    """Takes every header."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))


def _every_header(head: bytes) -> Headers:
    """Cut once more, for the rare head in which a name is repeated."""
    cut = _CutAll()
    httptools.HttpRequestParser(cut).feed_data(head)
    return tuple(cut.headers)
