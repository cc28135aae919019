"""The lab itself: first process of its namespaces, and the one event loop that everything in the lab hangs on.

It builds the fabric, serves Azure where the address plan says, runs the Kubernetes that was asked for and ends, with
all that it started, when the outer process asks or is gone. Started by `up` only.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys

from podidentity.errors import PodIdentityError
from podidentity.lab import control, dns, fabric, gateway, keeping, kubeconfig, nodes, reaping
from podidentity.lab.directory import Directory
from podidentity.lab.embedded import Embedded
from podidentity.lab.fabric import AZURE_ADDRESS, AZURE_NAMESPACE, FABRIC_ADDRESS, METADATA_ADDRESS
from podidentity.lab.orchestrator import NodePlan, Orchestrator, Place
from podidentity.lab.real import images, program
from podidentity.lab.real.cluster import STATE, Real
from podidentity.lab.serving import serve
from podidentity.lab.settings import Inherited, parse
from podidentity.linux import mounts
from podidentity.linux.namespaces import listener, open_listener

STOP_SECONDS = 4.0


def main() -> None:
    """Run the lab that the first argument describes; report readiness, or one sentence, to the outer process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for name in ("uvicorn", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    inherited = parse(sys.argv[1])
    with open(inherited.report, "w", buffering=1) as report:  # noqa: PTH123  # a descriptor
        try:
            _take_own_run(inherited)
            asyncio.run(_Lab(inherited, lambda facts: print(json.dumps(facts), file=report)).run())
        except* (PodIdentityError, OSError) as errors:
            first = _first(errors)
            logging.getLogger("podidentity.lab").critical("%s", first)
            with contextlib.suppress(OSError):
                print(json.dumps({"error": str(first)}), file=report)
            sys.exit(1)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _take_own_run(inherited: Inherited) -> None:
    """Make a /run of the lab's own: `ip netns` and the kubelets write there. The lab's directory stays where it is."""
    below = [path.resolve() for path in (inherited.directory, inherited.logs)]
    kept = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in below if path.is_relative_to("/run")}
    mounts.mount("run", "/run", "tmpfs", mounts.NOSUID | mounts.NODEV, "mode=755")
    for path, held in kept.items():
        path.mkdir(parents=True, exist_ok=True)
        mounts.bind(f"/proc/self/fd/{held}", str(path), read_only=False)
        os.close(held)


class _Lab:
    """Everything a lab consists of."""

    def __init__(self, inherited: Inherited, report: reaping.Report) -> None:
        settings = inherited.settings
        self._inherited = inherited
        self._report = report
        self._directory = Directory(inherited.directory)
        self._networks = nodes.plan(settings.nodes)
        self._bridge = settings.network == "bridge"
        self._azure = keeping.open_azure(settings.azure)
        self._machines = nodes.machines(self._azure, self._networks, settings.virtual_machines)
        self._kubernetes = self._orchestrator()
        self._azure.log.asker_of = self._asker_of
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Run until told to stop. Raises `HostError` and `OSError`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        # The outer process holds the other end: whatever becomes of it, this end becomes readable.
        loop.add_reader(self._inherited.lifeline, self._stop.set)
        await fabric.build(self._networks, bridge=self._bridge)
        running = asyncio.create_task(self._run_parts())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(self._inherited.lifeline)
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
            group.create_task(self._kubernetes.run(self._ready))

    def _serve(self, group: asyncio.TaskGroup, names: dns.Names) -> None:
        """Open every socket first: from here on connections wait instead of being refused."""
        azure = open_listener(AZURE_NAMESPACE, AZURE_ADDRESS, 443)
        group.create_task(serve(self._azure.app, [azure], self._azure.tls_context()))
        for network in self._networks:
            metadata = listener(METADATA_ADDRESS, 80, interface=network.uplink)
            group.create_task(serve(self._azure.imds(self._machines[network.name]), [metadata]))
        group.create_task(dns.serve(names, FABRIC_ADDRESS))
        group.create_task(gateway.serve(socket.socket(fileno=self._inherited.gateway_listener), names))
        asked = control.listener(self._directory.control)
        door = control.application(self._status, self._stop, self._kubernetes.join, self._azure.admin)
        group.create_task(serve(door, [asked]))

    def _orchestrator(self) -> Orchestrator:
        inherited = self._inherited
        place = Place(
            azure_ca=self._azure.ca_pem.decode(),
            logs=inherited.logs,
            listener=socket.socket(fileno=os.dup(inherited.kubernetes_listener)),
            bridge=self._bridge,
            cgroup=self._directory.cgroup,
            publish_issuer=self._azure.publish_issuer,
        )
        present = len(self._networks) - inherited.settings.late
        plans = [
            NodePlan(network, f"azure://{self._machines[network.name]}", late=network.index >= present)
            for network in self._networks
        ]
        real = inherited.settings.kubernetes == "real"
        files = STATE if real else self._directory.nodes
        for plan in plans:
            nodes.write_files(files / plan.network.name, self._azure, bridge=self._bridge)
        if real:
            return Real(place, plans, program.built(), images.archives())
        return Embedded(place, plans, files, rootless=inherited.rootless)

    def _ready(self) -> None:
        self._write_facts()
        self._report({"ready": True})

    def _asker_of(self, address: str) -> str:
        """Who has an address: a pod, a node, or the host behind the gateway."""
        if address in fabric.OWN_ADDRESSES:
            return "host"
        node = next((network.name for network in self._networks if network.address == address), None)
        return node or self._kubernetes.pod_at(address) or address

    async def _status(self) -> control.Json:
        pods = await self._kubernetes.pods()
        return {
            "name": self._directory.name,
            "network": self._inherited.settings.network,
            "rootless": self._inherited.rootless,
            "nodes": [
                {
                    "name": network.name,
                    "address": network.address,
                    "machine": self._machines[network.name],
                    "pods": pods.get(network.name, 0),
                }
                for network in self._networks
            ],
            "imds_packets": await fabric.metadata_packets(),
            "memory_kib": reaping.memory_kib(),
        }

    def _write_facts(self) -> None:
        lab, settings = self._directory, self._azure.settings
        kubernetes_port = _port(self._inherited.kubernetes_listener)
        lab.write(lab.ca, self._azure.ca_pem.decode())
        facts: dict[str, str | int] = {
            "name": lab.name,
            "logs": str(self._inherited.logs),
            "kubernetes_port": kubernetes_port,
            "gateway_port": _port(self._inherited.gateway_listener),
            "tenant_id": settings.tenant_id,
            "subscription_id": settings.subscription_id,
            "location": settings.location,
            "node_resource_group": settings.node_resource_group,
            "owner_client_id": settings.owner.client_id,
            "owner_client_secret": settings.owner.secret,
            "cluster_client_id": settings.cluster.client_id,
        }
        cluster = self._kubernetes
        lab.write(lab.kubeconfig, kubeconfig.render(lab.name, kubernetes_port, cluster.ca_pem, cluster.admin_token))
        lab.write(lab.facts_file, json.dumps(facts, indent=2))


def _port(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as opened:
        return int(opened.getsockname()[1])


if __name__ == "__main__":
    main()
