"""Where a lab listens, and whose requests it answers."""

import socket

import pytest

from podidentity.errors import UsageError
from podidentity_lab.callers import Callers
from podidentity_lab.settings import LabSettings


def test_the_three_ports_follow_each_other() -> None:
    """With --listen the ports follow each other; without it the kernel chooses them, on loopback."""
    chosen = LabSettings("lab", listen="0.0.0.0:16443").addresses()
    assert chosen == [("0.0.0.0", port) for port in (16443, 16444, 16445)]  # what a container wants
    assert LabSettings("lab").addresses() == [("127.0.0.1", 0)] * 3


@pytest.mark.parametrize("place", ["192.0.2.1:16443", "16443", "0.0.0.0", "127.0.0.1:0", "127.0.0.1:165535"])
def test_other_places_are_refused(place: str) -> None:
    """Places that the addresses of `lab env` would not lead to are refused."""
    with pytest.raises(UsageError, match="--listen"):
        LabSettings("lab", listen=place)


def test_whoever_comes_from_outside_a_container_is_served() -> None:
    """A client from outside the container is served.

    Its user is another machine's, so that the kernel cannot say whose it is.
    """
    with socket.socket() as diagnosis:
        assert Callers(0, diagnosis, -1).is_welcome(("172.17.0.1", 40000), ("172.17.0.2", 16444))
