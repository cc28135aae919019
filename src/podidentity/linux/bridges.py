"""What hangs on this host's bridges: for each port, the addresses of whoever is at its other end.

The kernel itself is the source: it lists the interfaces of a pod's namespace to whoever has NET_ADMIN over it, without
a right to enter it and without a file of a network plugin. Called by NMI's anti-spoofing; who may have which address is
decided in `core.bridges`.
"""

import ipaddress
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from podidentity.core.bridges import Port
from podidentity.errors import HostError
from podidentity.linux import netlink


class Bridges(NamedTuple):
    """The IPv4 networks of the bridges that have ports, and the veths among these.

    Also the numbers of all interfaces, and through which of them an address with a route of its own is reached.
    """

    networks: tuple[ipaddress.IPv4Network, ...] = ()
    ports: tuple[Port, ...] = ()
    interfaces: frozenset[int] = frozenset()
    routes: Mapping[str, int] = MappingProxyType({})

    def reach(self, address: str) -> bool:
        """Say whether the node reaches an IPv4 address through one of the bridges."""
        return any(ipaddress.IPv4Address(address) in network for network in self.networks)


def look(known: frozenset[int] = frozenset()) -> Bridges:
    """Look at all bridges; the other ends of the ports in `known` are not asked again. Raises `HostError`."""
    here = netlink.links()
    bridges = {link.interface: link for link in here if link.kind == "bridge"}
    members = [link for link in here if link.master in bridges]
    used = {link.master for link in members}
    networks = tuple(
        ipaddress.IPv4Interface(f"{address.address}/{address.prefix}").network
        for address in netlink.addresses()
        if address.interface in used
    )
    ports = tuple(_port(link, ask=link.interface not in known) for link in members if link.kind == "veth")
    return Bridges(networks, ports, frozenset(link.interface for link in here), netlink.host_routes())


def with_veths() -> frozenset[str]:
    """Name the bridges that have a veth among their ports. Raises `HostError`."""
    here = netlink.links()
    used = {link.master for link in here if link.kind == "veth"}
    return frozenset(link.name for link in here if link.kind == "bridge" and link.interface in used)


def _port(link: netlink.Link, *, ask: bool) -> Port:
    if not ask or link.namespace < 0:
        return Port(link.interface, link.name, frozenset(), "")
    try:
        there = netlink.addresses(link.namespace)
        hardware = next((one.hardware for one in netlink.links(link.namespace) if one.interface == link.peer), "")
    except HostError:  # the namespace went meanwhile
        return Port(link.interface, link.name, frozenset(), "")
    return Port(
        link.interface, link.name, frozenset(one.address for one in there if one.interface == link.peer), hardware
    )
