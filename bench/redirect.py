"""Does any packet of a pod reach the real IMDS while the interception is shaken? `make bench` runs it.

Clients in two pods ask as fast as they can, bare SYNs by the thousand, and what connection tracking calls invalid; a
counter behind the node's uplink counts. NMI runs as a process while it is killed and while somebody flushes the
ruleset. The controls show that the counter counts: no interception at all, and a chain of iptables that is flushed and
filled again, as aad-pod-identity does it.
"""

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make
from podidentity.nmi.adapters.redirect import Redirect
from results import print_result
from system.redirect.acting import PORT, install, within
from system.redirect.network import IMDS, NODE, Network
from system.redirect.node import Node
from system.redirect.traffic import Server, hammering
from waiting import until

CHAIN_RULES = (
    f"iptables-nft -t nat -A aad-metadata ! -s 127.0.0.1/32 -d {IMDS}/32 -p tcp --dport 80"
    f" -j DNAT --to {NODE}:{PORT}\niptables-nft -t nat -A aad-metadata -j RETURN\n"
)
NEW_CHAIN = f"iptables-nft -t nat -N aad-metadata\n{CHAIN_RULES}iptables-nft -t nat -I PREROUTING 1 -j aad-metadata\n"
BUDGET = {"leaked_packets": 0.0}
"""The largest value that is within the budget of docs/performance.md."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget, or a control did not count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="how often the rules are replaced")
    times = parser.parse_args().times
    figures: dict[str, Any] = {}
    for kind in ("bridge", "routed"):
        with Network(kind) as network:
            figures[kind] = controls(network, max(times // 5, 1)) | {"rules replaced": replace_rules(network, times)}
            with tempfile.TemporaryDirectory() as directory, Node(network, Path(directory)) as node:
                node.add_pod(0, "one")
                node.assign("one", make.identity("one"))
                node.start()
                figures[kind] |= {
                    "daemon killed": disturb(node, kill, max(times // 20, 1)),
                    "ruleset flushed": disturb(node, flush, max(times // 10, 1)),
                }
    leaks = sum(
        entry["leaked"] for counts in figures.values() for name, entry in counts.items() if "control" not in name
    )
    blind = [
        kind
        for kind, counts in figures.items()
        for name, entry in counts.items()
        if "control" in name and not entry["leaked"]
    ]
    if blind:
        raise SystemExit(f"the counter does not count: {figures}")
    return print_result("redirect", figures, BUDGET, {"leaked_packets": leaks})


def count_leaks(network: Network, act: Callable[[], object], times: int) -> dict[str, int]:
    """Do something `times` times under traffic; return the packets that reached IMDS, and what the clients saw."""
    network.leaked()
    with hammering(network.pods) as observations:
        for _ in range(times):
            act()
    answers = Counter[str]()
    for name, times_seen in observations.items():
        answers["refused by NMI" if name.startswith("{") else name] += times_seen
    return {"times": times, "leaked": network.leaked(), **answers}


def controls(network: Network, times: int) -> dict[str, dict[str, int]]:
    """Return what is counted without protection, and with aad-pod-identity's way of keeping its rules."""
    servers = [Server(network.azure, IMDS, 80, "imds"), Server(network.node, NODE, PORT, "nmi")]
    unprotected = count_leaks(network, lambda: network.node.run("sleep 0.5"), 1)
    network.node.run(NEW_CHAIN)
    refilled = count_leaks(
        network, lambda: network.node.run(f"iptables-nft -t nat -F aad-metadata\n{CHAIN_RULES}"), times
    )
    network.node.run("iptables-nft -t nat -F; iptables-nft -t nat -X; conntrack -F 2>/dev/null")
    for server in servers:
        server.close()
    return {"control: nothing in the way": unprotected, "control: a chain flushed and filled": refilled}


def replace_rules(network: Network, times: int) -> dict[str, int]:
    """Replace the rules, as each start of a daemon does."""
    servers = [Server(network.azure, IMDS, 80, "imds"), Server(network.node, NODE, PORT, "nmi")]
    within(network.node, install)
    counts = count_leaks(network, lambda: within(network.node, replace_once), times)
    for server in servers:
        server.close()
    within(network.node, Redirect.uninstall)
    return counts


async def replace_once(redirect: Redirect) -> None:
    """Make the whole interception anew."""
    await install(redirect)
    await asyncio.sleep(0)


def disturb(node: Node, act: Callable[[Node], None], times: int) -> dict[str, int]:
    """Do something to the daemon under traffic, and check that pods are served afterwards."""
    counts = count_leaks(node.network, lambda: act(node), times)
    until(lambda: "access_token" in node.ask(0)[1], "the pod has its token again")
    return counts | {"leaked": counts["leaked"] + node.network.leaked()}


def kill(node: Node) -> None:
    """Kill the daemon, as the kernel does when memory is short, and start another."""
    node.kill()
    node.start()


def flush(node: Node) -> None:
    """Remove every rule of the node, and wait until the daemon has put its own back."""
    node.network.node.run("nft flush ruleset")
    until(lambda: "podidentity" in node.network.node.run("nft list tables"), "the redirect is back")


if __name__ == "__main__":
    raise SystemExit(main())
