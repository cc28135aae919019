"""Keeps the bridges' table in step with the pods: each may ask IMDS from its own address and its own port alone.

Gathers (the kernel's links, the watch's pods), lets `bridge_ports` decide, loads one table. Woken by changes of pods
and of this host; what cannot be proven is reported by `/readyz` and counted, and such a pod gets no answer. Routed
veths need none of this: there a rule of the redirect compares source and interface.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens import bridge_ports as deciding
from podidentity.core.tokens.bridge_ports import Place, Port, Unplaced
from podidentity.errors import HostError, KubernetesError
from podidentity.linux import bridges, interception, nftables
from podidentity.linux.bridges import Bridges
from podidentity.linux.notifications import watch_host
from podidentity.nmi.ports import MOVED_SECONDS
from podidentity.timing import Clock

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.02  # between two looks: a pod's SYN waits for a second when it comes before its place is known
_AGAIN_SECONDS = 1.0  # while a pod has no place
_LOOK_AGAIN_SECONDS = 10.0  # at the API server, while a pod's port is another one

PodsNow = Callable[[], Collection[Pod] | None]
"""Returns the live pods of this node with a network of their own; None before the first list."""
ListPods = Callable[[], Awaitable[Collection[Pod]]]
"""Returns the pods of this node as the API server itself lists them now. Raises `KubernetesError`."""


class HostObserver(Protocol):
    """Who hears where pods' packets come in."""

    def expect(self, uid: str, interface: int) -> None:
        """A pod is reached through this interface alone."""

    def hold(self, uids: frozenset[str]) -> None:
        """The bridges' table lets the addresses of these pods in by their own ports alone, and those of no others."""

    def reset_interface(self, interface: int) -> None:
        """An interface no longer exists."""

    def reset_pod(self, uid: str) -> None:
        """A pod has lost its port of a bridge."""

    def release(self, uid: str) -> None:
        """A pod lives on at another port: its sandbox was made anew."""


class AntiSpoofSettings(NamedTuple):
    """Without `enabled`, NMI only reports which pods could take each other's addresses."""

    metadata_address: str
    enabled: bool
    check_seconds: float


class AntiSpoof:
    """The bridges of this host. `observer` hears of interfaces and ports."""

    def __init__(
        self, settings: AntiSpoofSettings, pods: PodsNow, look: ListPods, observer: HostObserver, clock: Clock
    ) -> None:
        self._metadata_address, self._enabled, self._check_seconds = settings
        self._pods = pods
        self._look = look
        self._observer = observer
        self._clock = clock
        self._change = asyncio.Event()
        self._places: Mapping[str, Place] = {}
        self._unplaced: tuple[Unplaced, ...] = ()
        self._previous_addresses: Mapping[int, frozenset[str]] | None = None
        self._table: nftables.Table | None = None
        self._trouble = ""
        self._interfaces: frozenset[int] = frozenset()
        self._routed = 0
        self._uids_at_ports: frozenset[str] = frozenset()
        self._moves: Mapping[tuple[str, int], float] = {}
        self._next_look = -float("inf")

    def look_again(self) -> None:
        """Wake up: a pod changed."""
        self._change.set()

    @property
    def unproven_pods(self) -> int:
        """Return how many pods of bridges cannot be distinguished from their neighbours."""
        return len(self._unplaced)

    @property
    def proven_pods(self) -> int:
        """Return of how many pods it is known by which interface or port they ask."""
        return self._routed + len(self._uids_at_ports)

    def warnings(self) -> tuple[str, ...]:
        """Return one sentence for each pod whose port is not known, or one that says why none is."""
        if self._trouble:
            return (f"{self.unproven_pods} pods on bridges can take each other's addresses: {self._trouble}",)
        return tuple(f"{unplaced.message}. Its requests are dropped." for unplaced in self._unplaced)

    async def run(self) -> None:
        """Keep the table in step until cancelled. Raises `HostError` without the right to watch."""
        async with watch_host(self._change, links=True):
            while True:
                await self.keep()
                await asyncio.sleep(_PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_SECONDS if self._unplaced else self._check_seconds):
                        await self._change.wait()
                self._change.clear()

    async def keep(self) -> None:
        """Look, decide, and load the table if it is not what it should be. Whatever fails becomes a warning."""
        pods = self._pods()
        if pods is None:
            await self._close()
            return
        try:
            interfaces = frozenset(place.port.interface for place in self._places.values())
            links = await asyncio.to_thread(bridges.look, interfaces)
        except HostError as error:
            self._report(tuple(Unplaced(pod, "") for pod in pods), str(error))
            return
        self._note_interfaces(links)
        self._routed = self._expect(pods, links)
        bridged = [pod for pod in pods if any(map(links.reach, deciding.addresses_of(pod)))]
        try:
            if self._enabled:
                self._report(await self._place(bridged, links))
            else:
                await self._unload()
                self._report(tuple(Unplaced(pod, "") for pod in bridged), "--anti-spoof=off")
        except HostError as error:
            self._table = None
            self._observer.hold(frozenset())
            self._report(tuple(Unplaced(pod, "") for pod in bridged), str(error))

    async def _close(self) -> None:
        """Keep bridges closed until it is known who is there, unless a predecessor's table stands, which stays.

        The first list may come at any moment, and a question in a neighbour's name may be waiting for just that.
        """
        with contextlib.suppress(HostError):  # reported as soon as there are pods
            if self._enabled and await nftables.list_table(*interception.PORTS) is None:
                await nftables.replace(interception.ports(self._metadata_address, (), ()))

    def _expect(self, pods: Collection[Pod], links: Bridges) -> int:
        """Report where the packets of pods with a route of their own will come in; return how many these are."""
        count = 0
        for pod in pods:
            interfaces = {links.routes[address] for address in deciding.addresses_of(pod) if address in links.routes}
            if len(interfaces) == 1:
                self._observer.expect(pod.uid, interfaces.pop())
                count += 1
        return count

    def _note_interfaces(self, links: Bridges) -> None:
        """End the connections that came in by an interface that is gone: its pod is gone too."""
        for interface in self._interfaces - links.interfaces:
            self._observer.reset_interface(interface)
        self._interfaces = links.interfaces

    async def _place(self, pods: Collection[Pod], links: Bridges) -> tuple[Unplaced, ...]:
        if self._previous_addresses is None:
            self._previous_addresses = await _addresses_of_last_run(links.ports)
        ports = _without_new_addresses(links.ports, self._previous_addresses)
        placement = deciding.place(tuple(pods), ports, await self._current_places(pods, ports, links))
        present = [place for place in placement.places.values() if place.port.interface in links.interfaces]
        table = interception.ports(self._metadata_address, links.ports, present)
        if table != self._table or await nftables.differences(table):
            await nftables.replace(table)
        uids_at_ports = frozenset(uid for uid, place in placement.places.items() if place in present)
        for uid in self._uids_at_ports - uids_at_ports:
            self._observer.reset_pod(uid)
        self._table, self._places, self._uids_at_ports = table, placement.places, uids_at_ports
        self._observer.hold(uids_at_ports)
        return placement.unplaced

    async def _current_places(
        self, pods: Collection[Pod], ports: Sequence[Port], links: Bridges
    ) -> Mapping[str, Place]:
        """Return the places so far, without those of pods that live on at another port.

        Such a port has been the only one to claim the pod's address for a while: long enough for another pod that puts
        the address on to be known by its own.
        """
        portless = {uid for uid, place in self._places.items() if place.port.interface not in links.interfaces}
        staying = {uid: place for uid, place in self._places.items() if uid not in portless}
        new_places = deciding.place(tuple(pods), ports, staying).places if portless else {}
        now, previous = self._clock.steady(), self._moves
        self._moves = {
            move: previous.get(move, now)
            for uid in portless & new_places.keys()
            for move in [(uid, new_places[uid].port.interface)]
        }
        moved = await self._alive({uid for (uid, _), since in self._moves.items() if now - since >= MOVED_SECONDS})
        for uid in moved:
            _log.info("pod with UID %s is now at port %s: its sandbox was made anew", uid, new_places[uid].port.name)
            self._observer.release(uid)
        return {uid: place for uid, place in self._places.items() if uid not in moved}

    async def _alive(self, uids: Collection[str]) -> Collection[str]:
        """Return which of these pods live on at their address according to the API server itself."""
        now = self._clock.steady()
        if not uids or now < self._next_look:
            return ()
        self._next_look = now + _LOOK_AGAIN_SECONDS
        try:
            pods = await self._look()
        except KubernetesError:
            return ()
        return [
            pod.uid
            for pod in pods
            if pod.uid in uids
            and pod.live
            and not pod.ending
            and deciding.addresses_of(pod) == self._places[pod.uid].addresses
        ]

    async def _unload(self) -> None:
        """Take away what a predecessor with another flag loaded."""
        if await nftables.list_table(*interception.PORTS) is not None:
            await nftables.remove(interception.PORTS)

    def _report(self, unplaced: tuple[Unplaced, ...], trouble: str = "") -> None:
        previous = self.warnings()
        self._unplaced, self._trouble = unplaced, trouble if unplaced else ""
        for warning in self.warnings():
            if warning not in previous:
                _log.warning("%s", warning)


async def _addresses_of_last_run(ports: Collection[Port]) -> Mapping[int, frozenset[str]]:
    """Return the addresses that each port had under the last NMI: a restart must not let a pod change places."""
    addresses: dict[str, frozenset[str]] = {}
    for item in await nftables.list_table(*interception.PORTS) or ():
        if item.get("set", {}).get("name") == interception.ADDRESSES:
            for element in nftables.elements(item["set"]):
                name, _, address = element.partition(" . ")
                port_name = name.strip('"')
                addresses[port_name] = addresses.get(port_name, frozenset()) | {address}
    return {port.interface: addresses[port.name] for port in ports if port.name in addresses}


def _without_new_addresses(ports: Collection[Port], previous: Mapping[int, frozenset[str]]) -> tuple[Port, ...]:
    """Return the ports with no addresses beside those they had: a pod may have given itself one since."""
    return tuple(
        port._replace(addresses=port.addresses & previous[port.interface]) if port.interface in previous else port
        for port in ports
    )
