"""Where a connection's packets come in: the interface, and the sender's hardware address.

A pod's address alone does not say who it is for ever: addresses are reused before the API server says so. On routed
veths the interface is the pod's own; on a bridge the hardware address is.
"""

import contextlib
import socket
import struct
from typing import NamedTuple

# Numbers of linux/in.h, linux/in6.h and linux/tcp.h; Python's socket module lacks some of them.
_IP_PKTINFO = 8
_IP_PKTOPTIONS = 9
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50
_IPV6_2292PKTOPTIONS = 6
_TCP_SAVE_SYN = 27
_TCP_SAVED_SYN = 28
_FROM_THE_LINK_LAYER = 2  # keep the SYN with its Ethernet header, not only from the IP header on

Link = tuple[int, bytes | None]
"""The index of the interface and the sender's hardware address: empty when it has none, None when it is not known."""

_CONTROL_BYTES = 128
_SYN_BYTES = 256
_CONTROL_HEADER = struct.Struct("@Nii")
_SOURCE_MAC = slice(6, 12)
_IP_AT = 14  # length of an Ethernet header
_IP_VERSIONS = (4, 6)


class _Control(NamedTuple):
    """How a family's sockets tell where packets come in: two options, and the control message that they give."""

    level: int
    record: int
    """Whether it is remembered, an option of the listener."""
    read: int
    """What is remembered, an option of the connection."""
    message: int
    interface_at: int
    """Where the interface's index is: `struct in_pktinfo` begins with it, `struct in6_pktinfo` with an address."""


_IPV4 = _Control(socket.SOL_IP, _IP_PKTINFO, _IP_PKTOPTIONS, _IP_PKTINFO, 0)
_IPV6 = _Control(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, _IPV6_2292PKTOPTIONS, _IPV6_PKTINFO, 16)


def record_links(listener: socket.socket) -> None:
    """Make the kernel remember where connections to `listener` come from. Without such a kernel nothing is known."""
    with contextlib.suppress(OSError):
        control = _control(listener)
        listener.setsockopt(control.level, control.record, 1)
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN, _FROM_THE_LINK_LAYER)


def link_of(connection: socket.socket) -> Link | None:
    """Return where a connection comes in. None when the kernel does not say.

    Can be asked once for each connection: the kernel then forgets the SYN.
    """
    control = _control(connection)
    try:
        message = connection.getsockopt(control.level, control.read, _CONTROL_BYTES)
        syn = connection.getsockopt(socket.IPPROTO_TCP, _TCP_SAVED_SYN, _SYN_BYTES)
        # A cookie took the place of a SYN that should have been kept: too many connections were half open (tcp(7)).
        is_lost = not syn and bool(connection.getsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN))
    except OSError:
        return None
    interface = _interface(message, control)
    return None if interface is None else (interface, None if is_lost else _hardware_address(syn))


def _control(connection: socket.socket) -> _Control:
    return _IPV6 if connection.family == socket.AF_INET6 else _IPV4


def _interface(message: bytes, control: _Control) -> int | None:
    """Read the interface's index from the first control message."""
    start = _CONTROL_HEADER.size + control.interface_at
    if len(message) < start + 4:
        return None
    _, level, kind = _CONTROL_HEADER.unpack_from(message)
    if (level, kind) != (control.level, control.message):
        return None
    return int.from_bytes(message[start : start + 4], "little")


def _hardware_address(syn: bytes) -> bytes:
    """Read the source of the Ethernet header before an IP header; empty when there is none."""
    if len(syn) <= _IP_AT or syn[_IP_AT] >> 4 not in _IP_VERSIONS:
        return b""
    return syn[_SOURCE_MAC]
