"""The way into the lab from the host's own shell: an HTTP proxy, CONNECT and plain, on one loopback socket.

It resolves by the lab's names only and connects only to the lab's networks: nothing that goes in comes out elsewhere.
It serves the lab's user and root alone (`callers`).
Small and our own: what PyPI has either is a framework (proxy.py) or resolves by the host's rules.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from podidentity_lab.dns import Names
from podidentity_lab.fabric import NETWORKS

HEAD_SECONDS = 30.0
CONNECT_SECONDS = 10.0
HEAD_LIMIT_BYTES = 64 * 1024
CHUNK_BYTES = 64 * 1024

_NETWORKS = tuple(ipaddress.ip_network(network) for network in NETWORKS)
_HOP_BY_HOP = {b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"te", b"upgrade"}


class Refusal(Exception):  # noqa: N818  # an answer, not a fault of the gateway
    """An answer of the gateway's own: `status` is the code and reason of the status line, the message one sentence."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """Where a request wants to go, and what to send there first (nothing for CONNECT)."""

    host: str
    port: int
    tunnel: bool
    first: bytes


def parse(head: bytes) -> Request:
    """Return the request of a head, which ends with the blank line. Raises `Refusal`."""
    line, *fields = head.rstrip(b"\r\n").split(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise Refusal("400 Bad Request", "this is no HTTP/1 request; speak HTTP/1.1")
    method, target, version = words
    if method == b"CONNECT":
        host, port = _host_and_port("//" + target.decode("latin-1"), 443)
        return Request(host, port, tunnel=True, first=b"")
    if not target.lower().startswith(b"http://"):
        raise Refusal("400 Bad Request", "this is a proxy; ask for http://..., or CONNECT for https")
    url = target.decode("latin-1")
    host, port = _host_and_port(url, 80)
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = [field for field in fields if field.partition(b":")[0].strip().lower() not in _HOP_BY_HOP]
    # One request a connection: what a client sends next may be for another host.
    first = b"\r\n".join([b" ".join((method, path.encode("latin-1"), version)), *headers, b"Connection: close"])
    return Request(host, port, tunnel=False, first=first + b"\r\n\r\n")


def resolve(names: Names, host: str) -> str:
    """Return the lab's address of `host`. Raises `Refusal`."""
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        address = names.find(host)
        if address is None:
            raise Refusal("502 Bad Gateway", f"the lab has no name {host}; it never asks the real DNS") from None
        return address
    if not any(literal in network for network in _NETWORKS):
        raise Refusal("502 Bad Gateway", f"the lab has no address {host}; there is no way out of the lab")
    return host


IsWelcome = Callable[[tuple[str, int], tuple[str, int]], bool]
"""Whether a connection may be served, by its ends: the client's, then ours."""


async def serve(listener: socket.socket, names: Names, is_welcome: IsWelcome = lambda _client, _server: True) -> None:
    """Serve the proxy on `listener` until cancelled."""

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _serve_connection(names, is_welcome, reader, writer)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()

    server = await asyncio.start_server(serve_connection, sock=listener, limit=HEAD_LIMIT_BYTES)
    async with server:
        await server.serve_forever()


async def _serve_connection(
    names: Names, is_welcome: IsWelcome, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    # Asked before the head is here: a client that has ended its side after its request is nobody's any more.
    welcome = is_welcome(writer.get_extra_info("peername"), writer.get_extra_info("sockname"))
    try:
        request = await _read_request(reader, welcome=welcome)
        server_reader, server_writer = await _connect(names, request)
    except Refusal as refusal:
        writer.write(_render(refusal))
        await writer.drain()
        return
    try:
        if request.tunnel:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            server_writer.write(request.first)
        await _exchange((reader, writer), (server_reader, server_writer), until_first_end=not request.tunnel)
    finally:
        server_writer.close()


async def _read_request(reader: asyncio.StreamReader, *, welcome: bool) -> Request:
    """Return the request of whoever is welcome. Raises `Refusal`."""
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refusal("431 Request Header Fields Too Large", "the request's head is too long") from None
    if not welcome:
        raise Refusal("403 Forbidden", "this lab is another user's; start one of your own: podidentity lab up")
    return parse(head)


async def _connect(names: Names, request: Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = resolve(names, request.host)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await asyncio.open_connection(address, request.port)
    except TimeoutError:
        message = f"{request.host}:{request.port} in the lab did not answer within {CONNECT_SECONDS:g} s"
        raise Refusal("504 Gateway Timeout", message) from None
    except OSError as error:
        message = f"{request.host}:{request.port} in the lab cannot be reached: {error.strerror}"
        raise Refusal("502 Bad Gateway", message) from None


async def _exchange(
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    *,
    until_first_end: bool,
) -> None:
    """Carry bytes both ways; a plain request is over when the server has finished, whatever its client holds open."""
    outward = asyncio.create_task(_carry(client[0], server[1]))
    inward = asyncio.create_task(_carry(server[0], client[1]))
    try:
        await (inward if until_first_end else asyncio.wait({outward, inward}))
    finally:
        outward.cancel()
        inward.cancel()
        await asyncio.wait({outward, inward})


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await source.read(CHUNK_BYTES):
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


def _host_and_port(url: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise Refusal("400 Bad Request", "the request names no host")
    return host, port or default_port


def _render(refusal: Refusal) -> bytes:
    body = f"podidentity lab: {refusal}\n".encode()
    head = (
        f"HTTP/1.1 {refusal.status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
