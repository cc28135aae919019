"""Which port of a bridge carries which pod, so that a pod cannot use another's address.

On a bridge a packet's source address proves nothing: any pod may write a neighbour's. What proves it is the port that
the packet comes in by, once it is known whose port that is. The kernel says which addresses the other end of a port
has, but a pod with NET_ADMIN can give itself more. Hence: an address that two ports claim is nobody's, a port carries
one pod, and a pod keeps its port for life: when the port goes and another comes with the address, that is somebody
else. docs/decisions/anti-spoofing.md
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from podidentity.core.model.snapshot import Pod


class Port(NamedTuple):
    """A veth in a bridge: its interface number and name here, and the IPv4 and hardware addresses of its other end."""

    interface: int
    name: str
    addresses: frozenset[str]
    hardware: str


class Place(NamedTuple):
    """The port of a pod, and the addresses that it may use there."""

    port: Port
    addresses: tuple[str, ...]


class Unplaced(NamedTuple):
    """A pod whose port is not known. `why` is shown in logs and on `/readyz`."""

    pod: Pod
    message: str


class Placement(NamedTuple):
    """The outcome: places by pod UID, also those whose port is gone, and the pods without a port."""

    places: Mapping[str, Place]
    unplaced: tuple[Unplaced, ...]


def place(pods: Sequence[Pod], ports: Sequence[Port], previous: Mapping[str, Place]) -> Placement:
    """Return the port of each pod, or why it has none.

    `previous` is the last outcome. The addresses of a port that it names are not looked at again.
    """
    places = {
        pod.uid: was
        for pod in pods
        # With other addresses its sandbox was made anew.
        if (was := previous.get(pod.uid)) is not None and was.addresses == addresses_of(pod)
    }
    occupied = {item.port.interface: item.port for item in places.values()}
    hardware_counts = Counter(occupied.get(port.interface, port).hardware for port in ports)
    twins = frozenset(hardware for hardware, count in hardware_counts.items() if count > 1)
    while additions := _sure(pods, ports, places, twins):
        places |= additions
    interfaces = {port.interface for port in ports}
    unplaced = tuple(
        Unplaced(pod, _message(pod, ports, places, twins))
        for pod in pods
        if pod.uid not in places or places[pod.uid].port.interface not in interfaces
    )
    return Placement(places, unplaced)


def addresses_of(pod: Pod) -> tuple[str, ...]:
    """Return a pod's IPv4 addresses: IMDS has no other, so nobody asks it from another."""
    return tuple(address for address in pod.ips if ":" not in address)


def _sure(
    pods: Sequence[Pod], ports: Sequence[Port], places: Mapping[str, Place], twins: frozenset[str]
) -> dict[str, Place]:
    """Return places for pods with one free port that is not also the only one of another pod without a place."""
    only: dict[int, list[tuple[Pod, Port]]] = {}
    for pod in pods:
        if pod.uid not in places:
            free = _claims(pod, ports, places)
            if len(free) == 1 and free[0].hardware not in twins:
                only.setdefault(free[0].interface, []).append((pod, free[0]))
    sure = (claims[0] for claims in only.values() if len(claims) == 1)
    return {pod.uid: Place(port, addresses_of(pod)) for pod, port in sure}


def _claims(pod: Pod, ports: Sequence[Port], places: Mapping[str, Place]) -> list[Port]:
    occupied = {place.port.interface for place in places.values()}
    addresses = set(addresses_of(pod))
    return [port for port in ports if port.interface not in occupied and port.addresses & addresses]


def _message(pod: Pod, ports: Sequence[Port], places: Mapping[str, Place], twins: frozenset[str]) -> str:
    free = _claims(pod, ports, places)
    subject = f"pod {pod.key} at {', '.join(addresses_of(pod))}"
    if pod.uid in places:
        return f"{subject}: its port {places[pod.uid].port.name} is gone, but the API server still knows the pod"
    if not free:
        return f"{subject}: no free port of a bridge has this address at its other end"
    names = " and ".join(sorted(port.name for port in free))
    if len(free) > 1:
        return f"{subject}: ports {names} both claim its address"
    if free[0].hardware in twins:
        return f"{subject}: port {names} shares its hardware address {free[0].hardware} with another port"
    return f"{subject}: another pod could be at its port {names} as well"
