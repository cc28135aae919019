"""Which netfilter tables keep pods away from the real IMDS and send them to NMI: pure, only values.

Tables with lives of their own. The *guard* drops what is forwarded to IMDS and outlives the daemon: only an uninstall
takes it away. A bridge's and the uplinks' own guards drop what is never forwarded. The *redirect* sends new
connections to NMI and stays when the daemon stops, so that pods are refused and not let through. The *hold* drops new
connections between a planned stop and the next start, so that clients retransmit instead of being refused. *Ports*
lets a bridge's packets to IMDS pass only from the port of the pod that has their source address. Loaded by NMI's
redirect and anti-spoofing through `nftables`. Why each line is as it is was measured: docs/decisions/fail-closed.md.
"""

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from podidentity.core.tokens.bridge_ports import Place, Port
from podidentity.errors import HostError
from podidentity.linux.nftables import Chain, Set, Table

GUARD = ("inet", "podidentity_guard")
REDIRECT = ("ip", "podidentity")
BRIDGE_GUARD = ("bridge", "podidentity_guard")
UPLINK_GUARD = ("netdev", "podidentity_guard")
HOLD = ("ip", "podidentity_hold")
PORTS = ("bridge", "podidentity_ports")
ADDRESSES = "addresses"
"""The set of PORTS with port and address of each pod, and that of UPLINK_GUARD with this host's own addresses."""

WIRESERVER = "168.63.129.16"
"""Azure's WireServer, the same in every region: the platform's channel to the VM's agent, names (port 53) and DHCP.

learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
"""
WIRESERVER_PORTS = (80, 32526)
"""Where the VM's agent is served, which gets the machine's certificates and settings of extensions."""

_RAW = -300  # before connection tracking
_BEFORE_OTHERS_DNAT = -110  # iptables' nat and kube-proxy hook in at -100: theirs must not come first
_BEFORE_OTHERS_FILTER = -10

_INTERFACE_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,15}")  # what may stand between quotes in an nft text


_DESTINATION_BITS = (8 * (14 + 4 + 16), 8 * (14 + 8 + 16))
"""Where IPv4's destination is in an Ethernet frame with one tag, and with two."""


class Uplink(NamedTuple):
    """An interface by which this host's packets leave. `hardware` is empty where it has no such address.

    `vlans` says whether this host itself may send tagged frames by it.
    """

    interface: int
    name: str
    hardware: str
    vlans: bool = False


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


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Where no pod's packet may go: IMDS on any port, and with `wireserver` Azure's WireServer, except for names."""

    metadata_address: str
    wireserver: bool = False

    def matches(self) -> tuple[str, ...]:
        """Return what matches each of these destinations, in nft's words."""
        ports = WIRESERVER_PORTS if self.wireserver else ()
        return (
            f"ip daddr {self.metadata_address}",
            *(f"ip daddr {WIRESERVER} tcp dport {port}" for port in ports),
        )


def guard(forbidden: Forbidden) -> Table:
    """Drop everything forwarded there, whatever connection tracking thinks of it."""
    # nat never sees packets that conntrack calls INVALID (a bare RST, SYN+FIN): only this table stops those.
    forward = tuple(f"{match} counter drop" for match in forbidden.matches())
    # A source-routed packet carries the node's address until it has been forwarded; the next one stands in it here.
    leaving = tuple(f"{match} fib saddr type != local counter drop" for match in forbidden.matches())
    return Table(
        *GUARD,
        (
            Chain("forward", "filter", "forward", _BEFORE_OTHERS_FILTER, forward),
            Chain("leaving", "filter", "postrouting", _BEFORE_OTHERS_FILTER, leaving),
        ),
    )


def bridge_guard(forbidden: Forbidden) -> Table:
    """Drop what a bridge would carry there: pods that hang on the uplink's own bridge are never routed."""
    rules = tuple(f"{match} counter drop" for match in forbidden.matches())
    return Table(*BRIDGE_GUARD, (Chain("forward", "filter", "forward", _BEFORE_OTHERS_FILTER, rules),))


def uplink_guard(forbidden: Forbidden, uplinks: Collection[Uplink], own_addresses: Collection[str]) -> Table:
    """Drop what leaves an uplink for there and is not the node's own.

    A macvlan or ipvlan hands its pod's packets straight to the uplink: no other hook sees them. They carry a hardware
    address of their own (macvlan) or an address that is none of this host's (ipvlan).
    """
    chains = []
    for uplink in sorted(uplinks):
        rules: list[str] = []
        for match in forbidden.matches():
            if uplink.hardware:
                rules.append(f"{match} ether saddr != {uplink.hardware} counter drop")
            rules.append(f"{match} ip saddr != @{ADDRESSES} counter drop")
        rules += _tagged_rules(forbidden, uplink)
        # The name has the interface's number: `nft -j` does not tell the device of a chain.
        chains.append(
            Chain(f"uplink{uplink.interface}", "filter", _egress(uplink), _BEFORE_OTHERS_FILTER, tuple(rules))
        )
    return Table(*UPLINK_GUARD, tuple(chains), (_set(ADDRESSES, "ipv4_addr", own_addresses),))


def _tagged_rules(forbidden: Forbidden, uplink: Uplink) -> list[str]:
    """Drop frames with one or two VLAN tags, priority tags above all: a receiver takes those off.

    No match for IPv4 looks behind a tag that stands in the frame, so the destination is read where it must be.
    """
    # Where this host has VLANs, its own frames have tags, and the uplink's hardware address.
    stranger = f" ether saddr != {uplink.hardware}" if uplink.vlans and uplink.hardware else ""
    addresses = [forbidden.metadata_address, *([WIRESERVER] if forbidden.wireserver else [])]
    return [
        f"meta protocol {{ 8021ad, 8021q }} @ll,{bits},32 {int(ipaddress.IPv4Address(address))}{stranger} counter drop"
        for address in addresses
        for bits in _DESTINATION_BITS
    ]


def _egress(uplink: Uplink) -> str:
    return f"egress device {_in_quotes(uplink.name)}"


def redirect(settings: Interception) -> Table:
    """Send pods' new connections to NMI, and drop those whose source lives behind another interface."""
    # To the node's address, not to 127.0.0.1: that would need route_localnet, which opens the node's loopback to pods.
    match = f"ip daddr {settings.metadata_address} tcp dport {settings.metadata_port}"
    redirection = (
        f"{_not_from_uplinks(settings)}fib saddr type != local {match} counter dnat to {_destination(settings)}"
    )
    chains = [Chain("prerouting", "nat", "prerouting", _BEFORE_OTHERS_DNAT, (redirection,))]
    if settings.anti_spoof:
        # A routed veth proves its pod's address; on a bridge the rule lets all pass and proves nothing.
        spoofed = f"{match} fib saddr . iif oif missing counter drop"
        chains.append(Chain("spoofed", "filter", "prerouting", _RAW, (spoofed,)))
    return Table(*REDIRECT, tuple(chains))


def hold(settings: Interception) -> Table:
    """Drop the SYNs of new connections to IMDS, so that they are sent again a second later."""
    # A filter chain before conntrack: in a chain of type nat the drop never matched.
    match = f"ip daddr {settings.metadata_address} tcp dport {settings.metadata_port}"
    new = "tcp flags & (fin|syn|rst|ack) == syn"
    rule = f"{_not_from_uplinks(settings)}fib saddr type != local {match} {new} counter drop"
    return Table(*HOLD, (Chain("prerouting", "filter", "prerouting", _RAW, (rule,)),))


def ports(metadata_address: str, all_ports: Collection[Port], places: Collection[Place]) -> Table:
    """Keep a bridge's pods from asking in a neighbour's name, and from drawing a neighbour's answers to themselves.

    `all_ports` are the veths in bridges, `places` those of them whose pod is known; nobody else gets through to IMDS.
    """
    owned = [(_in_quotes(place.port.name), address) for place in places for address in place.addresses]
    hardware = [(_in_quotes(place.port.name), place.port.hardware) for place in places if place.port.hardware]
    sets = (
        _set("ports", "ifname", {_in_quotes(port.name) for port in all_ports}),
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


def _in_quotes(name: str) -> str:
    if not _INTERFACE_NAME.fullmatch(name):
        raise HostError(f"interface {name!r} has a name that nft cannot be given; rename the interface")
    return f'"{name}"'


def _not_from_uplinks(settings: Interception) -> str:
    names = sorted(_in_quotes(name) for name in settings.uplinks)
    if not names:
        return ""
    return f"iifname != {names[0] if len(names) == 1 else '{ ' + ', '.join(names) + ' }'} "


def _destination(settings: Interception) -> str:
    return f"{settings.listen_address}:{settings.listen_port}"
