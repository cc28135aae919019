"""What the page reads of a lab, served by this process: a control socket, and the API of a Kubernetes with two NMIs.

The benchmark of the page uses it as well: a whole lab makes fewer requests a second than the page is to bear.
"""

import asyncio
import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from podidentity_lab import control
from podidentity_lab.azure.faults import Faults
from podidentity_lab.directory import Directory
from serving import serving

Json = dict[str, Any]
NODES = ("node-0", "node-1")
CLIENT = "10a6e04b-98bf-4a06-acca-5c4376a7f8d1"
VAULT = "https://vault.azure.net"
STATE: Json = {"identities": {}, "roles": {}, "machines": {}, "operations": {}, "vaults": {}, "secrets": {}}
LOG_LIMIT = 10_000


@dataclass
class SmallLab:
    """A lab's files in `directory`, and what its logs say. Everything is of one event loop."""

    directory: Directory
    entries: list[Json] = field(default_factory=list)
    lines: dict[str, list[str]] = field(default_factory=lambda: {node: [] for node in NODES})
    faults: Faults = field(default_factory=Faults)
    reads: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _cut: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, home: Path) -> AsyncIterator[Self]:
        """Serve a lab below `home`, which lives as long as the block."""
        lab = cls(_make(home))
        directory = lab.directory
        authority = trustme.CA()
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        async with (
            serving(lab._control_app(), listener=control.listener(directory.control)),
            serving(lab._kubernetes_app(), tls) as port,
        ):
            lab._write_files(port, authority.cert_pem.bytes())
            with _locked(directory.lock):
                yield lab
            lab.cut()

    def request(
        self, number: int, moment: float, *, node: str = NODES[0], status: int = 200, cached: bool = False
    ) -> None:
        """Log one request of a pod: at NMI, at IMDS unless it is cached, and at Key Vault 10 ms after the answer."""
        pod = f"pod-{number}"
        if not cached:
            self.log(moment - 0.01, "imds", node, host="169.254.169.254", resource=VAULT)
        self.audit(node, moment, pod, "true" if cached else "false")
        self.log(
            moment + 0.01, "keyvault", f"default/{pod}", host="kv.vault.azure.net", what="/secrets/x", status=status
        )

    def audit(self, node: str, moment: float, pod: str, cached: str) -> None:
        """Write an audit line of NMI."""
        text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.write(
            node,
            f"{text} INFO audit: msg=token status=200 pod={pod} namespace=default uid=1 address=10.244.1.3 "
            f"resource=vault.azure.net cached={cached} identity=default/reader "
            f'client_id="{CLIENT[:4]}##### REDACTED #####{CLIENT[-4:]}" source=adal_token_msi why="" ms=20.0',
        )

    def write(self, node: str, line: str) -> None:
        """Write a line to NMI's log."""
        self.lines[node].append(line)
        self._news.set()
        self._news = asyncio.Event()

    def log(self, moment: float, service: str, asker: str, **fields: Any) -> None:
        """Log a request to Azure."""
        entry = {
            "number": self.entries[-1]["number"] + 1 if self.entries else 1,
            "time": moment,
            "service": service,
            "asker": asker,
            "host": "",
            "method": "GET",
            "what": "/metadata/identity/oauth2/token",
            "resource": "",
            "who": CLIENT,
            "identity": "reader",
            "status": 200,
            "why": "Forbidden: no" if fields.get("status", 200) >= 400 else "",
        }
        self.entries.append({**entry, **fields})

    def cut(self) -> None:
        """End every log that is followed, as an API server does that ends."""
        self._cut.set()
        self._cut = asyncio.Event()

    def _control_app(self) -> Starlette:
        async def show_log(request: Request) -> Response:
            self.reads += 1
            number = int(request.query_params["after"])
            last = self.entries[-LOG_LIMIT:]
            return JSONResponse([entry for entry in last if entry["number"] > number])

        async def set_faults(request: Request) -> Response:
            fields = await request.json() if request.method == "PATCH" else dataclasses.asdict(Faults())
            self.faults = dataclasses.replace(self.faults, **fields)
            return JSONResponse(dataclasses.asdict(self.faults))

        return Starlette(
            routes=[
                Route("/azure/log", show_log),
                Route("/azure/state", lambda _: JSONResponse({"state": STATE})),
                Route("/azure/faults", lambda _: JSONResponse(dataclasses.asdict(self.faults))),
                Route("/azure/faults", set_faults, methods=["PATCH", "DELETE"]),
                Route("/status", lambda _: JSONResponse({"nodes": [], "imds_packets": {}})),
            ]
        )

    def _kubernetes_app(self) -> Starlette:
        pods = [
            {
                "metadata": {"namespace": "default", "name": f"nmi-{node}", "labels": {"component": "nmi"}},
                "spec": {"nodeName": node},
                "status": {"phase": "Running"},
            }
            for node in NODES
        ]

        async def show_log(request: Request) -> Response:
            node = request.path_params["pod"].removeprefix("nmi-")
            start = max(0, len(self.lines[node]) - int(request.query_params["tailLines"]))
            return StreamingResponse(
                self._read(node, start, follow="follow" in request.query_params), media_type="text/plain"
            )

        return Starlette(
            routes=[
                Route("/api/v1/pods", lambda _: JSONResponse({"items": pods})),
                Route("/api/v1/serviceaccounts", lambda _: JSONResponse({"items": []})),
                Route("/api/v1/namespaces/default/pods/{pod}/log", show_log),
            ]
        )

    async def _read(self, node: str, position: int, *, follow: bool) -> AsyncIterator[str]:
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            while True:
                news, lines = self._news, self.lines[node][position:]
                position += len(lines)
                yield "".join(f"{line}\n" for line in lines)
                if not follow or cut.done():
                    return
                waiting = asyncio.ensure_future(news.wait())
                await asyncio.wait({waiting, cut}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
        finally:
            cut.cancel()

    def _write_files(self, port: int, ca_pem: bytes) -> None:
        cluster = {
            "server": f"https://127.0.0.1:{port}",
            "certificate-authority-data": base64.b64encode(ca_pem).decode(),
        }
        configuration = {"clusters": [{"cluster": cluster}], "users": [{"user": {"token": "secret"}}]}
        self.directory.write(self.directory.kubeconfig, json.dumps(configuration))
        self.directory.write(self.directory.facts_file, "{}")


def _make(home: Path) -> Directory:
    directory = Directory(home / "lab")
    for path in (home, directory.path):
        path.mkdir(mode=0o700)
    (home / ".lock").touch()  # by which commands know a home of labs
    return directory


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
