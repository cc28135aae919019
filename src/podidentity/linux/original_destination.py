"""Which address a client dialled before netfilter redirected its connection to NMI."""

import socket

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; Python's socket module has no name for it
_SOCKADDR_IN_BYTES = 16


def original_destination(connection: socket.socket) -> tuple[str, int] | None:
    """Return the address and port that the client dialled, or None when connection tracking knows nothing of it.

    A client that dialled the listener itself gets the listener's own address: not redirected either. IPv4 only.
    """
    try:
        raw = connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN_BYTES)
    except OSError:  # ENOENT: not tracked; ENOPROTOOPT: no conntrack in this kernel or namespace
        return None
    return socket.inet_ntop(socket.AF_INET, raw[4:8]), int.from_bytes(raw[2:4], "big")
