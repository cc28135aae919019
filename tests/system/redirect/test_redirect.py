"""The redirect and its guards with the kernel's own netfilter: no packet of a pod may ever reach IMDS."""

import asyncio
import functools
import socket
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from podidentity.linux.original_destination import original_destination
from podidentity.nmi.adapters.anti_spoof import AntiSpoof, AntiSpoofSettings, HostObserver, ListPods
from podidentity.nmi.adapters.redirect import Redirect
from podidentity.timing import SYSTEM_CLOCK
from system.redirect.acting import PORT, SETTINGS, install, put_up, within
from system.redirect.network import IMDS, NODE, PODS, Network
from system.redirect.traffic import FIN, RST, SYN, Server, ask, fetch, hammering, raw_socket, segment, send
from waiting import eventually


@pytest.fixture(scope="module", params=["bridge", "routed"])
def shared(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A node, its pods, and IMDS behind the uplink, which answers on 80 and 443."""
    with Network(request.param) as made:
        servers = [Server(made.azure, IMDS, 80, "imds"), Server(made.azure, IMDS, 443, "imds")]
        yield made
        for server in servers:
            server.close()


@pytest.fixture
def nmi(network: Network) -> Iterator[Server]:
    """Something in NMI's place that listens on the node."""
    server = Server(network.node, NODE, PORT, "nmi")
    yield server
    server.close()


def test_without_interception_the_counter_counts(network: Network) -> None:
    """A control: without interception pods reach IMDS, and the counter that the other tests read shows it."""
    network.leaked()
    assert fetch(network.pods[0]) == "imds"
    assert network.leaked() > 0


@pytest.mark.usefixtures("nmi")
def test_pods_reach_nmi_and_the_node_reaches_imds(network: Network) -> None:
    """Pods are sent to the daemon with the self-test content; the node itself still has its own IMDS."""
    put_up(network)
    assert [fetch(pod) for pod in network.pods] == ["nmi", "nmi"]
    assert fetch(network.node) == "imds"
    assert network.leaked() == 0
    assert within(network.node, Redirect.differences) == ()


def test_peer_and_original_destination_tell_who_asked_and_what(network: Network) -> None:
    """The daemon sees the pod's own address, and can tell a redirected connection from a direct one."""
    put_up(network)
    with network.node.listen(NODE, PORT) as listener:
        for port, address in ((80, IMDS), (PORT, NODE)):
            with network.pods[0].call(functools.partial(socket.create_connection, (address, port), 5)):
                accepted, peer = listener.accept()
                with accepted:
                    assert peer[0] == PODS[0]
                    assert (original_destination(accepted) == (IMDS, 80)) == (port == 80)


@pytest.mark.usefixtures("nmi")
def test_guard_alone_refuses_other_ports_and_invalid_packets(network: Network) -> None:
    """The redirect skips what connection tracking calls invalid, and any port but 80: the guard stops those."""
    put_up(network)

    def odd_packets() -> None:
        with raw_socket() as sender:
            for port in range(30000, 30050):
                for wanted, flags in ((80, RST), (80, SYN | FIN), (443, SYN)):
                    send(sender, segment(PODS[0], port, wanted, flags))

    network.pods[0].call(odd_packets)
    assert fetch(network.pods[0], 443) != "imds"
    assert network.leaked() == 0


@pytest.mark.usefixtures("nmi")
def test_established_connections_to_imds_are_cut(network: Network) -> None:
    """A connection from before the redirect must not go on reaching IMDS; the next one reaches NMI."""
    connection = network.pods[0].call(lambda: socket.create_connection((IMDS, 80), 2))
    with connection:
        assert ask(connection) == "imds"
        put_up(network)
        with pytest.raises(OSError, match=r"timed out|reset|unreachable"):
            ask(connection)
        assert network.leaked() == 0
    assert fetch(network.pods[0]) == "nmi"


def test_nothing_leaks_while_the_listener_is_killed_and_comes_back(network: Network) -> None:
    """Rules outlive the daemon: pods are refused in between, never let through."""
    server = Server(network.node, NODE, PORT, "nmi")
    put_up(network)
    with hammering(network.pods) as seen:
        for _ in range(10):
            server.close()
            assert fetch(network.pods[0]) not in {"imds", "nmi"}
            server = Server(network.node, NODE, PORT, "nmi")
            assert fetch(network.pods[0], timeout_seconds=8) == "nmi"
    server.close()
    assert network.leaked() == 0
    assert seen["imds"] == 0


def test_a_planned_restart_refuses_nobody(network: Network) -> None:
    """While held, a new client waits for its retransmission and is answered by the successor."""
    server = Server(network.node, NODE, PORT, "nmi")
    put_up(network)
    within(network.node, Redirect.hold_new_connections)
    server.close()
    answers: list[str] = []
    waiting = network.pods[0].call(lambda: _start_asking(answers))
    successor = Server(network.node, NODE, PORT, "successor")
    within(network.node, install)
    waiting.join(10)
    successor.close()
    assert answers == ["successor"]
    assert network.leaked() == 0


@pytest.mark.usefixtures("nmi")
def test_no_pod_of_a_bridge_comes_in_before_pods_are_known(network: Network) -> None:
    """The first list may come at any moment: whoever asks in a neighbour's name right then must not be in already."""
    put_up(network)
    observer, look = cast("HostObserver", None), cast("ListPods", None)  # of unknown pods nothing is told or asked
    settings = AntiSpoofSettings(IMDS, enabled=True, check_seconds=60.0)
    spoofing = AntiSpoof(settings, lambda: None, look, observer, SYSTEM_CLOCK)
    for _ in range(2):
        network.node.call(lambda: asyncio.run(spoofing.keep()))
    assert fetch(network.pods[0]) == ("TimeoutError" if network.kind == "bridge" else "nmi")


def _start_asking(answers: list[str]) -> threading.Thread:
    def once() -> None:
        with socket.create_connection((IMDS, 80), 8) as connection:
            answers.append(ask(connection))

    thread = threading.Thread(target=once, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("nmi")
def test_what_others_change_is_seen_and_repaired(network: Network) -> None:
    """Netlink tells of a flush or a removed rule; the daemon puts it back without waiting for its next check."""
    repaired: list[tuple[str, ...]] = []

    async def act() -> None:
        redirect = Redirect(SETTINGS, repaired.append)

        def put_right(before: int) -> bool:
            return len(repaired) > before and redirect.is_in_place

        await install(redirect)
        network.leaked()
        assert redirect.is_in_place
        async with asyncio.timeout(20):
            keeping = asyncio.create_task(redirect.run())
            for damage in ("nft flush ruleset", "ip rule del pref 91", "nft flush chain ip podidentity prerouting"):
                before = len(repaired)
                await asyncio.sleep(0.3)  # the watch must be listening before the damage is done
                network.node.run(damage)
                await eventually(functools.partial(put_right, before), "what was changed is put right")
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    network.node.call(lambda: asyncio.run(act()))
    assert len(repaired) >= 3
    assert fetch(network.pods[0]) == "nmi"
    assert network.leaked() == 0


@pytest.mark.usefixtures("nmi")
def test_uninstall_leaves_nothing(network: Network) -> None:
    """Only the explicit uninstall opens the way to IMDS again, and it removes every trace."""
    before = network.node.run("nft list ruleset; ip rule")
    put_up(network)
    within(network.node, Redirect.hold_new_connections)
    within(network.node, Redirect.uninstall)
    assert network.node.run("nft list ruleset; ip rule") == before
    assert fetch(network.pods[0]) == "imds"
    within(network.node, Redirect.uninstall)


@pytest.mark.usefixtures("nmi")
@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_upstreams_chain_is_retired(network: Network, program: str) -> None:
    """aad-pod-identity's chain goes once ours stands, from both of iptables' back-ends; the rest of nat stays."""
    network.node.run(
        f"{program} -t nat -N aad-metadata\n"
        f"{program} -t nat -A aad-metadata ! -s 127.0.0.1/32 -d {IMDS}/32 -p tcp --dport 80"
        " -j DNAT --to 127.0.0.1:2579\n"
        f"{program} -t nat -A aad-metadata -j RETURN\n"
        f"{program} -t nat -I PREROUTING 1 -j aad-metadata\n"
        f"{program} -t nat -A PREROUTING -d 10.96.0.1 -p tcp -j DNAT --to {NODE}"
    )
    put_up(network)
    left = network.node.run(f"{program}-save -t nat")
    assert "aad-metadata" not in left
    assert "10.96.0.1" in left
    assert fetch(network.pods[0]) == "nmi"
