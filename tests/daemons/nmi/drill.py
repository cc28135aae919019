"""NMI with its real watches against an API server that tests break, and IMDS likewise, under a clock that tests move.

Pods have loopback addresses of their own: pod 7 is 127.0.1.7.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

import make
from clocks import JumpingClock
from daemons.kube.scripted import ScriptedServer, Watch
from daemons.nmi.harness import ADDRESS, TARGET, Answer, Client
from daemons.nmi.imds import StandInImds
from podidentity.core.model import crd
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, ObjectKey
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.nmi.adapters.broker import Broker
from podidentity.nmi.adapters.cluster import Cluster
from podidentity.nmi.adapters.imds import open_imds_client
from podidentity.nmi.listener import Listener, Site
from podidentity.nmi.metrics import Metrics, Observer
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings
from podidentity.nmi.wiring import TokenServers, assemble_token_path, broker_address
from podidentity.serving.logs import Lines

ASSIGNED_IDENTITIES = f"/apis/{crd.API_VERSION}/namespaces/default/azureassignedidentities"
PODS = "/api/v1/namespaces/default/pods"


@dataclass
class Drill:
    """NMI at work, and everything around it that can fail."""

    server: ScriptedServer
    imds: StandInImds
    clock: JumpingClock
    links: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    port: int = 0
    listener: Listener | None = None
    cluster: Cluster | None = None

    # The cluster.

    def add_pod(self, name: str, number: int) -> None:
        """Let a pod run at an address."""
        pod, address = make.pod(name), f"127.0.1.{number}"
        metadata = {"name": name, "namespace": "default", "uid": pod.uid, "labels": dict(pod.labels)}
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        self.tell(f"{PODS}/{name}", {"metadata": metadata, "spec": {"nodeName": "n1"}, "status": status})

    def assign(self, pod: str, identity: str) -> None:
        """Assign an identity to a pod, as MIC does."""
        key = ObjectKey("default", f"{pod}-{identity}")
        azure_identity, binding = make.identity(identity), make.binding(azure_identity=identity)
        assignment = AzureAssignedIdentity(
            key, azure_identity, binding, ObjectKey("default", pod), "n1", AssignedState.ASSIGNED
        )
        self.tell(f"{ASSIGNED_IDENTITIES}/{key.name}", crd.render_assigned(assignment))

    def tell(self, path: str, obj: Any) -> None:
        """Add an object, and send it on the watches that are open."""
        self._send(path, "ADDED", self.server.put(path, obj))

    def remove(self, path: str) -> None:
        """Delete an object, and send its deletion on the watches that are open."""
        obj = self.server.objects.pop(path)
        self.server.version += 1
        obj["metadata"]["resourceVersion"] = str(self.server.version)
        self._send(path, "DELETED", obj)

    def watches(self, plural: str = "") -> list[Watch]:
        """Return the watches that are open."""
        return [
            watch for watch in self.server.watches if watch.request.path.endswith(plural) and not watch.ended.is_set()
        ]

    def go_away(self) -> None:
        """Let the API server be gone: connections break, new ones are cut."""
        self.server.reachable = False
        for watch in self.watches():
            watch.cut()

    def confirm(self) -> None:
        """Send a bookmark on every watch, as a living API server does once a minute."""
        for watch in self.watches():
            watch.send("BOOKMARK", {"metadata": {"resourceVersion": str(self.server.version)}})

    async def reassure(self) -> None:
        """Send a bookmark on every watch and return once NMI has read them all; the clock stands still meanwhile."""
        assert self.cluster is not None
        self.confirm()
        async with asyncio.timeout(20):
            # No event is set when bytes arrive on a socket, so this looks again and again.
            while min(self.cluster.confirmed_at(), self.cluster.grants_confirmed_at()) < self.clock.steady():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def come_back(self) -> None:
        """Let the API server be there again, without the history of what happened meanwhile: watches are too old."""
        self.server.reachable = True
        self.server.forget_history()

    def _send(self, path: str, kind: str, obj: Any) -> None:
        for watch in self.watches(path.split("/")[-2]):
            watch.send(kind, obj)

    # Time.

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in steps, so that each task that sleeps wakes in between."""
        for _ in range(int(seconds)):
            self.clock.jump(1.0)
            await asyncio.sleep(0.001)

    async def until(self, holds: Callable[[], Any], event: str) -> None:
        """Let time pass slowly until a condition holds."""
        try:
            async with asyncio.timeout(60):
                while not holds():
                    self.clock.jump(0.05)
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(f"never happened: {event}") from None

    # Pods.

    async def ask(self, number: int, target: str = TARGET) -> Answer:
        """Ask once from a pod's address, while time passes."""
        streams = await asyncio.open_connection(ADDRESS, self.port, local_addr=(f"127.0.1.{number}", 0))
        client = Client(*streams)
        try:
            asking = asyncio.ensure_future(client.ask(target))
            await self.until(asking.done, f"pod {number} is answered")
            return asking.result()
        finally:
            client.hang_up()

    async def ask_at_once(self, number: int) -> Answer:
        """Ask once while time stands still: everything needed for the answer must be there, however slow we are."""
        streams = await asyncio.open_connection(ADDRESS, self.port, local_addr=(f"127.0.1.{number}", 0))
        client = Client(*streams)
        try:
            return await client.ask(TARGET)
        finally:
            client.hang_up()

    async def until_answered(self, number: int, matches: Callable[[Answer], bool], event: str) -> Answer:
        """Ask again and again until an answer matches."""
        async with asyncio.timeout(60):
            while not matches(answer := await self.ask(number)):
                self.confirm()
                self.clock.jump(0.5)
        assert matches(answer), event
        return answer


def is_of(identity: str) -> Callable[[Answer], bool]:
    """Return a test that an answer is a token of this identity."""
    return lambda answer: answer.status == 200 and answer.token.startswith(f"token of {identity} ")


def has(status: int) -> Callable[[Answer], bool]:
    """Return a test that an answer has this status."""
    return lambda answer: answer.status == status


@asynccontextmanager
async def drilling(pods: int = 2) -> AsyncIterator[Drill]:
    """Run NMI with so many pods: pod-1 at 127.0.1.1 has identity id-1, and so on."""
    async with (
        asyncio.timeout(100),
        ScriptedServer.listening() as server,
        StandInImds().listening() as imds,
        open_imds_client("test") as http,
    ):
        drill = Drill(server, imds, JumpingClock(hasty=False))
        imds.clock = drill.clock.wall
        for number in range(1, pods + 1):
            drill.add_pod(f"pod-{number}", number)
            drill.assign(f"pod-{number}", f"id-{number}")
        with tempfile.TemporaryDirectory() as directory:
            connection = find_cluster(str(server.write_kubeconfig(Path(directory))))
        settings = Settings("n1", redirect=False, metadata_address=ADDRESS, metadata_port=imds.port,
                            wait_created_seconds=0, wait_assigned_seconds=0)  # fmt: skip
        async with open_client(connection, clock=drill.clock) as kubernetes, asyncio.TaskGroup() as tasks:
            cluster = Cluster(Api(kubernetes, drill.clock), settings)
            observer = Observer(Metrics(CollectorRegistry()), Lines("text", "audit"), lambda _: None)
            servers = TokenServers(http, Broker(broker_address(settings), "test", drill.clock))
            listener, follower, _ = assemble_token_path(settings, cluster, servers, drill.clock, observer, tasks)
            cluster.subscribe(follower)
            drill.cluster = cluster
            site = Site(listener.app.answer, lambda _, peer: Peer(peer[0], drill.links.get(peer[0]), port=peer[1]))
            drill.port, drill.listener = await listener.listen(ADDRESS, 0, site), listener
            running = tasks.create_task(cluster.run())
            await drill.until(lambda: not cluster.delays(), "the watches are filled")
            try:
                yield drill
            finally:
                running.cancel()
                listener.close()
