"""Several MICs, each its own process, with one Kubernetes API and one ARM that note the writes of each."""

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2

import make
from daemons.mic.conftest import Machines, NoLogs, World
from podidentity_lab.kubernetes import Kubernetes
from serving import serving, unused_port

SECONDS = 5
"""A leader's lease: long enough for a loaded machine to renew it every quarter."""
LOCK = "aad-pod-identity-mic"


class WriteRequest:
    """One request that changes something, and whether it took effect."""

    def __init__(self, member: str, method: str, path: str) -> None:
        self.member = member
        self.method = method
        self.path = path
        self.status = 0


class Stage(World):
    """The world that all members share. `partitioned` members get no answer from Kubernetes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Kubernetes(NoLogs()), Machines())
        self.folder = folder
        self.write_requests: list[WriteRequest] = []
        self.partitioned: set[str] = set()
        self.identities: dict[str, set[str]] = {}
        self.patch_may_end = asyncio.Event()
        self.patch_may_end.set()
        self.patched_by: list[str] = []

    async def watched(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve Kubernetes, and note each write."""
        member = member_of(scope)
        while member in self.partitioned:  # noqa: ASYNC110  # a partition: nothing comes back, however long one waits
            await asyncio.sleep(0.02)
        if scope["method"] == "GET":
            await super().watched(scope, receive, send)
            return
        request = WriteRequest(member, scope["method"], scope["path"])
        self.write_requests.append(request)

        async def noting(message: Any) -> None:
            request.status = message.get("status", request.status)
            await send(message)

        await super().watched(scope, receive, noting)

    async def azure(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve Entra ID and ARM: tokens, and one document for each scale set."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"]
        if scope["method"] == "POST":
            await answer(send, {"access_token": "token", "expires_in": 3600})
            return
        if scope["method"] == "PATCH":
            self.patched_by.append(member_of(scope))
            await self.patch_may_end.wait()
            for text, value in (json.loads(body)["identity"].get("userAssignedIdentities") or {}).items():
                identities_of_target = self.identities.setdefault(path, set())
                identities_of_target.discard(text) if value is None else identities_of_target.add(text)
            if json.loads(body)["identity"]["type"] == "None":
                self.identities[path] = set()
        identities = {
            text: {"clientId": f"client-of-{text.rpartition('/')[2]}"} for text in self.identities.get(path, ())
        }
        kind = "UserAssigned" if identities else "None"
        properties = {"provisioningState": "Succeeded"}
        identity = {"type": kind, "userAssignedIdentities": identities}
        await answer(send, {"id": path, "identity": identity, "properties": properties})

    def use_account(self, namespace: str, name: str) -> None:
        """Have members that start from now on use a service account."""
        path = self.folder / "kubeconfig"
        storage = self.kubernetes.storage
        pod = {"metadata": {"name": "mic", "namespace": namespace}, "spec": {"serviceAccountName": name}}
        created = storage.create("pods", {"apiVersion": "v1", "kind": "Pod", **pod})
        bound = {"name": "mic", "uid": created["metadata"]["uid"]}
        token = self.kubernetes.service_account_token(namespace, name, bound)
        path.write_text(path.read_text().replace(self.kubernetes.admin_token, token))

    def leader(self) -> str:
        """Return the name of the member that holds the lock."""
        for lock in self.kubernetes.storage.list("endpoints"):
            text = lock["metadata"].get("annotations", {}).get("control-plane.alpha.kubernetes.io/leader", "{}")
            return str(json.loads(text).get("holderIdentity", ""))
        return ""

    def by(self, member: str, since: int = 0) -> list[WriteRequest]:
        """Return the writes of a member, from the write number `since` on."""
        return [request for request in self.write_requests[since:] if request.member == member]


class Member:
    """One MIC in a process of its own."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, probe_port: int) -> None:
        self.name = name
        self.process = process
        self.probe_port = probe_port

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def page(self, path: str = "/healthz") -> str:
        """Return the body of a page of the probes' port."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.probe_port)
        writer.write(f"GET {path}".encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = await reader.read()
        writer.close()
        return text.rpartition(b"\r\n\r\n")[2].decode()

    async def until_health(self, body: str) -> None:
        """Wait until the health page has this body: on a loaded machine a leader may lose the lead for a while."""
        async with asyncio.timeout(SECONDS * 10):
            while await self.page() != body:  # noqa: ASYNC110  # the far side of a socket
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def member(stage: Stage, name: str, *flags: str) -> AsyncIterator[Member]:
    """Run `podidentity mic` with the stage's Kubernetes and ARM."""
    probe, prometheus = unused_port(), unused_port()
    command = [
        sys.executable,
        "-m",
        "podidentity",
        "mic",
        f"--kubeconfig={stage.folder / 'kubeconfig'}",
        f"--leader-election-instance={name}",
        f"--leader-election-duration={SECONDS}s",
        f"--custom-user-agent=member-{name}",
        f"--http-probe-port={probe}",
        f"--prometheus-port={prometheus}",
        *flags,
    ]
    environ = {
        "PATH": os.environ["PATH"],
        "MIC_POD_NAMESPACE": "default",
        "CLOUD": "AzureStackCloud",
        "AZURE_ENVIRONMENT_FILEPATH": str(stage.folder / "cloud.json"),
        "TENANT_ID": "tenant",
        "CLIENT_ID": "mic",
        "CLIENT_SECRET": "secret",
        "SUBSCRIPTION_ID": make.SUBSCRIPTION,
        "RESOURCE_GROUP": make.GROUP,
    }
    with (stage.folder / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=log, stderr=log)
        try:
            yield Member(name, process, probe)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def staged(folder: Path, definitions: list[dict[str, Any]]) -> AsyncIterator[Stage]:
    """Serve Kubernetes and Azure on loopback."""
    stage = Stage(folder)
    tls = stage.kubernetes.tls_context()
    async with serving(stage.watched, tls) as kubernetes, serving(stage.azure, None) as azure:
        (folder / "ca.pem").write_bytes(stage.kubernetes.ca_pem)
        (folder / "kubeconfig").write_text(
            f"""apiVersion: v1
kind: Config
current-context: lab
contexts: [{{name: lab, context: {{cluster: lab, user: admin}}}}]
clusters: [{{name: lab, cluster: {{server: "https://127.0.0.1:{kubernetes}", certificate-authority: {folder}/ca.pem}}}}]
users: [{{name: admin, user: {{token: {stage.kubernetes.admin_token}}}}}]
"""
        )
        address = f"http://127.0.0.1:{azure}"
        cloud = {"name": "Own", "resourceManagerEndpoint": address, "activeDirectoryEndpoint": address}
        (folder / "cloud.json").write_text(json.dumps(cloud))
        trust = ssl.create_default_context(cadata=stage.kubernetes.ca_pem.decode())
        headers = {"Authorization": f"Bearer {stage.kubernetes.admin_token}"}
        base = f"https://localhost:{kubernetes}"
        async with httpx2.AsyncClient(base_url=base, verify=trust, headers=headers, trust_env=False) as http:
            for definition in definitions:
                response = await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
                assert response.status_code == 201, response.text
        yield stage


async def answer(send: Any, document: Any) -> None:
    """Send a JSON document."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


def member_of(scope: Any) -> str:
    """Return the name of the member that sent a request."""
    agent = dict(scope["headers"]).get(b"user-agent", b"").decode()
    match = re.search(r"member-(\w+)", agent)
    return match[1] if match else ""
