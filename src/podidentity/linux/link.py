"""Where a connection's packets come in: the interface, and the sender's hardware address.

A pod's address alone does not say who it is for ever: addresses are reused before the API server says so. On routed
veths the interface is the pod's own; on a bridge the hardware address is.
"""

import contextlib
import socket
import struct

# Numbers of linux/in.h and linux/tcp.h; Python's socket module lacks some of them.
_IP_PKTINFO = 8
_IP_PKTOPTIONS = 9
_TCP_SAVE_SYN = 27
_TCP_SAVED_SYN = 28
_FROM_THE_LINK_LAYER = 2  # keep the SYN with its Ethernet header, not only from the IP header on

Link = tuple[int, bytes | None]
"""The index of the interface and the sender's hardware address: empty when it has none, None when it is not known."""

_CONTROL_BYTES = 128
_SYN_BYTES = 256
_CONTROL_HEADER = struct.Struct("@Nii")
_SOURCE_MAC = slice(6, 12)
_IPV4_AT = 14  # length of an Ethernet header


def record_links(listener: socket.socket) -> None:
    """Make the kernel remember where connections to `listener` come from. Without such a kernel nothing is known."""
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_IP, _IP_PKTINFO, 1)
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN, _FROM_THE_LINK_LAYER)


def link_of(connection: socket.socket) -> Link | None:
    """Return where a connection comes in. None when the kernel does not say.

    Can be asked once for each connection: the kernel then forgets the SYN.
    """
    try:
        control = connection.getsockopt(socket.SOL_IP, _IP_PKTOPTIONS, _CONTROL_BYTES)
        syn = connection.getsockopt(socket.IPPROTO_TCP, _TCP_SAVED_SYN, _SYN_BYTES)
        # A cookie took the place of a SYN that should have been kept: too many connections were half open (tcp(7)).
        is_lost = not syn and bool(connection.getsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN))
    except OSError:
        return None
    interface = _interface(control)
    return None if interface is None else (interface, None if is_lost else _hardware_address(syn))


def _interface(control: bytes) -> int | None:
    """Read the first control message: `struct in_pktinfo`, which begins with the interface's index."""
    start = _CONTROL_HEADER.size
    if len(control) < start + 4:
        return None
    _, level, kind = _CONTROL_HEADER.unpack_from(control)
    if (level, kind) != (socket.SOL_IP, _IP_PKTINFO):
        return None
    return int.from_bytes(control[start : start + 4], "little")


def _hardware_address(syn: bytes) -> bytes:
    """Read the source of the Ethernet header before an IPv4 header; empty when there is none."""
    if len(syn) <= _IPV4_AT or syn[_IPV4_AT] >> 4 != 4:  # noqa: PLR2004  # IP version
        return b""
    return syn[_SOURCE_MAC]
