"""Whose process a loopback connection is, read from the kernel's own table."""

import os
import socket
from pathlib import Path

from podidentity.linux.original_destination import original_destination
from podidentity.linux.peer_owner import owner_uid


def test_a_connection_of_ours_is_ours() -> None:
    """The real table names this process's user; a connection that does not exist has no owner."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0],
    ):
        assert owner_uid(client.getsockname(), server.getsockname()) == os.getuid()
        assert owner_uid(("127.0.0.1", 1), server.getsockname()) is None


def test_an_unreadable_table_is_no_owner(tmp_path: Path) -> None:
    """Nobody is taken for root because nothing could be read."""
    assert owner_uid(("127.0.0.1", 1), ("127.0.0.1", 2), tmp_path / "none") is None


def test_a_connection_that_was_not_redirected_says_so() -> None:
    """Dialled directly: its own address, or nothing; never IMDS's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
        server.accept()[0] as accepted,
    ):
        assert original_destination(accepted) in {None, server.getsockname()}
