"""Token requests at a steady rate from pods that come and go, while watches are cut and IMDS fails now and then.

Each pod's client checks every token that it gets. It asks again when it is refused, as SDKs do.
"""

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import make
from daemons.mic import conftest as worlds
from daemons.nmi.imds import ImdsRequest, Reply
from podidentity.core.model import crd
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, ObjectKey
from system.load.growing import Growth
from system.load.patient import Client, Patience
from system.load.whole import ASSIGNED, Whole
from system.redirect.network import Network
from system.redirect.node import TARGET

SAMPLE_SECONDS = 1.0
ADDRESSES = [f"10.244.7.{last}" for last in range(10, 250)]
"""Far more than pods: an address rests before it is used again.

All pods share one interface here, so that nothing but the watch tells NMI that an address has changed hands; with an
interface for each pod, as on a real node, system/redirect/test_reuse.py changes them at once.
"""


@dataclass(frozen=True)
class Weather:
    """The load and the faults of a soak."""

    seconds: float
    per_second: float = 500.0
    pods: int = 50
    identities: int = 80  # more than pods: some are unused at any time, and NMI forgets their tokens
    pod_seconds: float = 10.0
    cut_seconds: float = 2.0
    imds_fails: float = 0.05
    token_seconds: int = 120


@dataclass
class Seen(Patience):
    """The outcome of a soak; `wrong` must stay empty."""

    seconds: float = 0.0
    requests: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    pods: int = 0
    cuts: int = 0
    cut_connections: int = 0
    imds_failures: int = 0
    milliseconds: list[float] = field(default_factory=list)
    daemons: dict[str, Growth] = field(default_factory=dict)


class Soak(Whole):
    """A soak of a node with NMI alone; assigned identities are written as MIC would write them."""

    def __init__(self, network: Network, directory: Path, weather: Weather) -> None:
        super().__init__(network, directory)
        self.weather = weather
        self.seen = Seen(seconds=weather.seconds)
        self._chance = random.Random(1)  # noqa: S311  # which pod and when, no secrets
        self._imds_chance = random.Random(2)  # noqa: S311  # likewise
        self._free = deque(ADDRESSES)
        self._ends = 0.0

    def live_through(self) -> Seen:
        """Start NMI and run the soak for its time; return what was seen."""
        self.give_addresses(ADDRESSES)
        self.imds.served.life_seconds = self.weather.token_seconds
        self.imds.served.fault = self._fault
        self.start("--anti-spoof=off")
        self.network.pods[0].call(lambda: asyncio.run(self._live()), self.weather.seconds + 200)
        return self.seen

    def _fault(self, asked: ImdsRequest) -> Reply | None:
        del asked
        if self._imds_chance.random() >= self.weather.imds_fails:
            return None
        self.seen.imds_failures += 1
        return Reply(500, b'{"error": "server_error"}')

    async def _live(self) -> None:
        self._ends = time.monotonic() + self.weather.seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sample())
            tasks.create_task(self._cut())
            for slot in range(self.weather.pods):
                tasks.create_task(self._inhabit(slot))

    async def _inhabit(self, slot: int) -> None:
        """Let pods follow one another, each at the address that has been unused for longest."""
        generation = 0
        await asyncio.sleep(self.weather.pod_seconds * slot / self.weather.pods)
        while time.monotonic() < self._ends:
            name, address = f"pod-{slot}-{generation}", self._free.popleft()
            identity = f"identity-{self._chance.randrange(self.weather.identities)}"
            await asyncio.to_thread(self.cluster.call, self._come, name, identity, address)
            await self._ask_for_life(name, identity, address)
            await asyncio.to_thread(self.cluster.call, self._go, name)
            self._free.append(address)
            self.seen.pods += 1
            generation += 1

    def _come(self, name: str, selector: str, address: str) -> None:
        storage = self.world.kubernetes.storage
        _, obj = worlds.rendered(make.pod(name, selector=selector))
        obj["status"] |= {"podIP": address, "podIPs": [{"ip": address}]}
        storage.create("pods", obj)
        identity = make.identity(selector)
        binding = make.binding(selector, azure_identity=selector, selector=selector)
        pod = ObjectKey("default", name)
        assigned = AzureAssignedIdentity(pod, identity, binding, pod, "n1", AssignedState.ASSIGNED)
        storage.create(ASSIGNED, crd.render_assigned(assigned))

    def _go(self, name: str) -> None:
        self.world.kubernetes.storage.delete("pods", "default", name, grace_seconds=0)
        self.world.kubernetes.storage.delete(ASSIGNED, "default", name)

    async def _ask_for_life(self, name: str, identity: str, address: str) -> None:
        every = self.weather.pods / self.weather.per_second
        due = time.monotonic()
        ends = min(self._ends, due + self.weather.pod_seconds)
        client = Client(address)
        while due < ends:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += every
            began = time.monotonic()
            answer = await self.seen.insist(client, TARGET)
            self.seen.requests += 1
            self.seen.milliseconds.append((time.monotonic() - began) * 1e3)
            if answer is None:
                self.seen.lost.append(f"{name} at {address} of {identity}")
            elif not answer["access_token"].startswith(f"token of {identity} for "):
                self.seen.wrong.append(f"{name} of {identity} got: {answer['access_token'][:60]}")
        client.hang_up()

    async def _cut(self) -> None:
        while time.monotonic() < self._ends:
            await asyncio.sleep(self.weather.cut_seconds)
            await asyncio.to_thread(self.cluster.call, self.world.cut_watches)
            self.seen.cuts += 1

    async def _sample(self) -> None:
        assert self.process is not None
        nmi = self.seen.daemons["nmi"] = Growth()
        await asyncio.sleep(self.weather.pod_seconds)  # until then no pod leaves when another one comes
        while time.monotonic() < self._ends:
            nmi.sample(self.process.pid)
            await asyncio.sleep(SAMPLE_SECONDS)
