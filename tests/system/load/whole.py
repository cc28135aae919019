"""A node with NMI on it in a cluster with MIC: both daemons as processes, the lab's Kubernetes API, ARM and IMDS.

Pods share one network namespace, each with an address of its own, and ask through the real redirect.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import yaml

import make
from daemons.mic import conftest as worlds
from daemons.mic.arm import StandInArm
from podidentity.core.model.identities import AzureIdentity, AzureIdentityBinding
from podidentity_lab.kubernetes import Kubernetes
from system.load.crowd import ROOT
from system.redirect.background import Background
from system.redirect.network import IMDS, Network
from system.redirect.node import Node, exchange
from waiting import until

ASSIGNED = "azureassignedidentities.aadpodidentity.k8s.io"
AGAIN_SECONDS = 0.002  # between two requests of a pod that NMI does not know yet


class Whole(Node):
    """Both daemons and everything that they talk to.

    `arm` and `world` belong to the event loop of `cluster`: use its `call`.
    """

    def __init__(self, network: Network, directory: Path) -> None:
        super().__init__(network, directory)
        # It complains of each watch that is cut, and of daemons that hang up at the end.
        logging.getLogger("uvicorn.error").addFilter(lambda _: False)
        self.arm = StandInArm()
        self.world = worlds.World(Kubernetes(worlds.NoLogs()), worlds.Machines())
        self.assigned_at: dict[str, float] = {}
        self.mic: subprocess.Popen[bytes] | None = None
        self._server = ""

    def __exit__(self, *details: object) -> None:
        if self.mic is not None:
            self.mic.terminate()
            self.mic.wait(20)
        super().__exit__(*details)

    def serve_kubernetes(self) -> dict[str, Any]:
        """Start the lab's API and the stand-in for ARM."""
        self.cluster = self._opened.enter_context(Background(self.network.node, self._serving))
        certificate = self.directory / "ca.pem"
        certificate.write_bytes(self.world.kubernetes.ca_pem)
        reached = {"server": self._server, "certificate-authority": str(certificate)}
        return {
            "current-context": "lab",
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
            "clusters": [{"name": "lab", "cluster": reached}],
            "users": [{"name": "admin", "user": {"token": self.world.kubernetes.admin_token}}],
        }

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        async with worlds.serve_api(self.world) as http, self.arm.listening():
            self._server = str(http.base_url)
            for definition in yaml.safe_load_all((ROOT / "deploy/infra/deployment-rbac.yaml").read_text()):
                if definition["kind"] == "CustomResourceDefinition":
                    await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
            noting = asyncio.create_task(self._note_assigned())
            yield
            noting.cancel()

    async def _note_assigned(self) -> None:
        storage = self.world.kubernetes.storage
        async for event in storage.watch(ASSIGNED, None, storage.revision):
            if (event.object.get("status") or {}).get("status") == "Assigned":
                self.assigned_at.setdefault(event.object["spec"]["pod"], time.monotonic())

    def start_mic(self, *flags: str) -> None:
        """Start MIC and wait until it leads."""
        path, environ = self.arm.write_config(self.directory)
        command = [sys.executable, "-m", "podidentity", "mic", f"--cloudconfig={path}", *flags]
        given = {**os.environ, **environ, "KUBECONFIG": str(self._kubeconfig), "MIC_POD_NAMESPACE": "default"}
        with (self.directory / "mic.log").open("ab") as log:
            self.mic = self.network.node.popen(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=given)
        until(self._mic_leads, "MIC leads", 60)

    def _mic_leads(self) -> bool:
        assert self.mic is not None
        assert self.mic.poll() is None, (self.directory / "mic.log").read_text()
        return self.page("/healthz", 8080) == (200, "Active")

    def tell(self, *objects: Any) -> None:
        """Create objects, all in one turn of the API server's event loop."""
        self.cluster.call(self.world.add, *objects)

    def tell_identity(self, name: str) -> tuple[AzureIdentity, AzureIdentityBinding]:
        """Create an identity, and a binding whose selector has the same name."""
        made = make.identity(name), make.binding(name, azure_identity=name, selector=name)
        self.tell(*made)
        return made

    def schedule(self, name: str, selector: str, *, node: str = "n1", address: str = "") -> float:
        """Create a pod that has its node and address; return the time just before."""
        _, obj = worlds.rendered(make.pod(name, node=node, selector=selector))
        if address:
            obj["status"] |= {"podIP": address, "podIPs": [{"ip": address}]}

        def act() -> float:
            before = time.monotonic()
            self.world.kubernetes.storage.create("pods", obj)
            return before

        created: float = self.cluster.call(act)
        return created

    def schedule_all(self, pods: Iterable[tuple[str, str, str]]) -> None:
        """Create pods at once: name, selector and node of each."""
        made = [make.pod(name, node=node, selector=selector) for name, selector, node in pods]
        self.tell(*made)

    def remove_pod(self, name: str) -> None:
        """Delete a pod at once."""
        self.cluster.call(self._remove_pod, name)

    def _remove_pod(self, name: str) -> None:
        self.world.kubernetes.storage.delete("pods", "default", name, grace_seconds=0)

    def give_addresses(self, addresses: list[str]) -> None:
        """Add these addresses to the network namespace of the network's first pod."""
        added = "\n".join(f"address add {address}/24 dev eth0" for address in addresses)
        self.network.pods[0].run(f"ip -batch - <<END\n{added}\nEND")

    def asking(self, address: str) -> "Asking":
        """Start a client at an address that asks again and again until there is a token."""
        return Asking(self.network, address)

    def until_assigned(self, name: str, seconds: float = 60.0) -> float:
        """Wait until a pod's identity is Assigned; return when the API server saw that."""
        until(lambda: name in self.assigned_at, f"{name} is Assigned", seconds)
        return self.assigned_at[name]


class Asking:
    """A client in a pod, which asks again at once while it is refused."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = address
        self._began = threading.Event()
        self._stop = threading.Event()
        self._told: tuple[float, str] | None = None
        self._thread = threading.Thread(target=network.pods[0].call, args=(self._ask,), daemon=True)
        self._thread.start()
        assert self._began.wait(20), "the client has no connection"

    def _ask(self) -> None:
        while not self._stop.is_set():
            with socket.create_connection((IMDS, 80), 60, (self._address, 0)) as connection:
                self._began.set()
                status, fields = exchange(connection)
            if status == 200:
                self._told = time.monotonic(), str(fields["access_token"])
                return
            self._stop.wait(AGAIN_SECONDS)

    def answer(self, seconds: float) -> tuple[float, str]:
        """Wait for the token; return when it came, and the token."""
        self._thread.join(seconds)
        self._stop.set()
        assert self._told is not None, f"no token at {self._address} within {seconds} s"
        return self._told
