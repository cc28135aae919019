"""What the kernel says of a TCP socket, where the event loop says nothing (tcp(7), TCP_INFO)."""

import socket

_TCP_INFO_BYTES = 104
_TCP_CLOSED = 7  # net/tcp_states.h; the first byte of tcp_info
_UNACCEPTED = slice(24, 28)  # tcp_info.tcpi_unacked, which of a listening socket is the length of its queue


def is_reset(connection: socket.socket) -> bool:
    """Whether the client's kernel has reset the connection; the event loop looks no more after a client's end."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)[0] == _TCP_CLOSED


def has_unaccepted(listening: socket.socket) -> bool:
    """Whether the kernel holds connections that have not been accepted yet."""
    return any(listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)[_UNACCEPTED])
