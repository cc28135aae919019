"""Finds signs that pods' packets pass this host outside netfilter, where neither redirect nor guard would see them.

It finds what NET_ADMIN can see: interfaces of Cilium and of Calico's eBPF mode, netkit
devices, XDP and `tc` programs on the interfaces of pods. Programs attached by `tcx` links are not listed to it.
"""

from podidentity.linux import netlink

_NAMES = ("cilium_", "bpfin.cali", "bpfout.cali")


def bypasses(uplinks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of such interfaces, each with the sign that was found there. Raises `HostError`.

    Programs on `uplinks` are not counted: they see what comes from outside, not what pods send to IMDS.
    """
    filtered = frozenset(netlink.filtered())
    inner = (link for link in netlink.links() if link.name not in uplinks)
    return tuple(f"{link.name} ({sign})" for link in inner if (sign := _sign(link, filtered)))


def _sign(link: netlink.Link, filtered: frozenset[int]) -> str:
    if link.name.startswith(_NAMES):
        return "made by an eBPF network plugin"
    if link.kind == "netkit":
        return "a netkit device"
    if link.xdp:
        return "an XDP program"
    return "a tc BPF program" if link.interface in filtered else ""
