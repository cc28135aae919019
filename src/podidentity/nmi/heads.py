"""From the bytes of a request head to the request: llhttp cuts it, `imds` decides, and the outcome is remembered.

What a head means depends on its bytes alone, never on who sent it, so that the same bytes need not be parsed
twice. Three memories, all bounded: for whole heads; for heads without the request ID that Azure's SDKs put into each;
for deciding lines alone. What a memory leaves out is checked to be harmless first.
"""

import re
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import httptools

from podidentity.core.tokens import token_file
from podidentity.core.tokens.imds import HEADERS_READ, Head, ParsedRequest, Refusal, Rules, parse

HEAD_LIMIT_BYTES = 16 * 1024
HEADER_LIMIT = 64
_GENERATION = 512  # of each generation; SDKs send a handful of different heads
_LONGEST_HEAD_BYTES = 2048  # a flood of long heads must not hold memory

_OTHER_LINES = len(("request line", "empty line"))
_HOST_NAME = frozenset({b"host"})
_DECIDING = HEADERS_READ | _HOST_NAME | {b"connection", b"proxy-connection", b"upgrade"}
"""Every header that NMI or llhttp reads."""

# A head without anything on which two parsers could differ: each header on a line of its own, of printable ASCII. All
# inner repetitions are possessive: the time this takes is proportional to the length, whatever the bytes.
_PLAIN = re.compile(
    rb"GET [!-~]++ HTTP/1\.[01](?:\r\n[!#$%%&'*+.^_`|~0-9A-Za-z-]++:[\t -~]*+){0,%d}\r\n\r\n" % HEADER_LIMIT
)
_DECIDING_LINE = re.compile(rb"\r\n(?:%b):[^\r]*+" % b"|".join(sorted(map(re.escape, _DECIDING))), re.IGNORECASE)

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*+")
"""uri-host and port of RFC 3986, or nothing. Not what they mean: which host is judged decides nothing here."""

_REQUEST_ID_BYTES = 64  # a UUID has 36
_REQUEST_ID = b"\r\nx-ms-client-request-id: "

K = TypeVar("K")
V = TypeVar("V")


Headers = tuple[tuple[bytes, bytes], ...]


class Dialect(NamedTuple):
    """What a listening socket speaks: what a head asks for, and which headers that depends on.

    `remembers`: equal heads come often, and hold nothing that should not be kept.
    """

    parse: Callable[[Head, Rules], ParsedRequest]
    headers_read: frozenset[bytes]
    remembers: bool = True


METADATA = Dialect(parse, HEADERS_READ)
TOKEN_FILE = Dialect(token_file.parse, token_file.HEADERS_READ, remembers=False)


class HeadMeaning(NamedTuple):
    """The request that a head makes, and how it is to be answered.

    `keep_open`: the connection may go on. `without_content`: the answer has none (HEAD). `interim`: the client knows
    answers before the answer (HTTP/1.1).
    """

    request: ParsedRequest
    keep_open: bool
    without_content: bool = False
    interim: bool = False


class Memory(Generic[K, V]):
    """A mapping that forgets: when it is full, what was not used since it was last full goes.

    `latest` is what was used since then: an entry found there needs no `recall`.
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
        value = self.latest.get(key)
        if value is None:
            value = self._older.get(key)
            if value is not None:
                self.remember(key, value)
        return value

    def remember(self, key: K, value: V) -> None:
        """Remember, at the price of what was not used for longest."""
        if len(self.latest) >= self._limit:
            self._older, self.latest = self.latest, {}
        self.latest[key] = value


class Heads:
    """The meaning of request heads under fixed `rules`."""

    def __init__(self, rules: Rules, dialect: Dialect = METADATA) -> None:
        self._rules = rules
        self._dialect = dialect
        self._judged = dialect.headers_read | _HOST_NAME
        self._by_head: Memory[bytes, HeadMeaning] = Memory(_GENERATION)
        self._by_head_without_id: Memory[bytes, HeadMeaning] = Memory(_GENERATION)
        self._by_deciding_lines: Memory[bytes, HeadMeaning] = Memory(_GENERATION)

    def recall(self, head: bytes) -> HeadMeaning | None:
        """Return what these bytes, or others with the same deciding lines, meant before; None when they are new."""
        if len(head) > _LONGEST_HEAD_BYTES:  # never remembered; and to hash what was sent far ahead takes its time
            return None
        meaning = self._by_head.latest.get(head) or self._by_head.recall(head)
        if meaning is not None:
            return meaning
        without_id = without_request_id(head)
        if without_id is not None:
            meaning = self._by_head_without_id.recall(without_id)
            if meaning is not None:
                return meaning
        lines = deciding_lines(head)
        if lines is not None:
            meaning = self._by_deciding_lines.recall(lines)
            if meaning is not None:
                self._remember(head, without_id, meaning)
        return meaning

    def understand(self, head: bytes) -> HeadMeaning:
        """Return what a head means. `head` is everything up to and including the empty line."""
        meaning = self.recall(head)
        if meaning is None:
            meaning = self._read(head)
            if not self._dialect.remembers:
                return meaning
            lines = deciding_lines(head)
            if lines is not None:
                self._by_deciding_lines.remember(lines, meaning)
            self._remember(head, without_request_id(head) if lines else None, meaning)
        return meaning

    def _remember(self, head: bytes, without_id: bytes | None, meaning: HeadMeaning) -> None:
        if without_id is not None:
            self._by_head_without_id.remember(without_id, meaning)
        if len(head) <= _LONGEST_HEAD_BYTES:
            self._by_head.remember(head, meaning)

    def _read(self, head: bytes) -> HeadMeaning:
        lines = head.count(b"\r\n")
        # llhttp forgives a bare LF; somebody else on the way may not have.
        if not head.count(b"\n") == head.count(b"\r") == lines:
            return HeadMeaning(Refusal(400, "lines must end with CR LF"), keep_open=False)
        head_parts = _HeadParts()
        parser = head_parts.parser = httptools.HttpRequestParser(head_parts)
        try:
            _feed(parser, head)
            headers = tuple(head_parts.headers.items())
            if len(headers) != lines - _OTHER_LINES:
                headers = _all_headers(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return HeadMeaning(Refusal(400, "this is not an HTTP/1.1 request"), keep_open=False)
        if len(headers) != lines - _OTHER_LINES:
            return HeadMeaning(Refusal(400, "a header must stand on one line"), keep_open=False)
        # llhttp forgives spaces before and between; what it cut must be what stands there.
        if not head.startswith(b"%b %b HTTP/1." % (parser.get_method(), head_parts.target)):
            return HeadMeaning(Refusal(400, "the request line has spaces where none belong"), keep_open=False)
        return self._judge(headers, head_parts, parser)

    def _judge(self, headers: Headers, head_parts: "_HeadParts", parser: httptools.HttpRequestParser) -> HeadMeaning:
        if len(headers) > HEADER_LIMIT:
            return HeadMeaning(Refusal(431, f"more than {HEADER_LIMIT} headers"), keep_open=False)
        version = parser.get_http_version()
        # llhttp leaves a tab at the end of a value; RFC 9110, section 5.5, has it stripped like a space.
        judged = [(lower, value.strip(b" \t")) for name, value in headers if (lower := name.lower()) in self._judged]
        hosts = [value for name, value in judged if name == b"host"]
        if version not in {"1.0", "1.1"} or len(hosts) > 1 or (not hosts and version == "1.1"):
            message = "HTTP/1.1 is spoken here, with exactly one Host header"
            return HeadMeaning(Refusal(400, message), keep_open=False)
        if hosts and _HOST.fullmatch(hosts[0]) is None:
            return HeadMeaning(Refusal(400, "the Host header names no host"), keep_open=False)
        headers_read = tuple(header for header in judged if header[0] != b"host")
        request = self._dialect.parse(Head(parser.get_method(), head_parts.target, headers_read), self._rules)
        # Without the end of the message a body is announced, which is never read.
        is_http_1_1 = version == "1.1"
        return HeadMeaning(request, head_parts.keep_alive and is_http_1_1, parser.get_method() == b"HEAD", is_http_1_1)


def without_request_id(head: bytes) -> bytes | None:
    """Return a head without the request ID, in the one spelling that Azure's SDKs use; None when it has none like that.

    Cheaper than `deciding_lines`, for the commonest head of all. The bytes around the ID all stay, and the line itself
    is a harmless header: what remains decides, wherever it was remembered from a plain head.
    """
    start, name, remaining = head.partition(_REQUEST_ID)
    number, line_end, tail = remaining.partition(b"\r\n")
    if not (name and line_end and len(number) <= _REQUEST_ID_BYTES and number.replace(b"-", b"").isalnum()):
        return None
    return start + _REQUEST_ID + b"\r\n" + tail


def deciding_lines(head: bytes) -> bytes | None:
    """Return a head without the lines that decide nothing; None for anything but exactly one plain head.

    Two heads with the same deciding lines mean the same: their request lines and deciding headers are the same bytes in
    the same order, and each of the other lines is one harmless header.
    """
    if len(head) > _LONGEST_HEAD_BYTES or _PLAIN.fullmatch(head) is None:
        return None
    return head[: head.index(b"\r")] + b"".join(_DECIDING_LINE.findall(head))


class _HeadParts:
    """What llhttp finds in a head. Of headers with the same name only the last is here, and so fewer than lines."""

    __slots__ = ("headers", "keep_alive", "on_header", "parser", "target")

    def __init__(self) -> None:
        self.parser: httptools.HttpRequestParser
        self.target = b""
        self.keep_alive = False
        self.headers: dict[bytes, bytes] = {}
        self.on_header = self.headers.__setitem__  # no Python call for each header

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_message_complete(self) -> None:
        """Ask while llhttp still has the flags of this message; after it, every connection may be kept."""
        self.keep_alive = self.parser.should_keep_alive()


class _AllHeaders:
    """Every header of a head."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))


def _all_headers(head: bytes) -> Headers:
    """Return the headers of the rare head in which a name is repeated."""
    parts = _AllHeaders()
    _feed(httptools.HttpRequestParser(parts), head)
    return tuple(parts.headers)


def _feed(parser: httptools.HttpRequestParser, head: bytes) -> None:
    """Let llhttp read a head. Raises `HttpParserError`, or `HttpParserUpgrade` for another protocol.

    In an HTTP/1.0 request `Upgrade` must be ignored (RFC 9110, section 7.8); its connection ends with the answer.
    """
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        if parser.get_http_version() != "1.0" or parser.get_method() == b"CONNECT":
            raise
