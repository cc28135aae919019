"""Which interfaces stand for hardware, and by which of them packets leave a host."""

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
    """A pod that was given a card, or a virtual function of one, is told of; its other interfaces are not."""
    assert is_card(link) == card


def test_a_port_is_no_way_of_its_own() -> None:
    """The node's own packets leave a port with the hardware address of its bridge, and would be dropped there."""
    bridge = CARD._replace(interface=3, name="br0", kind="bridge", hardware="02:00:00:00:00:03")
    second = CARD._replace(interface=4, name="eth1", hardware="02:00:00:00:00:04")
    ways = ways_out([CARD._replace(master=3), bridge, second, CARD._replace(interface=5, kind="veth")], {"br0"})
    assert [(way.name, way.hardware) for way in ways] == [("br0", bridge.hardware), ("eth1", second.hardware)]


def test_a_host_with_vlans_sends_tagged_frames() -> None:
    """Wherever its VLANs are, also on a bond: its own frames to IMDS must not be taken for a pod's."""
    vlan = CARD._replace(interface=3, name="eth0.7", kind="vlan", peer=2)
    assert [way.vlans for way in ways_out([CARD, vlan], {"eth0.7"})] == [True, True]
    assert [way.vlans for way in ways_out([CARD], {"eth0"})] == [False]


def make_function(root: Path, uplink: str, number: int, *, driver: str = "mlx5_core", interface: str = "") -> None:
    """Write what sysfs shows of a virtual function: by whom it is driven, and its interface if that is here."""
    function = root / "devices" / f"0000:3b:02.{number}"
    (function / "net" / interface).mkdir(parents=True)
    if driver:
        (function / "driver").mkdir()
    device = root / "net" / uplink / "device"
    device.mkdir(parents=True, exist_ok=True)
    (device / f"virtfn{number}").symlink_to(function)


def test_a_virtual_function_that_somebody_else_drives_is_found(tmp_path: Path) -> None:
    """A pod, or a program without the kernel; not one that nobody uses, this host's own, or another card's."""
    make_function(tmp_path, "eth0", 0, interface="eth0v0")
    make_function(tmp_path, "eth0", 1)
    make_function(tmp_path, "eth0", 2, driver="")
    make_function(tmp_path, "eth1", 3, driver="vfio-pci")
    found = virtual_functions_of_others(("eth0", "veth7"), tmp_path / "net")
    assert found == ("0000:3b:02.1 (a virtual function of eth0)",)
    assert len(virtual_functions_of_others(("eth0", "eth1"), tmp_path / "net")) == 2
