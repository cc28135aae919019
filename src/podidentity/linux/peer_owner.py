"""Which user of this host is at the other end of a loopback connection. Called by NMI for `/host/token`."""

import socket
from pathlib import Path

_TABLE = Path("/proc/thread-self/net/tcp")
_LOCAL, _REMOTE, _UID = 1, 2, 7  # columns of proc_net_tcp


def owner_uid(client: tuple[str, int], server: tuple[str, int], table: Path = _TABLE) -> int | None:
    """Return the user ID of the process that connected from `client` to `server`; None when that cannot be told.

    Both are IPv4 addresses and ports of this host: the client's own end of the connection is listed, with its owner.
    """
    ends = (_written(client), _written(server))
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        columns = line.split()
        if (columns[_LOCAL], columns[_REMOTE]) == ends:
            return int(columns[_UID])
    return None


def _written(end: tuple[str, int]) -> str:
    """Write an address as the kernel does: the four bytes as a number of this machine's byte order, in hex."""
    number = int.from_bytes(socket.inet_aton(end[0]), "little")
    return f"{number:08X}:{end[1]:04X}"
