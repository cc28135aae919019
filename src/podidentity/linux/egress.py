"""What sends to the network without passing this host's routes: macvlans and ipvlans of its uplinks, cards of pods.

The kernel itself is the source, as in `bridges`: it also lists the interfaces of pods. A virtual function
that a program drives without the kernel is no interface of anybody; sysfs has it below its card.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from podidentity.errors import HostError
from podidentity.linux import interception, netlink
from podidentity.linux.interception import Forbidden, Uplink
from podidentity.linux.nftables import Table

_KINDS = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap"})
_LOOPBACK = "lo"
_ETHERNET = len("00:00:00:00:00:00")
_INTERFACES = Path("/sys/class/net")


def uplink_guard(forbidden: Forbidden, uplinks: tuple[str, ...]) -> Table:
    """Return the table that guards `uplinks` and the host's cards as they are now. Raises `HostError`."""
    ways = ways_out(netlink.links(), uplinks)
    return interception.uplink_guard(forbidden, ways, {address.address for address in netlink.addresses()})


def ways_out(links: Collection[netlink.Link], uplinks: Collection[str]) -> tuple[Uplink, ...]:
    """Return the interfaces by which packets leave this host: its uplinks, and its cards.

    Not the ports of a bridge or bond: their frames carry its hardware address, and nothing else can hang on them.
    """
    vlans = any(link.kind == "vlan" for link in links)
    return tuple(
        Uplink(link.interface, link.name, link.hardware if len(link.hardware) == _ETHERNET else "", vlans)
        for link in links
        if link.name in uplinks or (is_card(link) and link.master <= 0)
    )


def links_on_uplinks(uplinks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the links that hang on `uplinks`, here and in pods' namespaces. Raises `HostError`."""
    links = netlink.links()
    numbers = {link.interface for link in links if link.name in uplinks}
    outside = {link.namespace for link in links if link.name in uplinks}  # where a virtual uplink's other end is
    names = [f"{link.name} ({link.kind})" for link in links if _hangs_on(link, numbers)]
    for namespace in set(netlink.namespaces()) - outside:
        names += [f"{link.name} ({link.kind} of a pod)" for link in _links_of(namespace) if _hangs_on(link, numbers)]
    return tuple(sorted(names))


def cards_of_pods(uplinks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the network cards, whole or virtual functions, in pods' namespaces. Raises `HostError`."""
    outside = {link.namespace for link in netlink.links() if link.name in uplinks}
    inside = set(netlink.namespaces()) - outside
    return tuple(sorted(link.name for namespace in inside for link in _links_of(namespace) if is_card(link)))


def virtual_functions_of_others(uplinks: tuple[str, ...], interfaces: Path = _INTERFACES) -> tuple[str, ...]:
    """Return the virtual functions of `uplinks` that are in use, but not by an interface of this host's own.

    `interfaces` is sysfs's directory of interfaces, which shows those of this network namespace alone.
    """
    return tuple(sorted(name for uplink in uplinks for name in _functions_of_others(interfaces / uplink / "device")))


def _functions_of_others(device: Path) -> Iterator[str]:
    for function in device.glob("virtfn*"):
        has_interface = any((function / "net").glob("*"))
        if (function / "driver").exists() and not has_interface:
            yield f"{function.resolve().name} (a virtual function of {device.parent.name})"


def is_card(link: netlink.Link) -> bool:
    """Whether an interface stands for hardware: all others are of some kind of the kernel's, but for the loopback."""
    return not link.kind and link.name != _LOOPBACK and len(link.hardware) == _ETHERNET


def _hangs_on(link: netlink.Link, numbers: set[int]) -> bool:
    return link.kind in _KINDS and link.peer in numbers


def _links_of(namespace: int) -> tuple[netlink.Link, ...]:
    try:
        return netlink.links(namespace)
    except HostError:  # the namespace went meanwhile, or is not ours to look at
        return ()
