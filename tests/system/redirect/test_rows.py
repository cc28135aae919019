"""Clients, floods and odd packets in every pod while rules change under them: IMDS's stand-in must see nothing.

One network and its servers serve all rows; each row begins and ends with a host that has no rule of ours. The first
rows are the control: the same traffic reaches the stand-in where nothing, or too little, is in its way.
"""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from podidentity.linux import interception, nftables
from podidentity.nmi.adapters.redirect import Redirect
from system.redirect.acting import PORT, install, put_up, within
from system.redirect.network import IMDS, NODE, Network
from system.redirect.traffic import Server, hammering
from waiting import until

WHAT = interception.Interception(IMDS, 80, NODE, PORT, uplinks=("eth0",))
NAT = nftables.render(interception.redirect(WHAT))
GUARD = nftables.render(interception.guard(interception.Forbidden(IMDS)))


@pytest.fixture(scope="module", params=["bridge", "routed"])
def shared(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A node, its pods, something in NMI's place, and IMDS behind the uplink, which answers on 80 and 443."""
    with Network(request.param) as made:
        servers = [Server(made.azure, IMDS, 80, "imds"), Server(made.azure, IMDS, 443, "imds")]
        servers.append(Server(made.node, NODE, PORT, "nmi"))
        yield made
        for server in servers:
            server.close()


def load(network: Network, *tables: str) -> None:
    """Load tables as the daemon renders them, and end what was under way."""
    network.node.run("nft -f - <<'END'\n" + "".join(tables) + "END\nconntrack -F 2>/dev/null")
    network.leaked()


def replaced(network: Network, *tables: str) -> None:
    """Replace tables a hundred times, each time in one transaction."""
    network.node.run(
        f"rules=$(cat <<'END'\n{''.join(tables)}END\n)\n"
        'for time in $(seq 100); do printf "%s\\n" "$rules" | nft -f -; done'
    )


def test_without_interception_everything_counts(network: Network) -> None:
    """A control: without interception, the counter that every row below reads counts what reaches IMDS."""
    network.leaked()
    with hammering(network.pods) as seen:
        until(lambda: seen["imds"] > 20, "clients are answered")
    assert network.leaked() > seen["syn"] / 20


def test_a_redirect_alone_lets_odd_packets_through(network: Network) -> None:
    """The second control: nat skips what connection tracking calls invalid, and any port but 80."""
    load(network, NAT)
    with hammering(network.pods) as seen:
        until(lambda: seen["nmi"] > 20, "clients are answered")
    assert seen["imds"] == 0
    assert network.leaked() > 0


def nothing(_: Network) -> None:
    """Only watch."""


def nat_replaced_100_times(network: Network) -> None:
    """Replace the redirect, as repairs do."""
    replaced(network, NAT)


def guard_and_nat_replaced_100_times(network: Network) -> None:
    """Replace both, in one transaction."""
    replaced(network, GUARD, NAT)


@pytest.mark.parametrize("disturb", [nothing, nat_replaced_100_times], ids=lambda function: function.__name__)
def test_no_connection_leaks_without_a_guard(network: Network, disturb: Callable[[Network], None]) -> None:
    """The redirect alone holds every connection, also while it is replaced."""
    load(network, NAT)
    with hammering(network.pods, odd=False) as seen:
        disturb(network)
        enough = seen["nmi"] + 50
        until(lambda: seen["nmi"] > enough, "clients are answered")
    assert network.opened() == 0
    assert seen["imds"] == 0


def nat_removed_and_added_30_times(network: Network) -> None:
    """Do what aad-pod-identity does on SIGTERM and at its next start."""
    network.node.run(
        "rules=$(cat <<'END'\n" + NAT + "END\n)\n"
        "for time in $(seq 30); do nft delete table ip podidentity; conntrack -F 2>/dev/null\n"
        'sleep 0.02; printf "%s\\n" "$rules" | nft -f -; sleep 0.02; done'
    )


def ruleset_flushed_5_times(network: Network) -> None:
    """Do what another program on the node might, and leave it so for a moment."""

    async def act(redirect: Redirect) -> None:
        for _ in range(5):
            network.node.run("nft flush ruleset")
            await asyncio.sleep(0.05)
            await install(redirect)

    within(network.node, act)


def held_and_lifted_5_times(network: Network) -> None:
    """Do what planned restarts do."""

    async def act(redirect: Redirect) -> None:
        for _ in range(5):
            await redirect.hold_new_connections()
            await redirect.send_pods_here()
            await redirect.let_in()

    within(network.node, act)


@pytest.mark.parametrize(
    "disturb",
    [
        nothing,
        nat_replaced_100_times,
        guard_and_nat_replaced_100_times,
        nat_removed_and_added_30_times,
        ruleset_flushed_5_times,
        held_and_lifted_5_times,
    ],
    ids=lambda function: function.__name__,
)
def test_no_packet_leaks_behind_the_guards(network: Network, disturb: Callable[[Network], None]) -> None:
    """Guard, ip rules and redirect: not one packet, whatever its port and flags, while rules change or go."""
    put_up(network)
    with hammering(network.pods) as seen:
        disturb(network)
        enough = seen["nmi"] + 50
        until(lambda: seen["nmi"] > enough, "clients are answered")
    assert network.leaked() == 0
    assert seen["imds"] == 0
