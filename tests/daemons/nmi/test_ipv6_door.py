"""The token-file door at a node's IPv6 address: real sockets on the loopback's."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemons.nmi.harness import ADDRESS, Answer, Client
from daemons.nmi.test_token_file import OTHER_ADDRESS, PATH, QUERY, READER, REALM, Stage, node_pod, stage, words
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.errors import HostError
from podidentity.linux.reuseport import listen_by_client
from podidentity.linux.routing import is_own_address
from podidentity.nmi.wiring import token_file_site

IPV6 = "::1"
FAR = "10.0.0.9"


@contextlib.asynccontextmanager
async def connection(host: str, port: int) -> AsyncIterator[Client]:
    """Connect, and hang up at the end."""
    client = Client(*await asyncio.open_connection(host, port))
    try:
        yield client
    finally:
        client.hang_up()


async def open_ipv6_door(at: Stage) -> int:
    """Serve the door at the loopback's IPv6 address, too, as NMI does at its node's; return the port."""
    return await at.nmi.listener.listen(IPV6, 0, token_file_site(at.nmi.listener.app))


async def ask(client: Client, proof: str) -> Answer:
    """Ask as an SDK's second request does."""
    return await client.ask(PATH + QUERY, "Metadata: true", f"Authorization: Basic {proof}")


@pytest.mark.parametrize("fields", [{"ips": (ADDRESS, IPV6)}, {"ips": (FAR,)}, {"host_network": True}])
async def test_a_pod_gets_its_token_over_ipv6(fields: dict[str, object], tmp_path: Path) -> None:
    """From its own address, from the node's where a plugin hides its own, and on the node's network."""
    async with stage(tmp_path, None, **fields) as at, connection(IPV6, await open_ipv6_door(at)) as client:
        first = await client.ask(PATH + QUERY, "Metadata: true")
        assert (first.status, first.headers["www-authenticate"]) == (401, REALM)
        answer = await ask(client, at.token)
        assert (answer.status, answer.token.partition(" ")[0]) == (200, READER), answer.json


async def test_another_pods_ipv6_address(tmp_path: Path) -> None:
    """A pod's token is refused when it comes from the IPv6 address of its neighbour, before the broker is asked."""
    async with stage(tmp_path) as at, connection(IPV6, await open_ipv6_door(at)) as client:
        at.nmi.cluster.add(node_pod("neighbour", ips=(OTHER_ADDRESS, IPV6)))
        answer = await ask(client, at.token)
        assert (answer.status, f"{IPV6} is another pod's address" in words(answer)) == (403, True)
        assert at.broker.cluster.questions == []


@pytest.mark.parametrize(("ips", "neighbour", "status"), [((ADDRESS,), OTHER_ADDRESS, 200), ((FAR,), ADDRESS, 403)])
async def test_an_ipv4_address_in_ipv6(ips: tuple[str, ...], neighbour: str, status: int, tmp_path: Path) -> None:
    """To a socket of both families an IPv4 client is `::ffff:127.0.0.1`: the pod at 127.0.0.1, and no other."""
    async with stage(tmp_path, ips=ips) as at:
        at.nmi.cluster.add(node_pod("neighbour", ips=(neighbour,)))
        listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        await at.nmi.listener.serve([listening], token_file_site(at.nmi.listener.app))
        async with connection(ADDRESS, listening.getsockname()[1]) as client:
            answer = await ask(client, at.token)
            assert answer.status == status, answer.json
            if status != 200:
                assert f"{ADDRESS} is another pod's address" in words(answer)


@pytest.mark.parametrize(("address", "own"), [(IPV6, True), ("2001:db8::7", False), ("fe80::1", False)])
def test_the_nodes_own_addresses(address: str, *, own: bool) -> None:
    """Documentation addresses and those that need a zone are nobody's here."""
    assert is_own_address(address) == own


def test_clients_have_queues_by_their_ipv6_addresses() -> None:
    """The last bytes of a client's address choose its queue: ::1 comes to the second of two, with queue 1."""
    listening = listen_by_client(IPV6, 0, 2, 16, lambda _: None)
    with contextlib.ExitStack() as stack:
        for queue in listening:
            stack.enter_context(queue)
            queue.settimeout(60)
        for _ in range(4):
            client = stack.enter_context(socket.create_connection(listening[0].getsockname()[:2], 60))
            accepted, _ = listening[1].accept()
            with accepted:
                assert accepted.getpeername()[:2] == client.getsockname()[:2]


async def test_a_port_that_is_taken_is_named_as_in_a_url(tmp_path: Path) -> None:
    """An IPv6 address stands in brackets before its port."""
    async with stage(tmp_path) as at:
        port = await open_ipv6_door(at)
        with pytest.raises(HostError, match=rf"cannot listen on \[::1\]:{port}: Address already in use"):
            await at.nmi.listener.listen(IPV6, port, token_file_site(at.nmi.listener.app))
