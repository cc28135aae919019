"""A real Kubernetes as the lab runs it: keys, control plane, nodes, images, and the way in from the host.

Decides in which order things start and when the cluster is ready.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import httpx2

from podidentity.errors import LabError
from podidentity_lab import images as user_images
from podidentity_lab.fabric import FABRIC_ADDRESS, LOAD_BALANCER_NETWORK, SERVICE_NETWORK
from podidentity_lab.linux.namespaces import ip_batch, listener
from podidentity_lab.oci import registry
from podidentity_lab.oci.exporting import export
from podidentity_lab.oci.library import Library
from podidentity_lab.oci.names import Name
from podidentity_lab.oci.store import Store
from podidentity_lab.orchestrator import KUBERNETES_PORT, NodePlan, Place
from podidentity_lab.real import archive, directories, pki, plane, relay
from podidentity_lab.real.client import Client, Json
from podidentity_lab.real.machine import PAUSE_IMAGE, REGISTRY_PORT, ClusterSettings, Machine
from podidentity_lab.real.processes import Restart, keep
from podidentity_lab.real.program import Program
from podidentity_lab.real.services import Services
from podidentity_lab.serving import serve

STATE = Path("/run/podidentity")
"""In memory, in the lab's own mount namespace."""
LOOK_SECONDS = 0.1
KEY_READERS = ("kube-apiserver", "kube-controller-manager")
NODES = "/api/v1/nodes"

_log = logging.getLogger("podidentity_lab")


class Real:
    """An `Orchestrator`. `images` are the archives that every node has, `store` has the user's own.

    `registry_port` is that of the lab's registry on the host's loopback, whose names pods use.
    """

    def __init__(
        self,
        place: Place,
        plans: Sequence[NodePlan],
        program: Program,
        images: Sequence[Path],
        store: Store,
        registry_port: int,
    ) -> None:
        self._store = store
        self._library = Library(store, registry_port)
        self._directories: dict[str, str] = {}
        self._image_machines: list[Machine] = []
        self._place = place
        self._program = program
        self._images = images
        self._keys = pki.make(STATE / "pki", [plan.network.name for plan in plans])
        place.publish_issuer(plane.ISSUER, self._keys.token_keys)
        settings = ClusterSettings(
            program=program,
            keys=self._keys,
            state=STATE,
            logs=place.logs,
            azure_ca=place.azure_ca,
            bridge=place.bridge,
            cgroup=place.cgroup,
            registry_port=registry_port,
        )
        self._first = plans[0].network
        self._machines = [Machine(plan, settings) for plan in plans]
        self._restarts = {name: Restart() for name in KEY_READERS}
        self._joining: dict[str, asyncio.Future[Sequence[str]]] = {}
        self._client = Client(self._keys.ca_pem, self.admin_token)
        self._services = Services(self._client)

    @property
    def ca_pem(self) -> bytes:
        """The certificate of its API."""
        return self._keys.ca_pem

    @property
    def admin_token(self) -> str:
        """The token of the administrator, who may do everything."""
        return self._keys.tokens[pki.ADMIN]

    async def run(self, ready: Callable[[], None]) -> None:
        """Run until cancelled. Raises `HostError`, `LabError`, `OSError`."""
        async with asyncio.TaskGroup() as group:
            for name, command in plane.commands(self._program, self._keys, STATE, self._place.logs):
                group.create_task(keep(name, command, self._log(name), self._restarts.get(name)))
            images = registry.application(self._store, (FABRIC_ADDRESS,), writable=False, find=self._find_image)
            group.create_task(serve(images, [listener(FABRIC_ADDRESS, REGISTRY_PORT)]))
            group.create_task(relay.serve(self._place.listener, FABRIC_ADDRESS, KUBERNETES_PORT))
            await self._lead_services_to_a_node()
            pause = await asyncio.to_thread(self._write_pause)
            self._directories = await asyncio.to_thread(
                directories.store, user_images.directories(), self._images, self._store
            )
            starting = [
                group.create_task(self._start(group, machine, pause))
                for machine in self._machines
                if not machine.is_late
            ]
            for machine in self._machines:
                if machine.is_late:
                    group.create_task(self._start_late(group, machine, pause))
            await self._until("the API", self._client.is_ready)
            group.create_task(self._services.run())
            await asyncio.gather(*starting)
            await self._until("every node", self._nodes_are_ready)
            ready()

    def cluster_ip(self, namespace: str, name: str) -> str | None:
        """Return the address of a Service; None when it has none."""
        return self._services.cluster_ip(namespace, name)

    async def rotate_issuer_key(self, phase: str) -> list[str]:
        """Take a step and return the published key IDs once the API server runs with them. Raises `LabError`.

        It and the controller manager read the keys when they start: they are started again.
        """
        key_ids = self._keys.accounts.rotate(phase)
        self._keys.write_account_keys()
        await asyncio.gather(*(self._restarts[name].run() for name in KEY_READERS))
        await self._until("the API", self._client.is_ready)
        return key_ids

    def save(self) -> None:
        """Return None: objects of a real cluster are not kept with the lab."""

    async def load_images(self, digests: Mapping[str, str]) -> None:
        """Import images of the store into containerd of every node, and of those that join later. Raises `LabError`."""
        await self._import_images(self._image_machines, digests)
        for name, digest in digests.items():
            self._store.name("loaded", name, digest)

    async def _import_images(self, machines: Sequence[Machine], digests: Mapping[str, str]) -> None:
        if not digests:
            return
        with self._store.writing() as blob:  # beside the blobs: the lab's other directories are in memory
            await asyncio.to_thread(export, self._store, digests, blob.path)
            for machine in machines:
                await machine.import_images([blob.path])

    def _find_image(self, host: str, repository: str, tag: str) -> str | None:
        """Return the digest of what a node means by a name: it was pushed, or loaded, or is a directory's."""
        name = Name(host, repository, tag)
        if not host or self._library.is_pushed_here(name):
            return self._store.find("pushed", f"{repository}:{tag}")
        return self._library.find_loaded(name) or self._directories.get(f"{host}/{repository}")

    def pod_at(self, address: str) -> str | None:  # noqa: ARG002  # the port's
        """Return None: the log of a real cluster's Azure shows addresses in place of pods' names."""
        return None

    async def pods(self) -> Mapping[str, int]:
        """Return how many pods each node has, by node; nothing while the API does not answer."""
        with contextlib.suppress(httpx2.HTTPError):
            pods = await self._client.list("/api/v1/pods")
            return Counter(str(pod["spec"].get("nodeName")) for pod in pods["items"])
        return {}

    def join(self, node: str, taints: Sequence[str]) -> None:
        """Let a waiting node join, with these taints. Raises `LabError`."""
        waiting = self._joining.pop(node, None)
        if waiting is None:
            raise LabError(f"node {node!r}: it does not wait to join; name one of {sorted(self._joining) or 'none'}")
        waiting.set_result(taints)

    async def _start_late(self, group: asyncio.TaskGroup, machine: Machine, pause: Path) -> None:
        taints = self._joining[machine.name] = asyncio.get_running_loop().create_future()
        await self._start(group, machine, pause, await taints)

    async def _start(self, group: asyncio.TaskGroup, machine: Machine, pause: Path, taints: Sequence[str] = ()) -> None:
        await machine.prepare()
        group.create_task(keep("containerd", machine.containerd(), self._log("containerd", machine)))
        await machine.import_images([pause, *self._images])
        self._image_machines.append(machine)
        await self._import_images([machine], self._store.names("loaded"))
        await self._until("the API", self._client.is_ready)
        group.create_task(keep("kubelet", machine.kubelet(taints), self._log("kubelet", machine)))
        group.create_task(keep("kube-proxy", machine.kube_proxy(), self._log("kube-proxy", machine)))

    async def _lead_services_to_a_node(self) -> None:
        """Send the host's connections to Services through the first node: the fabric has no kube-proxy of its own."""
        node = self._first
        await ip_batch(
            f"route replace {network} via {node.address} dev {node.uplink} src {FABRIC_ADDRESS} onlink"
            for network in (SERVICE_NETWORK, LOAD_BALANCER_NETWORK)
        )

    def _write_pause(self) -> Path:
        layer, target = STATE / "pause.layer", STATE / "pause.tar"
        archive.layer([(self._program.pause, "pause")], layer)
        archive.write([archive.Image([PAUSE_IMAGE], [layer], ["/pause"])], target)
        return target

    async def _until(self, description: str, holds: Callable[[], Awaitable[bool]]) -> None:
        _log.info("waiting for %s", description)
        while not await holds():  # noqa: ASYNC110  # it becomes true in another process
            await asyncio.sleep(LOOK_SECONDS)

    async def _nodes_are_ready(self) -> bool:
        try:
            nodes = await self._client.list(NODES)
        except httpx2.HTTPError:
            return False
        return sum(map(_is_ready, nodes["items"])) == sum(not machine.is_late for machine in self._machines)

    def _log(self, name: str, machine: Machine | None = None) -> Path:
        folder = self._place.logs / machine.name if machine else self._place.logs
        return folder / f"{name}.log"


def _is_ready(node: Json) -> bool:
    conditions = node.get("status", {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
