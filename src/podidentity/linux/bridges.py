"""What hangs on this host's bridges: for each port, the addresses of whoever is at its other end.

The kernel itself is the source: it lists the interfaces of a pod's namespace to whoever has NET_ADMIN over it, without
a right to enter it and without a file of a network plugin. Which pod may have which address is decided in
`core/tokens/bridge_ports`.
"""

import ipaddress
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from podidentity.core.tokens.bridge_ports import Port
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
        """Whether the node reaches an IPv4 address through one of the bridges."""
        return any(ipaddress.IPv4Address(address) in network for network in self.networks)


def look(known_ports: frozenset[int] = frozenset()) -> Bridges:
    """List all bridges and their ports; the other ends of `known_ports` are not asked again. Raises `HostError`."""
    links = netlink.links()
    bridges = {link.interface: link for link in links if link.kind == "bridge"}
    members = [link for link in links if link.master in bridges]
    bridges_in_use = {link.master for link in members}
    networks = tuple(
        ipaddress.IPv4Interface(f"{address.address}/{address.prefix}").network
        for address in netlink.addresses()
        if address.interface in bridges_in_use
    )
    ports = tuple(_port(link, ask=link.interface not in known_ports) for link in members if link.kind == "veth")
    return Bridges(networks, ports, frozenset(link.interface for link in links), netlink.host_routes())


def with_veths() -> frozenset[str]:
    """Return the names of the bridges that have a veth among their ports. Raises `HostError`."""
    links = netlink.links()
    bridges_in_use = {link.master for link in links if link.kind == "veth"}
    return frozenset(link.name for link in links if link.kind == "bridge" and link.interface in bridges_in_use)


def _port(link: netlink.Link, *, ask: bool) -> Port:
    if not ask or link.namespace < 0:
        return Port(link.interface, link.name, frozenset(), "")
    try:
        pod_addresses = netlink.addresses(link.namespace)
        hardware = next((end.hardware for end in netlink.links(link.namespace) if end.interface == link.peer), "")
    except HostError:  # the namespace went meanwhile
        return Port(link.interface, link.name, frozenset(), "")
    return Port(
        link.interface,
        link.name,
        frozenset(address.address for address in pod_addresses if address.interface == link.peer),
        hardware,
    )
