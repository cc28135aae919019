"""Whether a program listens at an address of this host, by the kernel's own table."""

import socket
from pathlib import Path

_TABLE = Path("/proc/thread-self/net/tcp")
_LOCAL, _STATE = 1, 3  # columns of proc_net_tcp
_LISTEN = "0A"


def is_listening(address: str, port: int, table: Path = _TABLE) -> bool:
    """Whether a TCP socket listens at an IPv4 address, or at all of them; False when that cannot be told."""
    ends = {f"{int.from_bytes(socket.inet_aton(text), 'little'):08X}:{port:04X}" for text in (address, "0.0.0.0")}
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return False
    rows = (line.split() for line in lines)
    return any(row[_STATE] == _LISTEN and row[_LOCAL] in ends for row in rows)
