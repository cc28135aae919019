"""A broker whose machine is gone: nobody acknowledges what NMI sends, and nobody refuses it either."""

import asyncio
import contextlib
import ssl
import time
from pathlib import Path

import pytest
import trustme

from podidentity.core.tokens.sources import ProvenIdentity
from podidentity.nmi.adapters.broker import BrokerAddress, open_broker
from podidentity.timing import SYSTEM_CLOCK
from system.redirect.network import Namespace, need_namespaces

PROOF = ProvenIdentity("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "default", "a.b.c")
ANSWER = b'{"access_token":"t","expires_in":3600}'


@pytest.mark.parametrize("acknowledges", [False, True])
def test_a_proof_finds_another_way_within_seconds(tmp_path: Path, *, acknowledges: bool) -> None:
    """The connection is given up when its machine is gone, before or after that received the request.

    The proof goes by a new one.
    """
    need_namespaces()
    with contextlib.closing(Namespace()) as place:
        place.call(lambda: asyncio.run(_lose_a_connection(place, tmp_path, acknowledges=acknowledges)))


def _lose(place: Namespace, client_port: int) -> None:
    place.run(
        "nft add table ip lost; nft add chain ip lost in '{ type filter hook input priority 0; }'; "
        f"nft add rule ip lost in tcp sport {client_port} drop"
    )


async def _lose_a_connection(place: Namespace, folder: Path, *, acknowledges: bool) -> None:
    peers: list[int] = []
    writers: list[asyncio.StreamWriter] = []
    requests: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername")[1])
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                requests.append(peers[-1])
                if acknowledges and len(requests) == 2:
                    _lose(place, peers[0])
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))

    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    authority.cert_pem.write_to_path(folder / "ca.crt")
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    address = BrokerAddress(url, folder / "ca.crt", folder / "token")
    async with server, open_broker(address, "test", SYSTEM_CLOCK) as broker:
        await broker.acquire(PROOF, "https://r")
        if not acknowledges:
            _lose(place, peers[0])
        start = time.monotonic()
        await broker.acquire(PROOF, "https://r")
        assert len(peers) == 2
        assert len(requests) == (3 if acknowledges else 2)
        for writer in writers:
            writer.transport.abort()
        assert 1.0 < time.monotonic() - start < 30.0, "sooner would be no loss, later is the time of an answer"
