"""Which netfilter tables keep pods away from the real IMDS and send them to NMI: pure, only values.

Four tables with lives of their own. The *guard* drops what is forwarded to IMDS and outlives the daemon: only an
uninstall takes it away. The *redirect* sends new connections to NMI and stays when the daemon stops, so that pods are
refused and not let through. The *hold* drops new connections between a planned stop and the next start, so that clients
retransmit instead of being refused. *Ports* lets a bridge's packets to IMDS pass only from the port of the pod that
has their source address. Loaded by NMI's redirect and anti-spoofing through `nftables`. Why each line is as it is was
measured: docs/decisions/fail-closed.md.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from podidentity.core.bridges import Place, Port
from podidentity.errors import HostError
from podidentity.linux.nftables import Chain, Set, Table

GUARD = ("inet", "podidentity_guard")
REDIRECT = ("ip", "podidentity")
BRIDGE_GUARD = ("bridge", "podidentity_guard")
HOLD = ("ip", "podidentity_hold")
PORTS = ("bridge", "podidentity_ports")
ADDRESSES = "addresses"
"""The set of PORTS with port and address of each pod."""

_RAW = -300  # before connection tracking
_BEFORE_OTHERS_DNAT = -110  # iptables' nat and kube-proxy hook in at -100: theirs must not come first
_BEFORE_OTHERS_FILTER = -10

_INTERFACE_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,15}")  # what may stand between quotes in an nft text


@dataclass(frozen=True, slots=True)
class Interception:
    """What is intercepted and where it goes. Addresses are IPv4 (IMDS has no other), `uplinks` are interface names.

    An uplink is an interface through which the node itself reaches IMDS: what arrives there comes from no pod of it.
    """

    metadata_address: str
    metadata_port: int
    listen_address: str
    listen_port: int
    uplinks: tuple[str, ...]
    anti_spoof: bool = True


def guard(what: Interception) -> Table:
    """Drop everything forwarded to IMDS, whatever its port and whatever connection tracking thinks of it."""
    # nat never sees packets that conntrack calls INVALID (a bare RST, SYN+FIN): only this chain stops those.
    rules = (f"ip daddr {what.metadata_address} counter drop",)
    return Table(*GUARD, (Chain("forward", "filter", "forward", _BEFORE_OTHERS_FILTER, rules),))


def bridge_guard(what: Interception) -> Table:
    """Drop what a bridge would carry to IMDS: pods that hang on the uplink's own bridge are never routed."""
    rules = (f"ip daddr {what.metadata_address} counter drop",)
    return Table(*BRIDGE_GUARD, (Chain("forward", "filter", "forward", _BEFORE_OTHERS_FILTER, rules),))


def redirect(what: Interception) -> Table:
    """Send pods' new connections to NMI, and drop those whose source lives behind another interface."""
    # To the node's address, not to 127.0.0.1: that would need route_localnet, which opens the node's loopback to pods.
    asked = f"ip daddr {what.metadata_address} tcp dport {what.metadata_port}"
    sent = f"{_not_from_uplinks(what)}fib saddr type != local {asked} counter dnat to {_destination(what)}"
    chains = [Chain("prerouting", "nat", "prerouting", _BEFORE_OTHERS_DNAT, (sent,))]
    if what.anti_spoof:
        # A routed veth proves its pod's address; on a bridge the rule lets all pass and proves nothing.
        spoofed = f"{asked} fib saddr . iif oif missing counter drop"
        chains.append(Chain("spoofed", "filter", "prerouting", _RAW, (spoofed,)))
    return Table(*REDIRECT, tuple(chains))


def hold(what: Interception) -> Table:
    """Drop the SYNs of new connections to IMDS, so that they are sent again a second later."""
    # A filter chain before conntrack: in a chain of type nat the drop never matched.
    asked = f"ip daddr {what.metadata_address} tcp dport {what.metadata_port}"
    rule = f"{_not_from_uplinks(what)}fib saddr type != local {asked} tcp flags & (fin|syn|rst|ack) == syn counter drop"
    return Table(*HOLD, (Chain("prerouting", "filter", "prerouting", _RAW, (rule,)),))


def ports(metadata_address: str, all_ports: Collection[Port], places: Collection[Place]) -> Table:
    """Keep a bridge's pods from asking in a neighbour's name, and from drawing a neighbour's answers to themselves.

    `all_ports` are the veths in bridges, `places` those of them whose pod is known; nobody else gets through to IMDS.
    """
    owned = [(_quoted(place.port.name), address) for place in places for address in place.addresses]
    hardware = [(_quoted(place.port.name), place.port.hardware) for place in places if place.port.hardware]
    sets = (
        _set("ports", "ifname", {_quoted(port.name) for port in all_ports}),
        _set(ADDRESSES, "ifname . ipv4_addr", {f"{name} . {address}" for name, address in owned}),
        _set("claimed", "ipv4_addr", {address for _, address in owned}),
        _set("hardware", "ifname . ether_addr", {f"{name} . {address}" for name, address in hardware}),
        _set("stolen", "ether_addr", {address for _, address in hardware}),
    )
    rules = (
        # The kernel takes two priority tags off a frame; with the second still on, no rule below knows it for IPv4.
        "iifname @ports meta protocol { 8021ad, 8021q } counter drop",
        # Before the bridge learns where an address is: answers to a pod would go to whoever used its address last.
        "ether saddr @stolen iifname . ether saddr != @hardware counter drop",
        # `meta` looks behind a priority tag where `ether type`, which nft would put there, does not.
        "meta protocol arp arp saddr ip @claimed iifname . arp saddr ip != @addresses counter drop",
        f"ip daddr {metadata_address} iifname . ip saddr != @addresses counter drop",
    )
    return Table(*PORTS, (Chain("prerouting", "filter", "prerouting", _RAW, rules),), sets)


def _set(name: str, kind: str, elements: Collection[str]) -> Set:
    return Set(name, kind, tuple(sorted(elements)))


def _quoted(name: str) -> str:
    if not _INTERFACE_NAME.fullmatch(name):
        raise HostError(f"Interface {name!r} has a name that nft cannot be given. Rename the interface.")
    return f'"{name}"'


def _not_from_uplinks(what: Interception) -> str:
    names = sorted(_quoted(name) for name in what.uplinks)
    if not names:
        return ""
    return f"iifname != {names[0] if len(names) == 1 else '{ ' + ', '.join(names) + ' }'} "


def _destination(what: Interception) -> str:
    return f"{what.listen_address}:{what.listen_port}"
