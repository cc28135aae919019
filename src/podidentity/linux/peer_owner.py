"""Which user of this host is at the other end of a loopback connection.

The kernel is asked for the one socket (sock_diag(7)). Where it does not answer that, its table of all sockets is read,
which takes long on a busy node: in a thread. Only a connection that stands has an owner: the kernel lists one that its
program has closed as root's.
"""

import asyncio
import contextlib
import os
import socket
import struct
from pathlib import Path

End = tuple[str, int]
"""An IPv4 address and a port."""

# Numbers of linux/netlink.h, linux/sock_diag.h and net/tcp_states.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 0x1
_ERROR = 2
_ESTABLISHED = 1
_ANY_STATE, _ANY_INTERFACE, _ANY_COOKIE = 0xFFFFFFFF, bytes(4), b"\xff" * 8

_HEADER = struct.Struct("=IHHII")
_REQUEST_BODY = struct.Struct("=BBBxI")  # inet_diag_req_v2 up to its `id`: family, protocol, extensions, states
_ENDS = struct.Struct("!HH4s12x4s12x")  # inet_diag_sockid without interface and cookie: ports, addresses
_PORTS = struct.Struct(">HH")
_MAPPED = bytes(10) + b"\xff\xff"
_RESPONSE_BODY = struct.Struct("=xBxx36s24xI")  # inet_diag_msg: state, the ends of its `id`, uid
_NUMBER = struct.Struct("=i")
_READ_BYTES = 4096
_ANSWER_SECONDS = 1.0

_TABLE = Path("/proc/thread-self/net/tcp")
_LOCAL, _REMOTE, _STATE, _UID = 1, 2, 3, 7  # columns of proc_net_tcp


async def owner_uid(client: End, server: End, table: Path = _TABLE) -> int | None:
    """Return the user ID of the process that connected from `client` to `server`; None when that cannot be told.

    Both are ends on this host: the client's own end of the connection is looked up, with its owner.
    """
    try:
        return ask(client, server)
    except OSError:  # no inet_diag in this kernel, or not for us
        return await asyncio.to_thread(read, client, server, table)


def open_diagnosis() -> socket.socket:
    """Return a socket for `ask`: the kernel answers for the network and user namespaces that it was opened in."""
    diagnosis = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    diagnosis.settimeout(_ANSWER_SECONDS)
    return diagnosis


def ask(client: End, server: End, diagnosis: socket.socket | None = None) -> int | None:
    """Ask the kernel for the one socket, by `diagnosis` or a socket of our own.

    Raises OSError where it does not answer such questions.
    """
    with contextlib.nullcontext(diagnosis) if diagnosis else open_diagnosis() as asking:
        return _ask(asking, client, server)


def _ask(asking: socket.socket, client: End, server: End) -> int | None:
    try:
        state, ends, uid = _look_up(asking, client, server)
    except FileNotFoundError:  # no such socket, or nobody who would look: our own end is there for certain
        _look_up(asking, server, client)
        return None
    # Without such a connection the kernel gives the socket that listens at the client's end, if one does.
    return (
        uid if state == _ESTABLISHED and ends in (_render_raw(client, server), _render_mapped(client, server)) else None
    )


def read(client: End, server: End, table: Path = _TABLE) -> int | None:
    """Find the socket in the table of all; None when it is not there, or the table cannot be read."""
    try:
        return find(table.read_text(), client, server)
    except OSError:
        return None


def find(table: str, client: End, server: End) -> int | None:
    """Find the socket in the text of such a table; None when it is not there."""
    ends = (_render(client), _render(server))
    for line in table.splitlines()[1:]:
        columns = line.split()
        if (columns[_LOCAL], columns[_REMOTE]) == ends:
            return int(columns[_UID]) if int(columns[_STATE], 16) == _ESTABLISHED else None
    return None


def _look_up(asking: socket.socket, local: End, remote: End) -> tuple[int, bytes, int]:
    """Return the state, the ends and the owner of the socket at `local`. Raises OSError, FileNotFoundError for none."""
    ends = _render_raw(local, remote)
    body = _REQUEST_BODY.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ANY_STATE) + ends + _ANY_INTERFACE + _ANY_COOKIE
    asking.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0) + body)
    answer = asking.recv(_READ_BYTES)
    if _HEADER.unpack_from(answer)[1] == _ERROR:
        number = -_NUMBER.unpack_from(answer, _HEADER.size)[0]
        raise OSError(number, os.strerror(number))
    state, socket_ends, uid = _RESPONSE_BODY.unpack_from(answer, _HEADER.size)
    return state, socket_ends, uid


def _render_raw(local: End, remote: End) -> bytes:
    return _ENDS.pack(local[1], remote[1], socket.inet_aton(local[0]), socket.inet_aton(remote[0]))


def _render_mapped(local: End, remote: End) -> bytes:
    """Return the ends as those of an IPv6 socket, which Java opens for IPv4 connections, too (RFC 4291, 2.5.5.2)."""
    addresses = (_MAPPED + socket.inet_aton(address) for address, _ in (local, remote))
    return _PORTS.pack(local[1], remote[1]) + b"".join(addresses)


def _render(end: End) -> str:
    """Return an address as the table has it: the four bytes as a number of this machine's byte order, in hex."""
    number = int.from_bytes(socket.inet_aton(end[0]), "little")
    return f"{number:08X}:{end[1]:04X}"
