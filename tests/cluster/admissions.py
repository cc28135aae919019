"""Pods created on a real API server, steadily or all at once, and whether each was admitted and injected."""

import asyncio
import base64
import contextlib
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import yaml

from cluster.harness import Cluster
from podidentity.core.injection.mutation import VOLUME_PREFIX
from system.lab.running import Json

CONNECTIONS = 64
PAUSE_SECONDS = 0.1


@dataclass
class ApiServer:
    """Where pods are created, with `dryRun=All`: admission runs, and nothing is stored."""

    url: str
    trust: ssl.SSLContext
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def of(cls, cluster: Cluster) -> "ApiServer":
        """Return the cluster's, as its kubeconfig has it."""
        config = yaml.safe_load(Path(cluster.lab.variables["KUBECONFIG"]).read_text())
        server, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(server["certificate-authority-data"]).decode()
        return cls(
            server["server"],
            ssl.create_default_context(cadata=authority),
            {"Authorization": f"Bearer {user['token']}"},
        )


def outcome(response: httpx2.Response) -> str:
    """Return `injected`, `not injected`, or status and message of a refusal."""
    document: Json = response.json()
    if response.status_code != 201:
        return f"{response.status_code} {document.get('message')}"
    names = [volume["name"] for volume in document["spec"].get("volumes", ())]
    return "injected" if any(name.startswith(VOLUME_PREFIX) for name in names) else "not injected"


def create_at_once(server: ApiServer, pod: Json, count: int) -> Counter[str]:
    """Create `count` pods as fast as the API server accepts them; return how many had each outcome."""

    async def work() -> Counter[str]:
        limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx2.AsyncClient(
            base_url=server.url,
            verify=server.trust,
            headers=server.headers,
            limits=limits,
            timeout=120,
            trust_env=False,
        ) as client:
            path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods?dryRun=All"
            responses = await asyncio.gather(*(client.post(path, json=pod) for _ in range(count)))
            return Counter(map(outcome, responses))

    return asyncio.run(work())


@dataclass
class Steady:
    """A thread that creates pods at a steady pace, and the outcomes so far."""

    counts: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def total(self) -> int:
        """Return how many pods were created or refused."""
        return sum(self.counts.values())

    def run(self, server: ApiServer, pod: Json) -> None:
        """Create until stopped."""
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods?dryRun=All"
        with httpx2.Client(
            base_url=server.url, verify=server.trust, headers=server.headers, timeout=120, trust_env=False
        ) as client:
            while not self._stop.wait(PAUSE_SECONDS):
                self.counts[outcome(client.post(path, json=pod))] += 1

    def stop(self) -> None:
        """Make `run` return."""
        self._stop.set()


@contextlib.contextmanager
def steady(server: ApiServer, pod: Json) -> Iterator[Steady]:
    """Create pods until the end of the block."""
    work = Steady()
    thread = threading.Thread(target=work.run, args=(server, pod), daemon=True)
    thread.start()
    try:
        yield work
    finally:
        work.stop()
        thread.join(150)
