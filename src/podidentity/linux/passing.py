"""Sends listening sockets to another process of this host, and receives them (unix(7), SCM_RIGHTS).

A listening socket that several processes hold stays open, with all connections that wait in its queue, until the last
of them closes it. Nothing here may import much: NMI's supervisor, which runs as long as NMI does, uses it.
"""

import socket
from collections.abc import Sequence

_WORD_BYTES = 64
_SOCKETS = 128  # NMI has 74 at most; the kernel takes 253 in a message


def send_sockets(connection: socket.socket, word: str, sockets: Sequence[socket.socket] = ()) -> None:
    """Send one message: a word, and sockets. `connection` is a Unix socket of type SOCK_SEQPACKET. Raises OSError."""
    socket.send_fds(connection, [word.encode()], [listening.fileno() for listening in sockets])


def receive_sockets(connection: socket.socket) -> tuple[str, list[socket.socket]]:
    """Receive one message: its word, empty at the connection's end, and its sockets. Raises OSError.

    Of the sockets only those that listen are returned.
    """
    data, descriptors, _, _ = socket.recv_fds(connection, _WORD_BYTES, _SOCKETS, socket.MSG_CMSG_CLOEXEC)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for listening in sockets:
        if not _listens(listening):
            listening.close()
    return data.decode("ascii", "replace"), [listening for listening in sockets if listening.fileno() >= 0]


def _listens(listening: socket.socket) -> bool:
    try:
        return listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    except OSError:
        return False
