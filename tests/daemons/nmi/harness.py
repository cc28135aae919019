"""NMI in the test's own process: real sockets, the daemon's own wiring, a cluster and a clock that tests move."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

import make
from clocks import JumpingClock
from daemons.nmi.imds import StandInImds
from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzurePodIdentityException,
    ObjectKey,
    SecretReference,
)
from podidentity.core.model.matching import Match
from podidentity.core.model.snapshot import Pod
from podidentity.errors import NotFoundError
from podidentity.nmi.adapters.broker import open_broker
from podidentity.nmi.adapters.imds import open_imds_client
from podidentity.nmi.listener import NODE_LIMITS, Listener, Site
from podidentity.nmi.metrics import Metrics, Observer
from podidentity.nmi.places import Limits
from podidentity.nmi.pod_lookup import PodLookup
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings
from podidentity.nmi.wiring import TokenServers, assemble_token_path, broker_address, token_file_site
from podidentity.serving.logs import Lines

TARGET = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
ADDRESS = "127.0.0.1"


class FakeCluster:
    """A cluster as NMI's Protocols see it. `api` is what a direct look finds: `pods`, unless a test says otherwise."""

    def __init__(self, clock: JumpingClock) -> None:
        self.pods: list[Pod] = []
        self.api: list[Pod] | Exception | None = None
        self.assigned_identities: list[AzureAssignedIdentity] = []
        self.matches: list[Match] = []
        self.exceptions: list[AzurePodIdentityException] = []
        self.secrets: dict[SecretReference, dict[str, bytes] | Exception] = {}
        self.secret_reads = 0
        self.looks = 0
        self.silent_since: float | None = None
        self.synced = True
        self.follower: Any = None
        self.first_tokens: list[Any] = []
        self._clock = clock
        self.revision = 0
        self.decides = False
        self.machine: dict[IdentityId, float] = {}
        """Since when MIC says that an identity is on the machine."""

    def revision_of(self, pod: Pod) -> int:
        """Return the number of the last change, whatever pod it concerned."""
        del pod
        return self.revision

    def notify(self) -> None:
        """Report that `assigned_identities`, `matches` or `exceptions` have changed."""
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
        """Assign an identity to a pod, as MIC does."""
        key = ObjectKey("default", f"{pod.key.name}-{identity.key.name}")
        binding = make.binding(identity.key.name, azure_identity=identity.key.name, selector=pod.selector)
        assignment = AzureAssignedIdentity(key, identity, binding, pod.key, pod.node, state)
        self.assigned_identities = [entry for entry in self.assigned_identities if entry.key != key] + [assignment]
        self.notify()
        return assignment

    def remove(self, pod: Pod) -> None:
        """Delete a pod, and notify the follower as the watch would."""
        self.pods.remove(pod)
        if self.follower is not None:
            self.follower.pod_gone(pod.uid)
            self.follower.pod_changed(pod.key)

    def with_address(self, address: str) -> Sequence[Pod]:
        """Return the pods that claim the address."""
        return tuple(pod for pod in self.pods if address in pod.ips and pod.live and not pod.host_network)

    def confirmed_at(self) -> float:
        """Return when the watch of pods was last confirmed."""
        if not self.synced:
            return -float("inf")
        return self._clock.steady() if self.silent_since is None else self.silent_since

    def grants_confirmed_at(self) -> float:
        """Return when all other watches were last confirmed."""
        return self._clock.steady() if self.synced else -float("inf")

    async def look(self, address: str) -> Sequence[Pod]:
        """Return the pods at an address as the API server knows them."""
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
        content = self.secrets.get(secret, NotFoundError(f"get secrets {secret}: not found", status=404))
        if isinstance(content, Exception):
            raise content
        return content

    def by_name(self, key: ObjectKey) -> Pod | None:
        """Return a pod by name."""
        return next((pod for pod in self.pods if pod.key == key), None)

    def there_since(self, identity: IdentityId) -> float | None:
        """Return since when an identity is on the machine, as MIC reports it."""
        return self.machine.get(identity)

    def assigned_to(self, pod: Pod) -> Sequence[AzureAssignedIdentity]:
        """Return the pod's assigned identities."""
        return tuple(entry for entry in self.assigned_identities if entry.pod == pod.key)

    def bound_to(self, pod: Pod) -> Sequence[Match]:
        """Return the pod's matches."""
        return tuple(match for match in self.matches if match.pod == pod)

    def exceptions_in(self, namespace: str) -> Sequence[AzurePodIdentityException]:
        """Return the exceptions of a namespace."""
        return tuple(exception for exception in self.exceptions if exception.key.namespace == namespace)


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
        """The access token; without one, the whole content of the answer."""
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

    async def read(self, *, has_content: bool = True) -> Answer:
        """Read one answer. Raises IncompleteReadError when the connection ends."""
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines_after = head.split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (item.partition(":") for item in lines_after if item)
            }
            body = await self.reader.readexactly(int(headers["content-length"])) if has_content else b""
        return Answer(int(line.split(" ")[1]), headers, body)

    async def has_ended(self) -> bool:
        """Whether NMI ends the connection without another byte."""
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
    pod_lookup: PodLookup
    link: tuple[int, bytes | None] | None = None
    token_file_port: int = 0

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

    async def connect_to_token_file_door(self, address: str = ADDRESS) -> Client:
        """Open a connection to the token-file door."""
        client = Client(*await asyncio.open_connection(ADDRESS, self.token_file_port, local_addr=(address, 0)))
        self.clients.append(client)
        return client

    async def ask(self, target: str = TARGET, *headers: str) -> Answer:
        """Ask once on a new connection."""
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
        daemon_settings = replace(
            settings or Settings("n1", wait_known_seconds=0),
            redirect=False,
            metadata_address=ADDRESS,
            metadata_port=stand_in.port,
        )
        broker = open_broker(broker_address(daemon_settings), "test", clock)
        async with broker as open_connections, asyncio.TaskGroup() as tasks:
            servers = TokenServers(http, open_connections)
            observer = Observer(Metrics(registry), Lines(daemon_settings.log_format, "audit"), fake.first_tokens.append)
            listener, fake.follower, pod_lookup = assemble_token_path(
                daemon_settings, fake, servers, clock, observer, tasks
            )
            if limits is not None:
                listener.places.limits = limits
            running = Serving(fake, stand_in, clock, listener, registry, 0, 0, [], pod_lookup)
            site = Site(listener.app.answer, lambda _, client: Peer(client[0], running.link, port=client[1]))
            running.port = await listener.listen(ADDRESS, 0, site)
            node_site = Site(listener.app.answer_node, lambda _, client: Peer(client[0], port=client[1]), NODE_LIMITS)
            running.node_port = await listener.listen(ADDRESS, 0, node_site)
            running.token_file_port = await listener.listen(ADDRESS, 0, token_file_site(listener.app))
            try:
                yield running
            finally:
                for client in running.clients:
                    client.hang_up()
                listener.close()


def pod(name: str = "web", *, selector: str = "reader", uid: str = "") -> Pod:
    """Build a pod at the address from which this process connects."""
    result = make.pod(name, selector=selector)
    return replace(result, ips=(ADDRESS,), uid=uid or result.uid)
