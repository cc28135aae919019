"""NMI in the test's own process: real sockets, the daemon's own wiring, a cluster and a clock that tests move."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

import make
from daemons.nmi.imds import StandInImds
from podidentity.core.cluster import Pod
from podidentity.core.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzurePodIdentityException,
    ObjectKey,
    SecretReference,
)
from podidentity.core.matching import Match
from podidentity.errors import NotFoundError
from podidentity.nmi.daemon import assemble
from podidentity.nmi.finding import Finding
from podidentity.nmi.http import Limits, Listener, Site
from podidentity.nmi.observe import Metrics, Observer
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings
from podidentity.nmi.sources import open_imds_client
from podidentity.serving.logs import Lines

TARGET = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
ADDRESS = "127.0.0.1"


class JumpingClock:
    """Both clocks stand still until a test moves them; a sleep moves the steady one, so that nothing ever waits."""

    def __init__(self, wall: float = 1_800_000_000.0) -> None:
        self._wall = wall
        self._steady = 1000.0
        self.slept: list[float] = []

    def wall(self) -> float:
        """Return seconds since 1970."""
        return self._wall

    def steady(self) -> float:
        """Return seconds that only go forward."""
        return self._steady

    async def sleep(self, seconds: float) -> None:
        """Bring the time."""
        self.slept.append(seconds)
        self.pass_time(max(seconds, 0.0))
        await asyncio.sleep(0)

    def pass_time(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._wall += seconds
        self._steady += seconds

    def set_wall(self, seconds: float) -> None:
        """Do what an administrator does to a wall clock."""
        self._wall += seconds


class FakeCluster:
    """A cluster as NMI's Protocols see it. `api` is what a direct look finds: `pods`, unless a test says otherwise."""

    def __init__(self, clock: JumpingClock) -> None:
        self.pods: list[Pod] = []
        self.api: list[Pod] | Exception | None = None
        self.assigned: list[AzureAssignedIdentity] = []
        self.matches: list[Match] = []
        self.exceptions: list[AzurePodIdentityException] = []
        self.secrets: dict[SecretReference, dict[str, bytes] | Exception] = {}
        self.secret_reads = 0
        self.looks = 0
        self.silent_since: float | None = None
        self.synced = True
        self.follower: Any = None
        self.served: list[Any] = []
        self._clock = clock
        self.revision = 0

    def changed(self) -> None:
        """Say that `assigned`, `matches` or `exceptions` are others now."""
        self.revision += 1
        if self.follower is not None:
            for pod in self.pods:
                self.follower.pod_changed(pod.key)

    def add(self, pod: Pod, *identities: AzureIdentity, state: AssignedState = AssignedState.ASSIGNED) -> None:
        """Add a pod and assign it identities."""
        self.pods.append(pod)
        if self.follower is not None:
            for address in pod.ips:
                self.follower.pod_at(address)
        for identity in identities:
            self.assign(pod, identity, state)

    def assign(
        self, pod: Pod, identity: AzureIdentity, state: AssignedState = AssignedState.ASSIGNED
    ) -> AzureAssignedIdentity:
        """Do what MIC does."""
        key = ObjectKey("default", f"{pod.key.name}-{identity.key.name}")
        binding = make.binding(identity.key.name, azure_identity=identity.key.name, selector=pod.selector)
        assigned = AzureAssignedIdentity(key, identity, binding, pod.key, pod.node, state)
        self.assigned = [one for one in self.assigned if one.key != key] + [assigned]
        self.changed()
        return assigned

    def remove(self, pod: Pod) -> None:
        """Delete a pod as the watch tells it."""
        self.pods.remove(pod)
        if self.follower is not None:
            self.follower.pod_gone(pod.uid)
            self.follower.pod_changed(pod.key)

    def at(self, address: str) -> Sequence[Pod]:
        """Return the pods that claim the address."""
        return tuple(pod for pod in self.pods if address in pod.ips and pod.live and not pod.host_network)

    def confirmed(self) -> float:
        """Return when the watch was last heard."""
        if not self.synced:
            return -float("inf")
        return self._clock.steady() if self.silent_since is None else self.silent_since

    def granted_as_of(self) -> float:
        """Return when everything else was last heard."""
        return self._clock.steady() if self.synced else -float("inf")

    async def look(self, address: str) -> Sequence[Pod]:
        """Ask the API server."""
        self.looks += 1
        await asyncio.sleep(0)
        if isinstance(self.api, Exception):
            raise self.api
        pods = self.pods if self.api is None else self.api
        return tuple(pod for pod in pods if address in pod.ips)

    async def read_secret(self, secret: SecretReference) -> Mapping[str, bytes]:
        """Get a Secret from the API server."""
        self.secret_reads += 1
        await asyncio.sleep(0)
        found = self.secrets.get(secret, NotFoundError(f"get secrets {secret}: not found", status=404))
        if isinstance(found, Exception):
            raise found
        return found

    def named(self, key: ObjectKey) -> Pod | None:
        """Return a pod by name."""
        return next((pod for pod in self.pods if pod.key == key), None)

    def assigned_to(self, pod: ObjectKey) -> Sequence[AzureAssignedIdentity]:
        """Return the pod's assigned identities."""
        return tuple(one for one in self.assigned if one.pod == pod)

    def bound_to(self, pod: Pod) -> Sequence[Match]:
        """Return the pod's matches."""
        return tuple(one for one in self.matches if one.pod == pod)

    def exceptions_in(self, namespace: str) -> Sequence[AzurePodIdentityException]:
        """Return the exceptions of a namespace."""
        return tuple(one for one in self.exceptions if one.key.namespace == namespace)


class Answer(NamedTuple):
    """A response as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def token(self) -> str:
        """The access token, or what was told instead."""
        return str(self.json.get("access_token", self.json))


class Client:
    """One connection to NMI."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, target: str = TARGET, *headers: str, method: str = "GET") -> Answer:
        """Send a request as SDKs do and read the answer."""
        lines = [f"{method} {target} HTTP/1.1", "Host: 169.254.169.254", *(headers or ("Metadata: true",)), "", ""]
        return await self.send("\r\n".join(lines).encode("latin-1"))

    async def send(self, head: bytes) -> Answer:
        """Send bytes and read one answer."""
        self.writer.write(head)
        return await self.read()

    async def read(self) -> Answer:
        """Read one answer. Raises IncompleteReadError when the connection ends."""
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (item.partition(":") for item in rest if item)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(line.split(" ")[1]), headers, body)

    async def ended(self) -> bool:
        """Say whether NMI ends the connection without another byte."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read(1) == b""
            except ConnectionResetError:
                return True

    def hang_up(self) -> None:
        """Close the connection."""
        self.writer.close()


@dataclass
class Serving:
    """NMI at work."""

    cluster: FakeCluster
    imds: StandInImds
    clock: JumpingClock
    listener: Listener
    registry: CollectorRegistry
    port: int
    node_port: int
    clients: list[Client]
    finding: Finding
    link: tuple[int, bytes | None] | None = None

    async def connect(self, address: str = ADDRESS) -> Client:
        """Open a connection from the pod's address, or another."""
        client = Client(*await asyncio.open_connection(ADDRESS, self.port, local_addr=(address, 0)))
        self.clients.append(client)
        return client

    async def connect_as_node(self) -> Client:
        """Open a connection to the loopback listener, as a program of the node."""
        client = Client(*await asyncio.open_connection(ADDRESS, self.node_port))
        self.clients.append(client)
        return client

    async def ask(self, target: str = TARGET, *headers: str) -> Answer:
        """Ask once on a connection of its own."""
        client = await self.connect()
        try:
            return await client.ask(target, *headers)
        finally:
            client.hang_up()


@asynccontextmanager
async def serving(
    settings: Settings | None = None, *, limits: Limits | None = None, imds: StandInImds | None = None
) -> AsyncIterator[Serving]:
    """Run NMI against a fake cluster and a stand-in for IMDS, until the body ends."""
    clock = JumpingClock()
    fake = FakeCluster(clock)
    registry = CollectorRegistry()
    async with asyncio.timeout(100), (imds or StandInImds()).listening() as stand_in, open_imds_client("test") as http:
        stand_in.clock = clock.wall
        given = replace(
            settings or Settings("n1", wait_known_seconds=0),
            redirect=False,
            metadata_address=ADDRESS,
            metadata_port=stand_in.port,
        )
        async with asyncio.TaskGroup() as tasks:
            observer = Observer(Metrics(registry), Lines(given.log_format, "audit"), fake.served.append)
            listener, fake.follower, finding = assemble(given, fake, http, clock, observer, tasks)
            if limits is not None:
                listener.limits = limits
            made = Serving(fake, stand_in, clock, listener, registry, 0, 0, [], finding)
            site = Site(listener.app.answer, lambda _, client: Peer(client[0], made.link, port=client[1]))
            made.port = await listener.listen(ADDRESS, 0, site)
            node_site = Site(listener.app.answer_node, lambda _, client: Peer(client[0], port=client[1]))
            made.node_port = await listener.listen(ADDRESS, 0, node_site)
            try:
                yield made
            finally:
                for client in made.clients:
                    client.hang_up()
                listener.close()


def pod(name: str = "web", *, selector: str = "reader", uid: str = "") -> Pod:
    """Build a pod at the address from which this process connects."""
    made = make.pod(name, selector=selector)
    return replace(made, ips=(ADDRESS,), uid=uid or made.uid)
