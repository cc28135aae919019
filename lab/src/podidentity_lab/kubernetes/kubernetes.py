"""The embedded Kubernetes, put together: storage, API, tokens, certificates, controllers."""

import asyncio
import datetime as dt
import functools
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from podidentity_lab.azure.tls import key_usage, load_pem
from podidentity_lab.kubernetes import saving
from podidentity_lab.kubernetes.api import Api
from podidentity_lab.kubernetes.auth import LIFETIME_SECONDS, Authority
from podidentity_lab.kubernetes.controllers import garbage, jobs, looping, schedules, scheduling, services, workloads
from podidentity_lab.kubernetes.kinds import Kinds
from podidentity_lab.kubernetes.storage import Storage
from podidentity_lab.kubernetes.streams import Containers, NoContainers, Streams

NAMESPACES = ("default", "kube-system", "kube-public")
NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
ADDRESSES = ("192.168.50.1", "10.96.0.1", "127.0.0.1")
_PEM = serialization.Encoding.PEM


class PodLogs(Protocol):
    """Where containers' logs are read: the kubelets have them."""

    def read(
        self, namespace: str, pod: str, container: str, *, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Yield what a container has written; with `follow`, also what it writes until it ends."""
        ...


class Kubernetes:
    """One cluster's API and controllers; `backup` is what `save` returned of an earlier one. Raises `LabError`."""

    def __init__(
        self,
        logs: PodLogs,
        containers: Containers | None = None,
        clock: Callable[[], float] = time.time,
        backup: dict[str, Any] | None = None,
    ) -> None:
        self._clock = clock
        self.storage = Storage(clock)
        self._kinds = Kinds()
        self._authority = Authority(self.storage, clock)

        def read(namespace: str, pod: str, container: str, follow: bool, tail: int | None) -> AsyncIterator[bytes]:  # noqa: FBT001  # one caller
            return logs.read(namespace, pod, container, follow=follow, tail_lines=tail)

        self._api = Api(self.storage, self._kinds, self._authority, read, clock)
        self._streams = Streams(self.storage, self._kinds, self._authority, containers or NoContainers())
        self.ca_pem, self._server_pem = _certificates()
        if backup is not None:
            saving.restore(backup, self.storage, self._kinds)
        names = {namespace["metadata"]["name"] for namespace in self.storage.list("namespaces")}
        for name in (name for name in NAMESPACES if name not in names):
            namespace = {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name},
                "status": {"phase": "Active"},
            }
            self.storage.create("namespaces", namespace)

    @property
    def admin_token(self) -> str:
        """The bearer token of the cluster's admin."""
        return self._authority.admin_token

    @property
    def app(self) -> ASGIApp:
        """The API server."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                response = await self._api.serve(Request(scope, receive))
                await response(scope, receive, send)
            elif scope["type"] == "websocket":
                await self._streams.serve(WebSocket(scope, receive, send))

        return application

    def tls_context(self) -> ssl.SSLContext:
        """Return the TLS context of the API server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_pem(context, self._server_pem)
        return context

    def service_account_token(
        self,
        namespace: str,
        name: str,
        pod: Mapping[str, str],
        audience: str = "",
        lifetime_seconds: int = LIFETIME_SECONDS,
    ) -> str:
        """Return a token for a service account's pod (`name`, `uid`); for this API unless for another audience."""
        return self._authority.issue(namespace, name, dict(pod), [audience] if audience else (), lifetime_seconds)

    def token_keys(self) -> dict[str, Any]:
        """Return the key set that verifies those tokens; their issuer is `ISSUER`."""
        return self._authority.keys.key_set()

    def rotate_token_key(self, phase: str) -> list[str]:
        """Take a step: `publish`, `sign` or `withdraw`; return the published key IDs. Raises `LabError`."""
        return self._authority.keys.rotate(phase)

    def save(self) -> dict[str, Any]:
        """Return the objects that somebody made, Secrets with their values included, as `backup` takes them."""
        return saving.snapshot(self.storage, self._kinds)

    async def run(self) -> None:
        """Run the controllers until cancelled."""
        storage, kinds = self.storage, self._kinds
        async with asyncio.TaskGroup() as group:
            for resources, reconcile in (
                (scheduling.RESOURCES, functools.partial(scheduling.reconcile, storage)),
                (workloads.RESOURCES, functools.partial(workloads.reconcile, storage, kinds)),
                (jobs.RESOURCES, lambda: jobs.reconcile(storage, kinds, self._clock())),
                (services.RESOURCES, functools.partial(services.reconcile, storage)),
                (garbage.RESOURCES, functools.partial(garbage.reconcile, storage, kinds)),
            ):
                group.create_task(looping.run(storage, resources, reconcile))
            group.create_task(schedules.run(storage, self._clock))


def _certificates() -> tuple[bytes, bytes]:
    """Return the cluster's CA certificate, and the API server's key with its certificate, in PEM."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podidentity lab: Kubernetes")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    names = [x509.DNSName(name) for name in NAMES]
    addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
    root = (
        _builder(root_name, root_name, root_key.public_key(), root_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        _builder(server_name, root_name, key.public_key(), root_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return root.public_bytes(_PEM), private + leaf.public_bytes(_PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(authority, critical=False)
    )
