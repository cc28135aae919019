"""Attacks on the token-file door: proofs that somebody made up, clients that come from everywhere, pods that go."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from daemons.broker.harness import Reply, jwt
from daemons.nmi.harness import ADDRESS, Client
from daemons.nmi.test_ipv6_door import IPV6, open_ipv6_door
from daemons.nmi.test_token_file import PATH, QUERY, node_pod, stage
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.linux.link import link_of, record_links
from podidentity.nmi.app import STRANGERS
from podidentity.nmi.places import Limits
from podidentity.nmi.wiring import token_file_site
from waiting import eventually

LOOPBACK_INDEX = socket.if_nametoindex("lo")


@pytest.mark.parametrize(
    ("namespace", "name", "uid"),
    [
        ("\ud800", "web", "uid-of-web"),
        ("default", "\udfff", "uid-of-web"),
        ("default", "web", "\ud800"),
        ("default\n2026-11-29T00:00:00.000Z INFO audit: msg=token status=200", "web", "u"),
        ("default", "web\x1b[2J", "u"),
        ("default", "w" * 2000, "u"),
    ],
)
async def test_a_proof_that_somebody_made_up_is_a_refusal_and_no_bug(
    namespace: str, name: str, uid: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a forged proof says of its pod: 401, one short line in the log, and none that the client wrote."""
    proof = jwt({"kubernetes.io": {"namespace": namespace, "pod": {"name": name, "uid": uid}}})
    async with stage(tmp_path) as at:
        answer = await at.ask(proof=proof)
        assert (answer.status, "names no pod" in answer.json["error_description"]) == (401, True)
        assert at.broker.cluster.questions == []
    (line,) = capfd.readouterr().err.splitlines()
    assert "status=401" in line
    assert len(line) < 400


async def test_strangers_have_one_share_of_the_places(tmp_path: Path) -> None:
    """A machine can connect from any number of IPv6 addresses: all that are no pod's and not the node's are one."""
    async with stage(tmp_path) as at:
        door = at.nmi.listener.app._token_file
        door._is_own_address = lambda _: False  # from here every address is a stranger's, but for the pod's
        site = token_file_site(at.nmi.listener.app)._replace(limits=Limits(per_address=4, in_all=16))
        port = await at.nmi.listener.listen(ADDRESS, 0, site)
        strangers = []
        for number in range(20):
            address = (f"127.0.2.{number}", 0)
            strangers.append(Client(*await asyncio.open_connection(ADDRESS, port, local_addr=address)))
        at.nmi.clients.extend(strangers)
        await eventually(lambda: count(at.nmi.listener.connections, STRANGERS) == 4, "four strangers")
        pod = Client(*await asyncio.open_connection(ADDRESS, port))
        at.nmi.clients.append(pod)
        answer = await pod.ask(PATH + QUERY, "Metadata: true", f"Authorization: Basic {at.token}")
        assert answer.status == 200
        assert count(at.nmi.listener.connections, ADDRESS) == 1


def count(connections: object, client: str) -> int:
    """Return how many connections count as a client's."""
    return sum(connection.client == client for connection in connections)  # type: ignore[attr-defined]


async def test_a_connection_ends_with_its_pod_while_it_waits(tmp_path: Path) -> None:
    """A pod that is gone while the broker thinks gets no answer: its address may be another pod's by then."""
    async with stage(tmp_path, ips=(IPV6,)) as at:
        port, gate = await open_ipv6_door(at), asyncio.Event()
        at.broker.entra.script.append(Reply(200, gate=gate))
        client = Client(*await asyncio.open_connection(IPV6, port))
        at.nmi.clients.append(client)
        asking = asyncio.ensure_future(client.ask(PATH + QUERY, "Metadata: true", f"Authorization: Basic {at.token}"))
        await eventually(lambda: at.broker.entra.forms, "the request at Entra ID")
        at.nmi.cluster.remove(at.pod)
        at.nmi.cluster.add(replace(node_pod("next", ips=(IPV6,))))
        at.nmi.cluster.follower.pod_changed(at.pod.key)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asking
        gate.set()


async def test_a_connection_ends_with_the_interface_that_it_came_in_by(tmp_path: Path) -> None:
    """Also over IPv6 the kernel tells the interface: a pod's goes before the API server says that the pod does."""
    async with stage(tmp_path, ips=(IPV6,)) as at:
        client = Client(*await asyncio.open_connection(IPV6, await open_ipv6_door(at)))
        at.nmi.clients.append(client)
        assert (await client.ask(PATH + QUERY, "Metadata: true")).status == 401
        at.nmi.listener.reset_link(LOOPBACK_INDEX + 1)
        assert (await client.ask(PATH + QUERY, "Metadata: true")).status == 401
        at.nmi.listener.reset_link(LOOPBACK_INDEX)
        assert await client.has_ended()


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, ADDRESS), (socket.AF_INET6, IPV6)])
def test_the_link_of_a_connection(family: int, address: str) -> None:
    """The loopback's index, and its hardware address of zeros; nothing where the listener was not prepared."""
    for prepare, link in ((record_links, (LOOPBACK_INDEX, bytes(6))), (lambda _: None, None)):
        with socket.socket(family) as listener:
            prepare(listener)
            listener.bind((address, 0))
            listener.listen()
            with socket.create_connection(listener.getsockname()[:2]):
                accepted, _ = listener.accept()
                with accepted:
                    assert link_of(accepted) == link
