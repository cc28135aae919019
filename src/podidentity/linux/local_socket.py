"""Unix sockets that only root can open: their directory is checked, and who connected is known.

The kubelet's probes reach TCP ports only, so that no pod's manifest makes it ask here.
"""

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

from podidentity.errors import HostError

_CREDENTIALS = struct.Struct("=iII")  # ucred of linux/socket.h: process, user, group
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OWNER_ONLY = 0o600
_BACKLOG = 64
_DRAFT = ".new"
"""Behind a path: where a socket gets its rights before it takes the place of the one at the path."""


def open_local_socket(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """Listen on a Unix socket at `path`; another process's takes its place at once, with nothing between the two.

    Clients that wait at the other one stay there. Raises `HostError`.
    """
    check_directory(path.parent)
    _check_stale(path)
    draft = path.with_name(f"{path.name}{_DRAFT}")
    server_socket = socket.socket(socket.AF_UNIX, kind)
    try:
        draft.unlink(missing_ok=True)
        server_socket.bind(str(draft))
        draft.chmod(_OWNER_ONLY)  # before anybody can connect: that takes a socket that listens
        server_socket.listen(_BACKLOG)
        draft.rename(path)
    except OSError as error:
        server_socket.close()
        raise HostError(f"{path}: no socket can be made here: {error.strerror}; mount its directory writable") from None
    return server_socket


def is_at(server_socket: socket.socket, path: Path) -> bool:
    """Whether a socket that `open_local_socket` made is for `path`, and some socket is there."""
    return (
        server_socket.family == socket.AF_UNIX and server_socket.getsockname() == f"{path}{_DRAFT}" and path.is_socket()
    )


def peer_uid(connection: socket.socket) -> int:
    """Return the user ID of the process that connected to a Unix socket, as it was then (unix(7), SO_PEERCRED)."""
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


def check_directory(directory: Path) -> None:
    """Raise `HostError` unless the directory is ours alone: whoever else writes there could replace the socket."""
    try:
        status = directory.stat()
    except OSError as error:
        raise HostError(f"{directory}: {error.strerror}; create it, owned by root with mode 0755") from None
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_MAY_WRITE:
        raise HostError(f"{directory}: others than root may write here; give it to root with mode 0755")


def _check_stale(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise HostError(f"{path}: something else than a socket is here; remove it, or give another path")
