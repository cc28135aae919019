"""Ways to IMDS that no forwarding rule sees: links on the uplink itself, and source-routed packets; WireServer."""

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from podidentity.linux import interception, netlink, nftables
from podidentity.nmi.adapters.redirect import Redirect, RedirectSettings
from system.redirect.acting import PORT, SETTINGS, within
from system.redirect.frames import EVERYBODY, IPV4, frame, syn
from system.redirect.network import IMDS, NODE, PODS, WIRESERVER, Namespace, Network
from system.redirect.traffic import SYN, Server, fetch, segment
from waiting import until

OLDER = """\
#!/bin/sh
text=$(case "$*" in *-) cat;; esac)
case "$text" in *"hook egress"*) echo "Error: Could not process rule: Operation not supported" >&2; exit 1;; esac
printf '%s\\n' "$text" | exec {program} "$@"
"""
"""An nft of a kernel without the egress hook."""
OUTSIDE = "192.168.77.77"


@pytest.fixture(scope="module")
def shared() -> Iterator[Network]:
    """A node with pods; behind its uplink IMDS, and Azure's WireServer on the ports that it has."""
    with Network("routed") as made:
        places = [(IMDS, 80), (WIRESERVER, 53), (WIRESERVER, 80), (WIRESERVER, 32526)]
        servers = [Server(made.azure, address, port, "azure") for address, port in places]
        servers.append(Server(made.node, NODE, PORT, "nmi"))
        yield made
        for server in servers:
            server.close()


@pytest.fixture
def on_uplink(network: Network) -> Iterator[Namespace]:
    """A pod that hangs on the node's uplink by a macvlan, with an address of the uplink's network."""
    with contextlib.closing(Namespace()) as pod:
        network.node.run(f"ip link add link eth0 name net1 type macvlan mode bridge; ip link set net1 netns {pod.path}")
        pod.run(f"ip addr add {OUTSIDE}/24 dev net1; ip link set net1 up; ip route add default via 192.168.77.1")
        yield pod


def test_a_macvlan_of_the_uplink_does_not_reach_imds(network: Network, on_uplink: Namespace) -> None:
    """Its packets pass none of the host's hooks but the uplink's own; the node, and all other traffic, goes on."""
    assert fetch(on_uplink) == "azure"
    within(network.node, Redirect.put_up_guard)
    assert fetch(on_uplink) == "TimeoutError"
    assert fetch(on_uplink, 80, WIRESERVER) == "azure"
    assert fetch(network.node) == "azure"


def test_a_macvlan_with_the_uplinks_hardware_address_does_not_either(network: Network, on_uplink: Namespace) -> None:
    """What an ipvlan sends carries it too: the source must be an address of this host as well."""
    hardware = _hardware(network.node)
    within(network.node, Redirect.put_up_guard)
    sent = _dropped(network.node)
    on_uplink.call(functools.partial(_send_frame, hardware))
    until(lambda: _dropped(network.node) > sent, "the frame is dropped")


@pytest.mark.parametrize("tags", [(0x8100,), (0x88A8,), (0x8100, 0x8100), (0x88A8, 0x8100)])
def test_a_priority_tag_opens_no_way(network: Network, on_uplink: Namespace, tags: tuple[int, ...]) -> None:
    """A packet with a priority tag does not reach IMDS: netfilter does not look behind such tags by itself."""
    hardware = on_uplink.call(lambda: _hardware(on_uplink, "net1"))
    network.azure.run(
        "nft add table ip tagged; nft add chain ip tagged coming '{ type filter hook prerouting priority -300; }'"
    )
    network.azure.run(f"nft add rule ip tagged coming ip saddr {OUTSIDE} ip daddr {IMDS} counter")
    on_uplink.call(functools.partial(_send_frame, hardware, tags))
    until(lambda: _packets(network.azure, "table ip tagged") == 1, "without a guard it arrives")
    within(network.node, Redirect.put_up_guard)
    on_uplink.call(functools.partial(_send_frame, hardware, tags))
    until(lambda: _dropped(network.node, "@ll") == 1, "the frame is dropped")
    assert _packets(network.azure, "table ip tagged") == 1
    network.azure.run("nft delete table ip tagged")


def _hardware(namespace: Namespace, name: str = "eth0") -> str:
    return namespace.run(f"ip -o link show dev {name}").partition("link/ether ")[2].split()[0]


def _packets(namespace: Namespace, what: str, rule: str = "counter") -> int:
    """Count what the rules with these words have met."""
    lines = [line for line in namespace.run(f"nft list {what}").splitlines() if rule in line]
    return sum(int(line.partition("packets ")[2].split()[0]) for line in lines)


def _dropped(node: Namespace, rule: str = "ip saddr") -> int:
    return _packets(node, "table netdev podidentity_guard", rule)


def _send_frame(hardware: str, tags: Sequence[int] = ()) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("net1", 0))
        with contextlib.suppress(OSError):  # the kernel may tell the sender of the drop
            wire.send(frame(EVERYBODY, hardware, IPV4, syn(OUTSIDE), tags))


def test_uplinks_that_come_and_change_are_guarded(network: Network) -> None:
    """A new uplink, and a new address of the node: the table follows while NMI runs."""

    def chains() -> str:
        return network.node.run("nft list table netdev podidentity_guard")

    async def act() -> None:
        redirect = Redirect(SETTINGS, lambda _: None)
        await redirect.put_up_guard()
        async with asyncio.timeout(20):
            watching = asyncio.create_task(redirect.run())
            network.node.run(
                "ip link add up2 type veth peer name far2; ip link set up2 up; ip link set far2 up\n"
                f"ip addr add 10.99.0.4/24 dev up2; ip route add {IMDS}/32 via 10.99.0.1 dev up2 metric 500"
            )
            while '"up2"' not in chains() or "10.99.0.4" not in chains():  # noqa: ASYNC110  # the kernel's condition
                await asyncio.sleep(0.05)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    assert "up2" not in network.node.run("nft list ruleset")
    try:
        network.node.call(lambda: asyncio.run(act()))
    finally:
        network.node.run("ip link del up2")


def test_without_the_hook_such_links_are_looked_for(
    network: Network, on_uplink: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On an older kernel NMI says which link it cannot stop, and is not ready; it never pretends."""
    older = tmp_path / "nft"
    older.write_text(OLDER.format(program=shutil.which("nft")))
    older.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def troubles(redirect: Redirect) -> tuple[str, ...]:
        await redirect.put_up_guard()
        await redirect.send_pods_here()
        await redirect.let_in()
        return redirect.troubles()

    (sentence,) = within(network.node, troubles)
    assert sentence.startswith("net1 (macvlan of a pod) hands its packets straight to the node's uplink")
    on_uplink.run("ip link del net1")
    assert within(network.node, troubles) == ()


@pytest.mark.usefixtures("on_uplink")
@pytest.mark.parametrize("kind", ["", "macvlan"])
def test_a_network_card_of_a_pod_makes_it_not_ready(
    network: Network, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """No rule of the host meets what it sends; whoever has checked that IMDS is closed there may accept it, warned.

    There is no such hardware here: the pod's interface is real, and the kernel's answer for its namespace says that it
    has no kind, as it does of a card or a virtual function.
    """
    original = netlink.links

    def links(namespace: int = -1) -> tuple[netlink.Link, ...]:
        return tuple(
            link._replace(kind=kind) if namespace >= 0 and link.name == "net1" else link for link in original(namespace)
        )

    monkeypatch.setattr(netlink, "links", links)

    async def words(settings: RedirectSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
        redirect = Redirect(settings, lambda _: None)
        await redirect.put_up_guard()
        await redirect.send_pods_here()
        await redirect.let_in()
        return redirect.troubles(), redirect.warnings()

    troubles, warnings = network.node.call(lambda: asyncio.run(words(SETTINGS)))
    accepting = replace(SETTINGS, accept_cards=True)
    assert network.node.call(lambda: asyncio.run(words(accepting))) == (warnings, troubles)
    assert warnings == ()
    assert [sentence.partition(" is a network card of a pod's own")[0] for sentence in troubles] == ["net1"] * (
        not kind
    )


@pytest.mark.parametrize("guarded", [False, True])
def test_a_source_routed_packet_does_not_reach_imds(network: Network, *, guarded: bool) -> None:
    """Sent to the node, to be passed on to IMDS, where a kernel accepts that: the guard in netfilter alone stops it."""
    network.node.run("for name in all eth0 veth0; do sysctl -qw net.ipv4.conf.$name.accept_source_route=1; done")
    tables = [interception.guard(interception.Forbidden(IMDS))] if guarded else []
    if tables:
        network.node.call(lambda: asyncio.run(nftables.replace(*tables)))
    network.leaked()
    network.pods[0].call(_send_source_routed)
    if guarded:
        until(lambda: _leaving(network.node), "the guard dropped it")
    else:
        until(network.leaked, "it arrived")
    assert network.leaked() == 0


def _leaving(node: Namespace) -> int:
    return _packets(node, "chain inet podidentity_guard leaving")


def _send_source_routed() -> None:
    """Loose source and record route (RFC 791): to the node first, then to IMDS."""
    option = bytes([131, 7, 4]) + socket.inet_aton(IMDS) + b"\0"
    tcp = segment(PODS[0], 34567, 80, SYN)
    head = struct.pack("!BBHHHBBH", 0x47, 0, 28 + len(tcp), 1, 0, 64, 6, 0)
    packet = head + socket.inet_aton(PODS[0]) + socket.inet_aton(NODE) + option + tcp
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.sendto(packet, (NODE, 0))


@pytest.mark.parametrize("blocked", [False, True])
def test_wireserver_may_be_closed_to_pods(network: Network, on_uplink: Namespace, *, blocked: bool) -> None:
    """With --block-wireserver: the agent's ports are closed, names go on, and the node's own agent as well."""
    settings = RedirectSettings(IMDS, 80, NODE, PORT, block_wireserver=blocked)
    network.node.call(lambda: asyncio.run(Redirect(settings, lambda _: None).put_up_guard()))
    for pod in (network.pods[0], on_uplink):
        outcome = {port: fetch(pod, port, WIRESERVER) for port in (53, 80, 32526)}
        closed = "TimeoutError" if blocked else "azure"
        assert outcome == {53: "azure", 80: closed, 32526: closed}
    assert fetch(network.node, 80, WIRESERVER) == "azure"
