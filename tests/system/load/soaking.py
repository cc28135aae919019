"""Token requests at a steady rate from pods that come and go, while watches are cut and IMDS fails now and then.

Each pod's client checks every token that it gets. It asks again when it is refused, as SDKs do. Used by the soak test
and by bench/soak.py.
"""

import asyncio
import json
import random
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import make
from daemons.mic import conftest as worlds
from daemons.nmi.imds import Asked, Reply
from podidentity.core import crd
from podidentity.core.identities import AssignedState, AzureAssignedIdentity, ObjectKey
from system.load.whole import ASSIGNED, Whole
from system.redirect.network import IMDS, Network
from system.redirect.node import HEAD, TARGET

GIVE_UP_SECONDS = 60.0
AGAIN_SECONDS = 0.05
SAMPLE_SECONDS = 1.0
ADDRESSES = [f"10.244.7.{last}" for last in range(10, 250)]
"""Far more than pods: an address rests before it is used again.

All pods share one interface here, so that nothing but the watch tells NMI that an address has changed hands; with an
interface for each pod, as on a real node, system/redirect/test_reuse.py changes them at once.
"""


@dataclass(frozen=True)
class Weather:
    """What the node lives through."""

    seconds: float
    per_second: float = 500.0
    pods: int = 50
    identities: int = 80  # more than pods: some are unused at any time, and NMI forgets their tokens
    pod_seconds: float = 10.0
    cut_seconds: float = 2.0
    imds_fails: float = 0.05
    token_seconds: int = 120


@dataclass
class Seen:
    """What came of it. `again` counts refusals that a client asked again after, by status; `wrong` must stay empty."""

    requests: int = 0
    again: dict[int, int] = field(default_factory=dict)
    broken: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    pods: int = 0
    cuts: int = 0
    imds_failures: int = 0
    milliseconds: list[float] = field(default_factory=list)
    resident_mib: list[tuple[float, float]] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def mib_per_hour(self) -> float:
        """The slope of memory over the second half, when caches and allocators have their size."""
        half = self.resident_mib[len(self.resident_mib) // 2 :]
        if len({at for at, _ in half}) < 2:
            return 0.0
        return statistics.linear_regression([at for at, _ in half], [mib for _, mib in half]).slope * 3600

    def descriptors_growth(self) -> int:
        """Open files of the last tenth over those of the first half, by their medians."""
        first, last = self.descriptors[: len(self.descriptors) // 2], self.descriptors[-len(self.descriptors) // 10 :]
        return round(statistics.median(last) - statistics.median(first))


class Soak(Whole):
    """A node with NMI alone: assigned identities are written as MIC would."""

    def __init__(self, network: Network, directory: Path, weather: Weather) -> None:
        super().__init__(network, directory)
        self.weather = weather
        self.seen = Seen()
        self._chance = random.Random(1)  # noqa: S311  # which pod and when, no secrets
        self._imds_chance = random.Random(2)  # noqa: S311  # likewise
        self._free = deque(ADDRESSES)
        self._ends = 0.0

    def live_through(self) -> Seen:
        """Start NMI and do all that for as long as it was asked for."""
        self.give_addresses(ADDRESSES)
        self.imds.served.life_seconds = self.weather.token_seconds
        self.imds.served.fault = self._fault
        self.start("--anti-spoof=off")
        self.network.pods[0].call(lambda: asyncio.run(self._live()), self.weather.seconds + 200)
        return self.seen

    def _fault(self, asked: Asked) -> Reply | None:
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
        """Let one pod live after the other, each at the address that has rested longest."""
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
            token = await self._insist(client)
            self.seen.requests += 1
            self.seen.milliseconds.append((time.monotonic() - began) * 1e3)
            if token is None:
                self.seen.lost.append(f"{name} at {address} of {identity}")
            elif not token.startswith(f"token of {identity} for "):
                self.seen.wrong.append(f"{name} of {identity} got: {token[:60]}")
        client.hang_up()

    async def _insist(self, client: "Client") -> str | None:
        """Ask until there is a token; None when there is none in time."""
        gives_up = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < gives_up:
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + GIVE_UP_SECONDS):
                    status, fields = await client.ask()
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.seen.broken += 1
                client.hang_up()
                continue
            if status == 200:
                return str(fields["access_token"])
            self.seen.again[status] = self.seen.again.get(status, 0) + 1
            await asyncio.sleep(AGAIN_SECONDS)
        return None

    async def _cut(self) -> None:
        while time.monotonic() < self._ends:
            await asyncio.sleep(self.weather.cut_seconds)
            await asyncio.to_thread(self.cluster.call, self.world.cut_watches)
            self.seen.cuts += 1

    async def _sample(self) -> None:
        assert self.process is not None
        proc = Path(f"/proc/{self.process.pid}")
        await asyncio.sleep(self.weather.pod_seconds)  # until then pods come that nobody makes room for
        while time.monotonic() < self._ends:
            resident = int(proc.joinpath("status").read_text().split("VmRSS:")[1].split()[0]) / 1024
            self.seen.resident_mib.append((time.monotonic(), resident))
            self.seen.descriptors.append(len(list(proc.joinpath("fd").iterdir())))
            await asyncio.sleep(SAMPLE_SECONDS)


class Client:
    """Keeps one connection, and opens another when it has ended."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> tuple[int, dict[str, Any]]:
        """Ask once. Raises OSError or IncompleteReadError when the connection ends without an answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(IMDS, 80, local_addr=(self._address, 0))
        reader, writer = self._streams
        writer.write(HEAD.format(target=TARGET).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        if b"connection: close" in head:
            self.hang_up()
        return int(head.split(b" ")[1]), json.loads(body)

    def hang_up(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
