"""Which port of a bridge carries which pod: pure. Called by NMI's anti-spoofing.

On a bridge a packet's source address proves nothing: any pod may write a neighbour's. What proves it is the port that
the packet comes in by, once it is known whose port that is. The kernel says which addresses the other end of a port
has, but a pod with NET_ADMIN can give itself more. Hence: an address that two ports claim is nobody's, a port carries
one pod, and a pod keeps its port for life: when the port goes and another comes with the address, that is somebody
else. docs/decisions/anti-spoofing.md
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from podidentity.core.cluster import Pod


class Port(NamedTuple):
    """A veth in a bridge: its interface number and name here, and the IPv4 and hardware addresses of its other end."""

    interface: int
    name: str
    addresses: frozenset[str]
    hardware: str


class Place(NamedTuple):
    """Where a pod hangs, and what it may call itself there."""

    port: Port
    addresses: tuple[str, ...]


class Unplaced(NamedTuple):
    """A pod whose port cannot be told. `why` is shown in logs and on `/readyz`."""

    pod: Pod
    why: str


class Placed(NamedTuple):
    """The outcome: places by pod UID, also those whose port is gone, and the pods without a port."""

    places: Mapping[str, Place]
    unplaced: tuple[Unplaced, ...]


def place(pods: Sequence[Pod], ports: Sequence[Port], before: Mapping[str, Place]) -> Placed:
    """Give each pod its port, or say why that cannot be done.

    `before` is the last outcome. The addresses of a port that it names are not looked at again.
    """
    places = {
        pod.uid: was
        for pod in pods
        # With other addresses its sandbox was made anew.
        if (was := before.get(pod.uid)) is not None and was.addresses == addresses_of(pod)
    }
    taken = {one.port.interface: one.port for one in places.values()}
    seen = Counter(taken.get(port.interface, port).hardware for port in ports)
    twins = frozenset(hardware for hardware, count in seen.items() if count > 1)
    while found := _sure(pods, ports, places, twins):
        places |= found
    there = {port.interface for port in ports}
    unplaced = tuple(
        Unplaced(pod, _why(pod, ports, places, twins))
        for pod in pods
        if pod.uid not in places or places[pod.uid].port.interface not in there
    )
    return Placed(places, unplaced)


def addresses_of(pod: Pod) -> tuple[str, ...]:
    """Return a pod's IPv4 addresses: IMDS has no other, so nobody asks it from another."""
    return tuple(address for address in pod.ips if ":" not in address)


def _sure(
    pods: Sequence[Pod], ports: Sequence[Port], places: Mapping[str, Place], twins: frozenset[str]
) -> dict[str, Place]:
    """Place those who have one free port that no other pod without a place could have as its only one."""
    only: dict[int, list[tuple[Pod, Port]]] = {}
    for pod in pods:
        if pod.uid not in places:
            free = _claims(pod, ports, places)
            if len(free) == 1 and free[0].hardware not in twins:
                only.setdefault(free[0].interface, []).append((pod, free[0]))
    sure = (claims[0] for claims in only.values() if len(claims) == 1)
    return {pod.uid: Place(port, addresses_of(pod)) for pod, port in sure}


def _claims(pod: Pod, ports: Sequence[Port], places: Mapping[str, Place]) -> list[Port]:
    taken = {place.port.interface for place in places.values()}
    mine = set(addresses_of(pod))
    return [port for port in ports if port.interface not in taken and port.addresses & mine]


def _why(pod: Pod, ports: Sequence[Port], places: Mapping[str, Place], twins: frozenset[str]) -> str:
    free = _claims(pod, ports, places)
    told = f"pod {pod.key} at {', '.join(addresses_of(pod))}"
    if pod.uid in places:
        return f"{told}: its port {places[pod.uid].port.name} is gone, but the API server still knows the pod"
    if not free:
        return f"{told}: no free port of a bridge has this address at its other end"
    names = " and ".join(sorted(port.name for port in free))
    if len(free) > 1:
        return f"{told}: ports {names} both claim its address"
    if free[0].hardware in twins:
        return f"{told}: port {names} shares its hardware address {free[0].hardware} with another port"
    return f"{told}: another pod could be at its port {names} as well"
