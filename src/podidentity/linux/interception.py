"""Which netfilter tables keep pods away from the real IMDS and send them to NMI: pure, only values.

Three tables with three lives. The *guard* drops what is forwarded to IMDS and outlives the daemon: only an uninstall
takes it away. The *redirect* sends new connections to NMI and stays when the daemon stops, so that pods are refused and
not let through. The *hold* drops new connections between a planned stop and the next start, so that clients
retransmit instead of being refused. Loaded by NMI's redirect through `nftables`. Why each line is as it is was
measured: docs/decisions/fail-closed.md.
"""

import re
from dataclasses import dataclass

from podidentity.errors import HostError
from podidentity.linux.nftables import Chain, Table

GUARD = ("inet", "podidentity_guard")
REDIRECT = ("ip", "podidentity")
HOLD = ("ip", "podidentity_hold")

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


def _not_from_uplinks(what: Interception) -> str:
    for name in what.uplinks:
        if not _INTERFACE_NAME.fullmatch(name):
            raise HostError(f"Interface {name!r} has a name that nft cannot be given. Rename the interface.")
    names = sorted(f'"{name}"' for name in what.uplinks)
    if not names:
        return ""
    return f"iifname != {names[0] if len(names) == 1 else '{ ' + ', '.join(names) + ' }'} "


def _destination(what: Interception) -> str:
    return f"{what.listen_address}:{what.listen_port}"
