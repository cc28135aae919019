"""The lab's Kubernetes over real TLS, replicas that manage their certificates, and clients that verify them."""

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from clocks import JumpingClock
from podidentity.certificates.publications import BundleConfigMaps, Publication
from podidentity.certificates.rotation import Certificates
from podidentity.certificates.settings import CertificateSettings
from podidentity.core.model.identities import ObjectKey
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity_lab.kubernetes import Kubernetes
from serving import LOOPBACK, serving
from waiting import eventually

NAMESPACE = "podidentity-system"
SECRET = ObjectKey(NAMESPACE, "podidentity-broker-ca")
BUNDLE = "podidentity-broker-ca"
NAME = "broker.podidentity-system.svc"
SETTINGS = CertificateSettings(SECRET, (NAME, f"{NAME}.cluster.local"))
OWN_NAMESPACE = BundleConfigMaps(BUNDLE, lambda: (NAMESPACE,))
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL: the clock of these tests is not the machine's
Json = dict[str, Any]


class _NoLogs:
    async def read(self, *_: object, **__: object) -> AsyncIterator[bytes]:
        """Return nothing: no containers here."""
        yield b""


@dataclass
class Cluster:
    """The API server: its storage, and clients with any service account's rights."""

    kubernetes: Kubernetes
    port: int
    folder: Path
    clock: JumpingClock
    exits: contextlib.AsyncExitStack

    async def api(self, token: str = "") -> Api:
        """Return a client with a token's rights, or the admin's without a token."""
        path = self.folder / f"kubeconfig-{len(list(self.folder.iterdir()))}"
        path.write_text(json.dumps(_kubeconfig(self.kubernetes, self.port, token or self.kubernetes.admin_token)))
        path.chmod(0o600)
        http = await self.exits.enter_async_context(open_client(find_cluster(str(path))))
        return Api(http, self.clock)

    def add_namespace(self, name: str) -> None:
        """Create a namespace."""
        self.kubernetes.storage.create("namespaces", {"metadata": {"name": name}})

    def limited_token(self, *rules: Json) -> str:
        """Return the token of a service account with these rules, which hold in the daemon's namespace only."""
        storage, subject = self.kubernetes.storage, {"kind": "ServiceAccount", "namespace": NAMESPACE, "name": "broker"}
        group = "rbac.authorization.k8s.io"
        metadata = {"namespace": NAMESPACE, "name": "broker"}
        storage.create("serviceaccounts", {"metadata": metadata})
        storage.create(f"roles.{group}", {"metadata": metadata, "rules": list(rules)})
        reference = {"apiGroup": group, "kind": "Role", "name": "broker"}
        binding = {"metadata": metadata, "roleRef": reference, "subjects": [subject]}
        storage.create(f"rolebindings.{group}", binding)
        return self.kubernetes.service_account_token(NAMESPACE, "broker", {})

    def secret(self) -> Json:
        """Return the Secret with the CA."""
        return self.kubernetes.storage.get("secrets", *SECRET)

    def change_secret(self, edit: Callable[[Json], None]) -> None:
        """Change the Secret as somebody with kubectl does."""
        assert self.kubernetes.storage.change("secrets", *SECRET, edit)

    def bundle(self, namespace: str = NAMESPACE) -> str:
        """Return the bundle as clients find it."""
        text: str = self.kubernetes.storage.get("configmaps", namespace, BUNDLE)["data"]["ca.crt"]
        return text


@pytest.fixture
def clock() -> JumpingClock:
    """A clock that only a test moves; it begins now, because the API server's certificate must be valid by it."""
    return JumpingClock(hasty=False, wall=float(int(time.time())))


@pytest.fixture
async def cluster(tmp_path: Path, clock: JumpingClock) -> AsyncIterator[Cluster]:
    """A cluster with the daemon's namespace."""
    kubernetes = Kubernetes(_NoLogs())
    async with serving(kubernetes.app, kubernetes.tls_context()) as port, contextlib.AsyncExitStack() as exits:
        cluster = Cluster(kubernetes, port, tmp_path, clock, exits)
        cluster.add_namespace(NAMESPACE)
        yield cluster


@dataclass
class Replica:
    """One replica of the daemon: its certificates, and a server that uses them."""

    certificates: Certificates
    clock: JumpingClock
    port: int = 0
    chains: list[list[x509.Certificate]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self, *, is_cut_off: bool = False) -> AsyncIterator["Replica"]:
        """Start, and serve while the body runs; manage the certificates meanwhile, unless the replica is cut off."""
        context = await self.certificates.start()
        server = await asyncio.start_server(_echo, LOOPBACK, 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        run = asyncio.ensure_future(asyncio.Event().wait() if is_cut_off else self.certificates.run())
        try:
            yield self
        finally:
            run.cancel()
            server.close()

    async def connect(self, bundle: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection as a client that trusts `bundle` alone; check the certificate by the test's clock, too."""
        trusted = ssl.create_default_context(cadata=bundle)
        trusted.verify_flags |= NO_CHECK_TIME | ssl.VERIFY_X509_STRICT  # the default since Python 3.13
        reader, writer = await asyncio.open_connection(LOOPBACK, self.port, ssl=trusted, server_hostname=NAME)
        chain = writer.get_extra_info("ssl_object")._sslobj.get_unverified_chain()  # public since Python 3.13
        certificates = [x509.load_pem_x509_certificate(certificate.public_bytes().encode()) for certificate in chain]
        roots = x509.load_pem_x509_certificates(bundle.encode())
        moment = datetime.fromtimestamp(self.clock.wall(), UTC)
        verifier = PolicyBuilder().store(Store(roots)).time(moment).build_server_verifier(x509.DNSName(NAME))
        verifier.verify(certificates[0], certificates[1:])
        return reader, writer

    async def ask(self, bundle: str) -> None:
        """Make one request over a new connection."""
        reader, writer = await self.connect(bundle)
        await say(reader, writer, b"hello")
        writer.close()
        await writer.wait_closed()


async def pass_time(clock: JumpingClock, replicas: list[Replica], seconds: float) -> None:
    """Let time pass, and wait until every replica has looked at its certificates and sleeps again."""
    looks = len(clock.slept)
    clock.jump(seconds)
    await eventually(
        lambda: clock.waiting == len(replicas) and len(clock.slept) >= looks + len(replicas), "both have looked"
    )


async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
    """Send a line over an open connection, and read it back."""
    writer.write(line + b"\n")
    assert await reader.readline() == line + b"\n"


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


Make = Callable[..., Any]


@pytest.fixture
def new_replica(cluster: Cluster, clock: JumpingClock) -> Make:
    """Return a function that makes a replica; by default the bundle goes to the daemon's own namespace."""

    async def make(*publications: Publication, settings: CertificateSettings = SETTINGS, token: str = "") -> Replica:
        api = await cluster.api(token)
        return Replica(Certificates(api, settings, publications or (OWN_NAMESPACE,), clock), clock)

    return make


def _kubeconfig(kubernetes: Kubernetes, port: int, token: str) -> Json:
    authority = base64.b64encode(kubernetes.ca_pem).decode()
    return {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
        "clusters": [
            {
                "name": "lab",
                "cluster": {"server": f"https://{LOOPBACK}:{port}", "certificate-authority-data": authority},
            }
        ],
        "users": [{"name": "admin", "user": {"token": token}}],
    }
