"""Which interfaces are hardware, and by which of them packets leave a host."""

from pathlib import Path

import pytest

from podidentity.linux.egress import is_card, virtual_functions_of_others, ways_out
from podidentity.linux.netlink import Link

CARD = Link(2, "eth0", "", -1, -1, -1, "02:00:00:00:00:02")


@pytest.mark.parametrize(
    ("link", "card"),
    [
        (CARD, True),
        (CARD._replace(kind="veth"), False),
        (CARD._replace(kind="macvlan"), False),
        (CARD._replace(name="lo", hardware="00:00:00:00:00:00"), False),
        (CARD._replace(hardware="01:02:03:04"), False),
    ],
)
def test_only_hardware_has_no_kind(link: Link, *, card: bool) -> None:
    """A network card, or a virtual function of one, has no kind in the kernel's list; other interfaces are no cards."""
    assert is_card(link) == card


def test_a_port_is_no_way_of_its_own() -> None:
    """A port of a bridge is left out in favour of the bridge, whose hardware address the node's packets have."""
    bridge = CARD._replace(interface=3, name="br0", kind="bridge", hardware="02:00:00:00:00:03")
    second = CARD._replace(interface=4, name="eth1", hardware="02:00:00:00:00:04")
    ways = ways_out([CARD._replace(master=3), bridge, second, CARD._replace(interface=5, kind="veth")], {"br0"})
    assert [(way.name, way.hardware) for way in ways] == [("br0", bridge.hardware), ("eth1", second.hardware)]


def test_a_host_with_vlans_sends_tagged_frames() -> None:
    """On a host with VLANs each uplink counts as sending tagged frames.

    The host's own frames to IMDS must not be taken for a pod's.
    """
    vlan = CARD._replace(interface=3, name="eth0.7", kind="vlan", peer=2)
    assert [way.vlans for way in ways_out([CARD, vlan], {"eth0.7"})] == [True, True]
    assert [way.vlans for way in ways_out([CARD], {"eth0"})] == [False]


def make_function(root: Path, uplink: str, number: int, *, driver: str = "mlx5_core", interface: str = "") -> None:
    """Write the entries of sysfs for a virtual function: its driver, and its interface if it has one on this host."""
    function = root / "devices" / f"0000:3b:02.{number}"
    (function / "net" / interface).mkdir(parents=True)
    if driver:
        (function / "driver").mkdir()
    device = root / "net" / uplink / "device"
    device.mkdir(parents=True, exist_ok=True)
    (device / f"virtfn{number}").symlink_to(function)


def test_a_virtual_function_that_somebody_else_drives_is_found(tmp_path: Path) -> None:
    """A virtual function with a driver but no interface here is used by a pod, or by a program without the kernel.

    Unused ones, this host's own and those of other cards are left out.
    """
    make_function(tmp_path, "eth0", 0, interface="eth0v0")
    make_function(tmp_path, "eth0", 1)
    make_function(tmp_path, "eth0", 2, driver="")
    make_function(tmp_path, "eth1", 3, driver="vfio-pci")
    found = virtual_functions_of_others(("eth0", "veth7"), tmp_path / "net")
    assert found == ("0000:3b:02.1 (a virtual function of eth0)",)
    assert len(virtual_functions_of_others(("eth0", "eth1"), tmp_path / "net")) == 2
