"""The lab itself: the first process of its namespaces, and the one event loop in which everything of the lab runs.

It builds the fabric, serves Azure where the address plan says, runs the Kubernetes that was asked for and ends, with
all that it started, when the outer process asks or is gone.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys

from podidentity.errors import LabError, PodIdentityError
from podidentity_lab import control, dns, fabric, gateway, keeping, kubeconfig, nodes, reaping, seed
from podidentity_lab.callers import Callers
from podidentity_lab.demo.admin import Admin
from podidentity_lab.directory import Directory
from podidentity_lab.embedded import Embedded
from podidentity_lab.fabric import AZURE_ADDRESS, AZURE_NAMESPACE, FABRIC_ADDRESS, METADATA_ADDRESS
from podidentity_lab.linux import mounts
from podidentity_lab.linux.namespaces import listener, open_listener
from podidentity_lab.oci import registry
from podidentity_lab.oci.library import REGISTRY_NAMES, Library
from podidentity_lab.oci.store import Store
from podidentity_lab.orchestrator import NodePlan, Orchestrator, Place
from podidentity_lab.real import images, program
from podidentity_lab.real.cluster import STATE, Real
from podidentity_lab.serving import serve
from podidentity_lab.settings import Inheritance, parse

STOP_SECONDS = 4.0
HOST_LOOPBACK = "127.0.0.1"  # processes of the host ask for tokens from here; what is in the lab has other addresses


def main() -> None:
    """Run the lab that the first argument describes; report readiness, or one sentence, to the outer process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for name in ("uvicorn", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    inheritance = parse(sys.argv[1])
    with open(inheritance.report, "w", buffering=1) as report:  # noqa: PTH123  # a descriptor
        try:
            _take_own_run(inheritance)
            asyncio.run(_Lab(inheritance, lambda facts: print(json.dumps(facts), file=report)).run())
        except* (PodIdentityError, OSError) as errors:
            first = _first(errors)
            logging.getLogger("podidentity_lab").critical("%s", first)
            with contextlib.suppress(OSError):
                print(json.dumps({"error": str(first)}), file=report)
            sys.exit(1)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _take_own_run(inheritance: Inheritance) -> None:
    """Make a /run of the lab's own: `ip netns` and the kubelets write there. The lab's directory stays where it is."""
    directories = [path.resolve() for path in (inheritance.directory, inheritance.logs)]
    descriptors = {
        path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in directories if path.is_relative_to("/run")
    }
    mounts.mount("run", "/run", "tmpfs", mounts.NOSUID | mounts.NODEV, "mode=755")
    for path, descriptor in descriptors.items():
        path.mkdir(parents=True, exist_ok=True)
        mounts.bind(f"/proc/self/fd/{descriptor}", str(path), read_only=False)
        os.close(descriptor)


class _Lab:
    """Everything a lab consists of."""

    def __init__(self, inheritance: Inheritance, report: reaping.Report) -> None:
        settings = inheritance.settings
        self._inheritance = inheritance
        self._report = report
        self._directory = Directory(inheritance.directory)
        self._networks = nodes.plan(settings.nodes)
        self._bridge = settings.network == "bridge"
        self._azure, self._backup = keeping.open_state(settings.state)
        self._machines = (
            {} if settings.off_azure else nodes.machines(self._azure, self._networks, settings.virtual_machines)
        )
        self._store = Store(self._directory.images)
        self._kubernetes = self._orchestrator()
        self._azure.log.asker_of = self._asker_of
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Run until told to stop. Raises `HostError` and `OSError`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        # The outer process holds the other end: whatever becomes of it, this end becomes readable.
        loop.add_reader(self._inheritance.lifeline, self._stop.set)
        await fabric.build(self._networks, bridge=self._bridge, metadata=bool(self._machines))
        running = asyncio.create_task(self._run_parts())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(self._inheritance.lifeline)
        stopping.cancel()
        running.cancel()
        _, late = await asyncio.wait({running}, timeout=STOP_SECONDS)
        if late:
            os._exit(0)  # the first process of its namespace: the kernel ends whatever is left with it
        with contextlib.suppress(asyncio.CancelledError):
            running.result()

    async def _run_parts(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(reaping.run_reaper())
            names = dns.Names(self._azure.serves, self._kubernetes.cluster_ip)
            self._serve(group, names)
            await self._seed(names)
            group.create_task(self._kubernetes.run(self._ready))

    def _serve(self, group: asyncio.TaskGroup, names: dns.Names) -> None:
        """Open every socket first: from here on connections wait instead of being refused."""
        azure = open_listener(AZURE_NAMESPACE, AZURE_ADDRESS, 443)
        group.create_task(serve(self._azure.app, [azure], self._azure.tls_context()))
        for network in self._networks:
            if network.name in self._machines:
                metadata = listener(METADATA_ADDRESS, 80, interface=network.uplink)
                group.create_task(serve(self._azure.imds(self._machines[network.name]), [metadata]))
        group.create_task(dns.serve(names, FABRIC_ADDRESS))
        gateway_listener = socket.socket(fileno=self._inheritance.gateway_listener)
        callers = Callers(
            self._inheritance.owner, socket.socket(fileno=self._inheritance.diagnosis), self._inheritance.table
        )
        group.create_task(gateway.serve(gateway_listener, names, callers.is_welcome))
        identities = socket.socket(fileno=self._inheritance.identity_listener)
        self._azure.serve_sign_in_at(f"http://{HOST_LOOPBACK}:{_port(self._inheritance.identity_listener)}")
        group.create_task(serve(self._azure.local, [identities]))
        registries = socket.socket(fileno=self._inheritance.registry_listener)
        group.create_task(
            serve(registry.application(self._store, REGISTRY_NAMES, callers.is_welcome, writable=True), [registries])
        )
        control_socket = control.listener(self._directory.control)
        door = control.application(self._status, self._stop, self._kubernetes, self._azure.admin)
        group.create_task(serve(door, [control_socket]))

    async def _seed(self, names: dns.Names) -> None:
        """Fill a fresh Azure as `LabSettings.seed` says, by requests from a thread: this process answers them."""
        file = self._inheritance.settings.seed
        if file is None:
            return
        # The lab's proxy listens outside, on the host's loopback; this is another one, on ours.
        with socket.create_server((HOST_LOOPBACK, 0)) as listening_socket:
            listening_socket.setblocking(False)
            proxy = asyncio.create_task(gateway.serve(listening_socket.dup(), names))
            try:
                await asyncio.to_thread(self._apply, seed.read(file), listening_socket.getsockname()[1])
            finally:
                proxy.cancel()

    def _apply(self, content: seed.Seed, proxy_port: int) -> None:
        lab, settings = self._directory, self._azure.settings
        lab.write(lab.ca, self._azure.ca_pem.decode())
        administrator = {
            "LAB_SUBSCRIPTION_ID": settings.subscription_id,
            "LAB_TENANT_ID": settings.tenant_id,
            "LAB_OWNER_CLIENT_ID": settings.owner.client_id,
            "LAB_OWNER_CLIENT_SECRET": settings.owner.secret,
            "LAB_CLUSTER_CLIENT_ID": settings.cluster.client_id,
            "SSL_CERT_FILE": str(lab.ca),
            "HTTPS_PROXY": f"http://{HOST_LOOPBACK}:{proxy_port}",
        }
        with contextlib.closing(Admin(administrator)) as admin:
            seed.apply(content, admin, self._azure.state)

    def _orchestrator(self) -> Orchestrator:
        inheritance = self._inheritance
        place = Place(
            azure_ca=self._azure.ca_pem.decode(),
            logs=inheritance.logs,
            listener=socket.socket(fileno=os.dup(inheritance.kubernetes_listener)),
            bridge=self._bridge,
            cgroup=self._directory.cgroup,
            publish_issuer=self._azure.publish_issuer,
        )
        present = len(self._networks) - inheritance.settings.late
        plans = [
            NodePlan(network, self._provider_id(network.name), late=network.index >= present)
            for network in self._networks
        ]
        real = inheritance.settings.kubernetes == "real"
        files = STATE if real else self._directory.nodes
        for plan in plans:
            nodes.write_files(files / plan.network.name, self._azure if self._machines else None, bridge=self._bridge)
        if real:
            registry_port = _port(inheritance.registry_listener)
            return Real(place, plans, program.require(), images.archives(), self._store, registry_port)
        try:
            library = Library(self._store, _port(inheritance.registry_listener))
            return Embedded(place, plans, files, library, rootless=inheritance.rootless, backup=self._backup)
        except LabError as error:
            raise LabError(f"--state {inheritance.settings.state}: {error}") from None

    def _provider_id(self, node: str) -> str:
        return f"azure://{self._machines[node]}" if node in self._machines else ""

    def _ready(self) -> None:
        self._write_facts()
        self._report({"ready": True})

    def _asker_of(self, address: str) -> str:
        """Return who has an address: a pod, a node, or the host behind the gateway."""
        if address in (*fabric.OWN_ADDRESSES, HOST_LOOPBACK):
            return "host"
        node = next((network.name for network in self._networks if network.address == address), None)
        return node or self._kubernetes.pod_at(address) or address

    async def _status(self) -> control.Json:
        pods = await self._kubernetes.pods()
        return {
            "name": self._directory.name,
            "network": self._inheritance.settings.network,
            "rootless": self._inheritance.rootless,
            "nodes": [
                {
                    "name": network.name,
                    "address": network.address,
                    "machine": self._machines.get(network.name, ""),
                    "pods": pods.get(network.name, 0),
                }
                for network in self._networks
            ],
            "imds_packets": await fabric.metadata_packets(),
            "memory_kib": reaping.memory_kib(),
        }

    def _write_facts(self) -> None:
        lab, settings = self._directory, self._azure.settings
        kubernetes_port = _port(self._inheritance.kubernetes_listener)
        lab.write(lab.ca, self._azure.ca_pem.decode())
        lab.java_trust_store.write_bytes(self._azure.java_trust_store)
        facts: dict[str, str | int] = {
            "name": lab.name,
            "logs": str(self._inheritance.logs),
            "kubernetes_port": kubernetes_port,
            "gateway_port": _port(self._inheritance.gateway_listener),
            "identity_port": _port(self._inheritance.identity_listener),
            "registry": f"localhost:{_port(self._inheritance.registry_listener)}",
            "tenant_id": settings.tenant_id,
            "subscription_id": settings.subscription_id,
            "location": settings.location,
            "node_resource_group": settings.node_resource_group,
            "owner_client_id": settings.owner.client_id,
            "owner_client_secret": settings.owner.secret,
            "cluster_client_id": settings.cluster.client_id,
            "cluster_client_secret": settings.cluster.secret,
        }
        cluster = self._kubernetes
        lab.write(lab.kubeconfig, kubeconfig.render(lab.name, kubernetes_port, cluster.ca_pem, cluster.admin_token))
        lab.write(lab.facts_file, json.dumps(facts, indent=2))


def _port(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return int(duplicate.getsockname()[1])


if __name__ == "__main__":
    main()
