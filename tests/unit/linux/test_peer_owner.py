"""Which user's process has the other end of a loopback connection, according to the kernel."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from podidentity.linux import peer_owner
from podidentity.linux.original_destination import original_destination
from podidentity.linux.peer_owner import End, owner_uid
from podidentity_lab.callers import Callers

Way = Callable[[End, End], int | None]


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A listening socket on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture(params=[peer_owner.ask, peer_owner.read], ids=["the one socket", "the table"])
def way(request: pytest.FixtureRequest) -> Way:
    """Both ways to find the owner, which must agree."""
    chosen: Way = request.param
    return chosen


async def test_a_connection_of_ours_is_ours(server: socket.socket, way: Way) -> None:
    """The owner is this process's user; a connection that does not exist has no owner."""
    with socket.create_connection(server.getsockname()) as client, server.accept()[0]:
        assert way(client.getsockname(), server.getsockname()) == os.getuid()
        assert way(("127.0.0.1", 1), server.getsockname()) is None
        assert await owner_uid(client.getsockname(), server.getsockname()) == os.getuid()


def test_a_client_with_a_socket_of_ipv6_has_an_owner(server: socket.socket) -> None:
    """Java opens such sockets for IPv4 connections, too."""
    address, port = server.getsockname()
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as client:
        client.connect((f"::ffff:{address}", port))
        with server.accept()[0] as accepted:
            assert peer_owner.ask(accepted.getpeername(), server.getsockname()) == os.getuid()


def test_a_connection_that_its_program_closed_is_nobodys(server: socket.socket, way: Way) -> None:
    """A closed connection has no owner.

    The kernel lists its remains with user 0, and nobody must pass for root by hanging up at the right moment.
    """
    with socket.create_connection(server.getsockname()) as client:
        ends = client.getsockname(), server.getsockname()
        with server.accept()[0] as accepted:
            client.close()
            assert accepted.recv(1) == b""
            assert way(*ends) is None
        assert way(*ends) is None


def test_a_connection_whose_client_ended_its_side_is_nobodys(server: socket.socket, way: Way) -> None:
    """A connection whose client has shut down its side has no owner.

    It looks like one that its program has closed; it still gets answers, but no pod's token by `/host/token`.
    """
    with socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        assert way(client.getsockname(), server.getsockname()) is None


def test_who_listens_at_the_clients_end_is_not_the_client(server: socket.socket, way: Way) -> None:
    """For a connection that is gone the kernel may report a listener on its port, which is not the owner."""
    with socket.create_server(("127.0.0.1", 0)) as another:
        assert way(another.getsockname(), server.getsockname()) is None


async def test_a_kernel_that_cannot_be_asked_has_a_table(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the kernel cannot be asked by inet_diag, its table in /proc gives the same answer."""

    def refused(_client: End, _server: End) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(peer_owner, "ask", refused)
    with socket.create_connection(server.getsockname()) as client, server.accept()[0]:
        assert await owner_uid(client.getsockname(), server.getsockname()) == os.getuid()


def test_an_unreadable_table_is_no_owner(tmp_path: Path) -> None:
    """A table that cannot be read leads to no owner, not to root."""
    assert peer_owner.read(("127.0.0.1", 1), ("127.0.0.1", 2), tmp_path / "none") is None


def test_a_connection_that_was_not_redirected_says_so(server: socket.socket) -> None:
    """A direct connection's original destination is the server's own address, or unknown."""
    with socket.create_connection(server.getsockname()), server.accept()[0] as accepted:
        assert original_destination(accepted) in {None, server.getsockname()}


def test_who_is_welcome_in_a_lab(server: socket.socket) -> None:
    """A lab serves its own user and root, by either way to ask the kernel."""
    silent = peer_owner.open_diagnosis()
    silent.close()
    with contextlib.closing(Callers.of_this_host()) as callers:
        for way in (callers, replace(callers, diagnosis=silent)):
            with socket.create_connection(server.getsockname()) as client, server.accept()[0]:
                assert way.is_welcome(client.getsockname(), server.getsockname())
                assert replace(way, owner=-1).is_welcome(client.getsockname(), server.getsockname()) == (
                    os.getuid() == 0
                )
            assert not way.is_welcome(("127.0.0.1", 1), server.getsockname())
