"""Keeps the bridges' table in step with the pods: each may ask IMDS from its own address and its own port alone.

Gathers (the kernel's links, the watch's pods), lets `core.bridges` decide, loads one table. Woken by changes of pods
and of this host; what cannot be proven is told to `/readyz` and counted, and such a pod gets no answer. Routed veths
need none of this: there a rule of the redirect compares source and interface. Constructed by `daemon`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from podidentity.core import bridges as deciding
from podidentity.core.bridges import Place, Port, Unplaced
from podidentity.core.cluster import Pod
from podidentity.errors import HostError, KubernetesError
from podidentity.linux import bridges, interception, nftables
from podidentity.linux.bridges import Bridges
from podidentity.linux.notifications import watch_host
from podidentity.nmi.ports import MOVED_SECONDS, Clock

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.02  # between two looks: a pod's SYN waits for a second when it comes before its place is known
_AGAIN_SECONDS = 1.0  # while a pod has no place
_LOOK_AGAIN_SECONDS = 10.0  # at the API server, while a pod's port is another one

PodsNow = Callable[[], Collection[Pod] | None]
"""The live pods of this node with a network of their own; None before the first list."""
Look = Callable[[], Awaitable[Collection[Pod]]]
"""The pods of this node as the API server itself tells them now. Raises `KubernetesError`."""


class Told(Protocol):
    """Who wants to know where pods' packets come in."""

    def expect(self, uid: str, interface: int) -> None:
        """A pod is reached through this interface alone."""

    def interface_gone(self, interface: int) -> None:
        """An interface is no more."""

    def unplugged(self, uid: str) -> None:
        """A pod has lost its port of a bridge."""

    def replugged(self, uid: str) -> None:
        """A pod lives on at another port: its sandbox was made anew."""


class AntiSpoofSettings(NamedTuple):
    """Not `enabled`, it is only said which pods could take each other's addresses."""

    metadata_address: str
    enabled: bool
    check_seconds: float


class AntiSpoof:
    """The bridges of this host. `told` hears what is seen of interfaces on the way."""

    def __init__(self, settings: AntiSpoofSettings, pods: PodsNow, look: Look, told: Told, clock: Clock) -> None:
        self._metadata_address, self._enabled, self._check_seconds = settings
        self._pods = pods
        self._look = look
        self._told = told
        self._clock = clock
        self._changed = asyncio.Event()
        self._places: Mapping[str, Place] = {}
        self._unplaced: tuple[Unplaced, ...] = ()
        self._inherited: Mapping[int, frozenset[str]] | None = None
        self._loaded: nftables.Table | None = None
        self._trouble = ""
        self._interfaces: frozenset[int] = frozenset()
        self._routed = 0
        self._standing: frozenset[str] = frozenset()
        self._moving: Mapping[tuple[str, int], float] = {}
        self._next_look = -float("inf")

    def look_again(self) -> None:
        """Wake up: a pod changed."""
        self._changed.set()

    @property
    def unproven(self) -> int:
        """How many pods of bridges cannot be told from their neighbours."""
        return len(self._unplaced)

    @property
    def proven(self) -> int:
        """Of how many pods it is known by which interface or port they ask."""
        return self._routed + len(self._standing)

    def holds(self, uid: str) -> bool:
        """Say whether the table lets a pod's addresses in by its own port alone."""
        return self._loaded is not None and uid in self._standing

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each pod whose port is not known, or one that says why nothing is."""
        if self._trouble:
            return (f"{self.unproven} pods on bridges can take each other's addresses: {self._trouble}",)
        return tuple(f"{one.why}. Its requests are dropped." for one in self._unplaced)

    async def run(self) -> None:
        """Keep the table in step until cancelled. Raises `HostError` without the right to watch."""
        async with watch_host(self._changed, links=True):
            while True:
                await self.keep()
                await asyncio.sleep(_PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_SECONDS if self._unplaced else self._check_seconds):
                        await self._changed.wait()
                self._changed.clear()

    async def keep(self) -> None:
        """Look, decide, and load the table if it is not what it should be. Whatever fails becomes a warning."""
        pods = self._pods()
        if pods is None:
            await self._close()
            return
        try:
            seen = await asyncio.to_thread(bridges.look, frozenset(one.port.interface for one in self._places.values()))
        except HostError as error:
            self._tell(tuple(Unplaced(pod, "") for pod in pods), str(error))
            return
        self._miss(seen)
        self._routed = self._expect(pods, seen)
        there = [pod for pod in pods if any(map(seen.reach, deciding.addresses_of(pod)))]
        try:
            if self._enabled:
                self._tell(await self._place(there, seen))
            else:
                await self._unload()
                self._tell(tuple(Unplaced(pod, "") for pod in there), "--anti-spoof=off")
        except HostError as error:
            self._loaded = None
            self._tell(tuple(Unplaced(pod, "") for pod in there), str(error))

    async def _close(self) -> None:
        """Keep bridges closed until it is known who is there, unless a predecessor's table stands, which stays.

        The first list may come at any moment, and a question in a neighbour's name may be waiting for just that.
        """
        with contextlib.suppress(HostError):  # told as soon as there are pods
            if self._enabled and await nftables.listed(*interception.PORTS) is None:
                await nftables.replace(interception.ports(self._metadata_address, (), ()))

    def _expect(self, pods: Collection[Pod], seen: Bridges) -> int:
        """Tell where the packets of pods with a route of their own will come in; how many these are."""
        found = 0
        for pod in pods:
            ways = {seen.routes[address] for address in deciding.addresses_of(pod) if address in seen.routes}
            if len(ways) == 1:
                self._told.expect(pod.uid, ways.pop())
                found += 1
        return found

    def _miss(self, seen: Bridges) -> None:
        """End the connections that came in by an interface that is gone: its pod is gone too."""
        for interface in self._interfaces - seen.interfaces:
            self._told.interface_gone(interface)
        self._interfaces = seen.interfaces

    async def _place(self, pods: Collection[Pod], seen: Bridges) -> tuple[Unplaced, ...]:
        if self._inherited is None:
            self._inherited = await _inherited(seen.ports)
        ports = _as_before(seen.ports, self._inherited)
        placed = deciding.place(tuple(pods), ports, await self._known(pods, ports, seen))
        there = [one for one in placed.places.values() if one.port.interface in seen.interfaces]
        table = interception.ports(self._metadata_address, seen.ports, there)
        if table != self._loaded or await nftables.differences(table):
            await nftables.replace(table)
        standing = frozenset(uid for uid, one in placed.places.items() if one in there)
        for uid in self._standing - standing:
            self._told.unplugged(uid)
        self._loaded, self._places, self._standing = table, placed.places, standing
        return placed.unplaced

    async def _known(self, pods: Collection[Pod], ports: Sequence[Port], seen: Bridges) -> Mapping[str, Place]:
        """Return the places so far, without those of pods that live on at another port.

        Such a port has been the only one to claim the pod's address for a while: long enough for another pod that puts
        the address on to be known by its own.
        """
        lost = {uid for uid, one in self._places.items() if one.port.interface not in seen.interfaces}
        staying = {uid: one for uid, one in self._places.items() if uid not in lost}
        elsewhere = deciding.place(tuple(pods), ports, staying).places if lost else {}
        now, before = self._clock.steady(), self._moving
        self._moving = {
            at: before.get(at, now) for uid in lost & elsewhere.keys() for at in [(uid, elsewhere[uid].port.interface)]
        }
        anew = await self._alive({uid for (uid, _), since in self._moving.items() if now - since >= MOVED_SECONDS})
        for uid in anew:
            _log.info("pod with UID %s is now at port %s: its sandbox was made anew", uid, elsewhere[uid].port.name)
            self._told.replugged(uid)
        return {uid: one for uid, one in self._places.items() if uid not in anew}

    async def _alive(self, uids: Collection[str]) -> Collection[str]:
        """Say which of these pods the API server itself knows to live on at their address."""
        now = self._clock.steady()
        if not uids or now < self._next_look:
            return ()
        self._next_look = now + _LOOK_AGAIN_SECONDS
        try:
            looked = await self._look()
        except KubernetesError:
            return ()
        return [
            pod.uid
            for pod in looked
            if pod.uid in uids
            and pod.live
            and not pod.ending
            and deciding.addresses_of(pod) == self._places[pod.uid].addresses
        ]

    async def _unload(self) -> None:
        """Take away what a predecessor with another flag loaded."""
        if await nftables.listed(*interception.PORTS) is not None:
            await nftables.remove(interception.PORTS)

    def _tell(self, unplaced: tuple[Unplaced, ...], trouble: str = "") -> None:
        before = self.warnings()
        self._unplaced, self._trouble = unplaced, trouble if unplaced else ""
        for sentence in self.warnings():
            if sentence not in before:
                _log.warning("%s", sentence)


async def _inherited(ports: Collection[Port]) -> Mapping[int, frozenset[str]]:
    """Which port had which addresses under the last NMI: a restart must not let a pod change places."""
    found: dict[str, frozenset[str]] = {}
    for item in await nftables.listed(*interception.PORTS) or ():
        if item.get("set", {}).get("name") == interception.ADDRESSES:
            for element in nftables.elements(item["set"]):
                name, _, address = element.partition(" . ")
                found[name.strip('"')] = found.get(name.strip('"'), frozenset()) | {address}
    return {port.interface: found[port.name] for port in ports if port.name in found}


def _as_before(ports: Collection[Port], inherited: Mapping[int, frozenset[str]]) -> tuple[Port, ...]:
    """A port that had an address has no other now: its pod may have given itself one since."""
    return tuple(
        port._replace(addresses=port.addresses & inherited[port.interface]) if port.interface in inherited else port
        for port in ports
    )
