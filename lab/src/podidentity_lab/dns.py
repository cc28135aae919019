"""The lab's DNS: Azure's names, the cluster's Services, and nothing else. It asks nobody.

`answer` is the whole protocol, bytes to bytes; `serve` puts it on UDP and TCP. The gateway resolves with the same
`Names`.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from dnslib import QTYPE, RCODE, RR, A, DNSError, DNSRecord

from podidentity_lab.fabric import AZURE_ADDRESS

PORT = 53
TTL_SECONDS = 5  # Services come and go while a demo runs
IDLE_SECONDS = 10.0
CLUSTER_DOMAIN = "cluster.local"

_LENGTH = struct.Struct(">H")

Lookup = Callable[[str, str], str | None]
"""Returns the cluster IP of a Service by namespace and name; None when there is none."""


class Names:
    """The names that the lab knows, and their addresses."""

    def __init__(self, azure_serves: Callable[[str], bool], cluster_ip: Lookup) -> None:
        self._azure_serves = azure_serves
        self._cluster_ip = cluster_ip

    def find(self, name: str) -> str | None:
        """Return the IPv4 address of `name`; None when there is no such name."""
        plain = name.rstrip(".").lower()
        if self._azure_serves(plain):
            return AZURE_ADDRESS
        labels = plain.removesuffix(f".{CLUSTER_DOMAIN}").split(".")
        match labels:
            case [service, namespace, "svc"]:
                return self._cluster_ip(namespace, service)
            case _:
                return None


def answer(names: Names, query: bytes) -> bytes | None:
    """Return the answer to one query, both as DNS messages; None when `query` is none."""
    try:
        question = DNSRecord.parse(query)
    except (DNSError, ValueError, IndexError):
        return None
    reply = question.reply(ra=0)
    if not question.questions:
        reply.header.rcode = RCODE.FORMERR
        return bytes(reply.pack())
    address = names.find(str(question.q.qname))
    if address is None:
        reply.header.rcode = RCODE.NXDOMAIN
    elif question.q.qtype in (QTYPE.A, QTYPE.ANY):  # a name with an address has no other records: empty, not NXDOMAIN
        reply.add_answer(RR(question.q.qname, QTYPE.A, rdata=A(address), ttl=TTL_SECONDS))
    return bytes(reply.pack())


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, names: Names) -> None:
        self._names = names

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # 3.11's class does not say that it is one

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = answer(self._names, data)
        if reply is not None:
            self._transport.sendto(reply, addr)


async def serve(names: Names, address: str) -> None:
    """Answer on `address`:53, UDP and TCP, until cancelled."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, PORT))
    datagrams.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(names), sock=datagrams)

    async def serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _serve_stream(names, reader, writer)
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(serve_stream, address, PORT)
        async with server:
            await server.serve_forever()
    finally:
        transport.close()


async def _serve_stream(names: Names, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                query = await reader.readexactly(length)
            reply = answer(names, query)
            if reply is None:
                return
            writer.write(_LENGTH.pack(len(reply)) + reply)
            await writer.drain()
    except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
        return
