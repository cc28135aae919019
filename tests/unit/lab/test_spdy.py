"""SPDY/3.1 as kubectl uses it to forward ports."""

import struct
import zlib

import pytest

from podidentity_lab.kubernetes import spdy

HEADERS = {"streamtype": "data", "port": "80", "requestid": "0"}
VERSION = 0x8003


def control(kind: int, body: bytes) -> bytes:
    """Return a control frame of a client."""
    return struct.pack(">II", VERSION << 16 | kind, len(body)) + body


def test_the_dictionary_is_that_of_the_specification() -> None:
    """The dictionary of the compressors has the length and checksum of the specification's (zlib, RFC 1950)."""
    assert (len(spdy.DICTIONARY), zlib.adler32(spdy.DICTIONARY)) == (1423, 0xE3C6A7C2)


def test_frames_are_read_however_they_are_cut() -> None:
    """Frames are read from chunks of any size, and frames without a meaning here are left out."""
    settings, ping = control(4, struct.pack(">I", 0)), control(6, struct.pack(">I", 7))
    wire = spdy.opening(1, HEADERS) + settings + spdy.data(1, b"hello") + ping + spdy.data(1, b"", last=True)
    wire += spdy.reset(1, spdy.INTERNAL_ERROR)
    for size in (1, 5, len(wire)):
        session = spdy.Session()
        chunks = [wire[start : start + size] for start in range(0, len(wire), size)]
        events = [event for chunk in chunks for event in session.receive(chunk)]
        assert events == [
            spdy.StreamOpening(1, HEADERS),
            spdy.StreamData(1, b"hello", last=False),
            spdy.Ping(ping),
            spdy.StreamData(1, b"", last=True),
            spdy.StreamReset(1),
        ]


def test_a_reply_has_no_headers() -> None:
    """Each reply has an empty header block, compressed as part of one stream over all replies."""
    session, inflate = spdy.Session(), zlib.decompressobj(zdict=spdy.DICTIONARY)
    for stream in (1, 3):
        frame = session.reply(stream)
        head, length, replied = struct.unpack_from(">III", frame)
        assert (head, length, replied) == (VERSION << 16 | 2, len(frame) - 8, stream)
        assert inflate.decompress(frame[12:]) == bytes(4)


@pytest.mark.parametrize(
    "wire",
    [
        struct.pack(">II", 0x8002_0001, 0),
        control(1, b"short"),
        control(1, bytes(10) + b"no zlib"),
        control(3, b""),
        spdy.opening(1, {"a": "x" * spdy.MOST_HEADER_BYTES}),
    ],
)
def test_what_is_not_spdy_ends_the_connection(wire: bytes) -> None:
    """Another version, a frame too short, and a header block that is malformed or too long are errors."""
    with pytest.raises(spdy.ProtocolError):
        list(spdy.Session().receive(wire))


def test_a_header_that_is_longer_than_its_frame_ends_the_connection() -> None:
    """A header whose stated length exceeds its frame is an error."""
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    block = deflate.compress(struct.pack(">II", 1, 99)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(spdy.ProtocolError):
        list(spdy.Session().receive(control(1, bytes(10) + block)))
