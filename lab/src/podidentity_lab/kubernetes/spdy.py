"""SPDY/3.1 as `kubectl port-forward` speaks it: bytes to events and back, without any I/O.

Frames are those of draft-mbelshe-httpbis-spdy-00 (2.2, 2.6). Kubernetes uses streams, data, resets and pings, and no
flow control: window updates, settings and the like are read and mean nothing.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

FIN = 1
PROTOCOL_ERROR, INTERNAL_ERROR = 1, 6
MOST_DATA_BYTES = 0xFF_FFFF
MOST_HEADER_BYTES = 64 * 1024
_VERSION = 0x8003
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING = 1, 2, 3, 6
_HEAD = struct.Struct(">II")
_WORDS = (
    "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,accept-"
    "ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,content-"
    "language,content-length,content-location,content-md5,content-range,content-type,date,etag,expect,"
    "expires,from,host,if-match,if-modified-since,if-none-match,if-range,if-unmodified-since,last-modified,"
    "location,max-forwards,pragma,proxy-authenticate,proxy-authorization,range,referer,retry-after,server,"
    "te,trailer,transfer-encoding,upgrade,user-agent,vary,via,warning,www-authenticate,method,get,"
    "status,200 OK,version,HTTP/1.1,url,public,set-cookie,keep-alive,origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    "Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    "00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8"
    "charset=iso-8859-1,utf-,*,enq=0."
)


def _text(value: str) -> bytes:
    return struct.pack(">I", len(value)) + value.encode("latin-1")


DICTIONARY = b"".join(_text(word) for word in _WORDS.split(",")) + _TAIL.encode()
"""What both sides' header compression starts from (2.6.10.1)."""


class ProtocolError(Exception):
    """What came is not SPDY/3.1; the connection cannot go on."""


class StreamOpening(NamedTuple):
    """The other side opened a stream."""

    stream: int
    headers: dict[str, str]


class StreamData(NamedTuple):
    """Data of a stream; `last`: there will be no more."""

    stream: int
    data: bytes
    last: bool


class StreamReset(NamedTuple):
    """The other side gave a stream up."""

    stream: int


class Ping(NamedTuple):
    """The other side wants `answer` back."""

    answer: bytes


Event = StreamOpening | StreamData | StreamReset | Ping


@dataclass(frozen=True, slots=True)
class _Frame:
    first: int
    flags: int
    body: bytes


class Session:
    """The serving side of one connection. Header blocks of a direction share one compression, so order matters."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def receive(self, chunk: bytes) -> Iterator[Event]:
        """Yield what a chunk of the connection completes. Raises `ProtocolError`."""
        self._unread += chunk
        while (frame := self._next_frame()) is not None:
            event = self._event(frame)
            if event is not None:
                yield event

    def reply(self, stream: int) -> bytes:
        """Return the frame that accepts a stream."""
        block = self._deflate.compress(struct.pack(">I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return _control(_SYN_REPLY, struct.pack(">I", stream) + block)

    def _next_frame(self) -> _Frame | None:
        if len(self._unread) < _HEAD.size:
            return None
        first, second = _HEAD.unpack_from(self._unread)
        end = _HEAD.size + (second & MOST_DATA_BYTES)
        if len(self._unread) < end:
            return None
        body = bytes(self._unread[_HEAD.size : end])
        del self._unread[:end]
        return _Frame(first, second >> 24, body)

    def _event(self, frame: _Frame) -> Event | None:
        if not frame.first >> 31:
            return StreamData(frame.first, frame.body, bool(frame.flags & FIN))
        if frame.first >> 16 != _VERSION:
            raise ProtocolError(f"the frame {frame.first:#010x} is not of SPDY/3")
        try:
            match frame.first & 0xFFFF:
                case 1:  # SYN_STREAM: stream, associated stream, priority and slot
                    return StreamOpening(struct.unpack_from(">I", frame.body)[0], self._headers(frame.body[10:]))
                case 3:
                    return StreamReset(struct.unpack_from(">I", frame.body)[0])
                case 6:
                    return Ping(_control(_PING, frame.body))
                case _:
                    return None
        except (struct.error, zlib.error) as error:
            raise ProtocolError(f"a frame cannot be read: {error}") from None

    def _headers(self, block: bytes) -> dict[str, str]:
        plain = self._inflate.decompress(block, MOST_HEADER_BYTES)
        if self._inflate.unconsumed_tail:
            raise ProtocolError(f"a stream has more than {MOST_HEADER_BYTES} bytes of headers")
        texts = list(_texts(plain))
        return dict(zip(texts[::2], texts[1::2], strict=False))


def _texts(plain: bytes) -> Iterator[str]:
    """Yield names and values by turns: their number, then each with its length."""
    place = 4
    for _ in range(2 * struct.unpack_from(">I", plain)[0]):
        length = struct.unpack_from(">I", plain, place)[0]
        place += 4 + length
        if place > len(plain):
            raise ProtocolError("a header is longer than its frame")
        yield plain[place - length : place].decode("latin-1")


def data(stream: int, content: bytes, *, last: bool = False) -> bytes:
    """Return a frame with data; it may have none. `content` has at most `MOST_DATA_BYTES`."""
    return _HEAD.pack(stream, (FIN if last else 0) << 24 | len(content)) + content


def reset(stream: int, status: int) -> bytes:
    """Return the frame that gives a stream up."""
    return _control(_RST_STREAM, struct.pack(">II", stream, status))


def opening(stream: int, headers: dict[str, str]) -> bytes:
    """Return the first frame of a client, which opens a stream."""
    deflate = zlib.compressobj(zdict=DICTIONARY)
    plain = struct.pack(">I", len(headers)) + b"".join(_text(name) + _text(headers[name]) for name in headers)
    block = deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return _control(_SYN_STREAM, struct.pack(">IIH", stream, 0, 0) + block)


def _control(kind: int, body: bytes) -> bytes:
    return _HEAD.pack(_VERSION << 16 | kind, len(body)) + body
