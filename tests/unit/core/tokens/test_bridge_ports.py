"""Which port of a bridge belongs to which pod: when that is certain, and when it is not."""

from dataclasses import replace

import pytest

import make
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.bridge_ports import Place, Port, place


def pod(name: str, address: str) -> Pod:
    """Build a pod with an IPv4 and an IPv6 address."""
    return replace(make.pod(name), ips=(address, "fd00::1"))


def port(number: int, *addresses: str, hardware: str = "") -> Port:
    """Build a veth."""
    return Port(number, f"veth{number}", frozenset(addresses), hardware or f"02:00:00:00:00:0{number}")


SINGLE_POD, TWO = pod("one", "10.0.0.1"), pod("two", "10.0.0.2")


def where(pods: list[Pod], ports: list[Port], previous: dict[str, Place] | None = None) -> dict[str, str]:
    """Return the port of each pod that has one, by name."""
    placement = place(pods, ports, previous or {})
    assert len(placement.unplaced) + len(placement.places) == len(pods)
    return {uid.removeprefix("uid-of-"): item.port.name for uid, item in placement.places.items()}


def why(pods: list[Pod], ports: list[Port], previous: dict[str, Place] | None = None) -> str:
    """Return why the last of the pods without a port has none."""
    return place(pods, ports, previous or {}).unplaced[-1].message


def test_each_pod_is_at_the_port_with_its_address() -> None:
    """A pod is at the one port at whose other end the kernel lists its IPv4 address."""
    placement = place([SINGLE_POD, TWO], [port(1, "10.0.0.1"), port(2, "10.0.0.2", "127.0.0.1"), port(3)], {})
    assert {uid: item.port.interface for uid, item in placement.places.items()} == {"uid-of-one": 1, "uid-of-two": 2}
    assert placement.places["uid-of-one"].addresses == ("10.0.0.1",)
    assert placement.unplaced == ()


def test_a_pod_that_also_claims_its_neighbours_address_gains_nothing() -> None:
    """A pod that also uses its neighbour's address stays at its own port, and the neighbour keeps the other."""
    assert where([TWO, SINGLE_POD], [port(1, "10.0.0.1", "10.0.0.2"), port(2, "10.0.0.2")]) == {
        "one": "veth1",
        "two": "veth2",
    }


def test_an_address_that_two_ports_claim_is_nobodys() -> None:
    """When two ports have one address, neither is believed.

    A pod that gives up its own address for its neighbour's cannot be told from that neighbour.
    """
    ports = [port(1, "10.0.0.2"), port(2, "10.0.0.2")]
    assert where([SINGLE_POD, TWO], ports) == {}
    assert why([TWO], ports) == "pod default/two at 10.0.0.2: ports veth1 and veth2 both claim its address"


def test_what_was_placed_stays_whatever_others_claim() -> None:
    """A pod keeps the port at which it was placed first, whatever addresses any port has later."""
    previous = dict(place([SINGLE_POD, TWO], [port(1, "10.0.0.1"), port(2, "10.0.0.2")], {}).places)
    assert where([SINGLE_POD, TWO], [port(1), port(2), port(3, "10.0.0.1")], previous) == {
        "one": "veth1",
        "two": "veth2",
    }


def test_a_port_that_is_gone_is_not_replaced() -> None:
    """A pod whose port is gone is not placed at another port with its address; a new pod with that address is."""
    previous = dict(place([SINGLE_POD], [port(1, "10.0.0.1")], {}).places)
    assert why([SINGLE_POD], [port(2, "10.0.0.1")], previous).endswith(
        "its port veth1 is gone, but the API server still knows the pod"
    )
    new = replace(SINGLE_POD, uid="uid-of-new")
    assert place([new], [port(2, "10.0.0.1")], previous).places["uid-of-new"].port.name == "veth2"


def test_a_pod_whose_sandbox_was_made_anew_is_placed_anew() -> None:
    """A pod with a new sandbox has another address, so that its port is looked for again."""
    previous = dict(place([SINGLE_POD], [port(1, "10.0.0.1")], {}).places)
    assert where([replace(SINGLE_POD, ips=("10.0.0.9",))], [port(2, "10.0.0.9")], previous) == {"one": "veth2"}


@pytest.mark.parametrize(
    ("ports", "told"),
    [
        ([port(1)], "no free port of a bridge has this address at its other end"),
        (
            [port(1, "10.0.0.1"), port(2, hardware="02:00:00:00:00:01")],
            "port veth1 shares its hardware address 02:00:00:00:00:01 with another port",
        ),
        ([port(1, "10.0.0.1", "10.0.0.2")], "another pod could be at its port veth1 as well"),
    ],
)
def test_a_pod_without_a_port_is_told_why(ports: list[Port], told: str) -> None:
    """The sentence names the pod, its address and why no port is certain."""
    assert why([TWO, SINGLE_POD], ports) == f"pod default/one at 10.0.0.1: {told}"


def test_a_newcomer_with_a_placed_pods_hardware_address_is_not_placed() -> None:
    """A port with the hardware address of a port that is taken is given to nobody."""
    previous = dict(place([SINGLE_POD], [port(1, "10.0.0.1")], {}).places)
    ports = [port(1), port(2, "10.0.0.2", hardware="02:00:00:00:00:01")]
    placement = place([SINGLE_POD, TWO], ports, previous)
    assert [item.pod.key.name for item in placement.unplaced] == ["two"]
