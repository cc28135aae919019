"""A broker in a process of its own between the lab's Kubernetes and the lab's Azure, all on sockets with TLS.

The pods are objects of the API, their tokens come from TokenRequest; a thread stands in for the kubelet that keeps the
CA's ConfigMap in a volume. Entra ID is reached under its real name, through an HTTPS proxy.
"""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from contract.conftest import Kubectl
from contract.servers import embedded
from podidentity_lab.azure import Azure, AzureSettings
from podidentity_lab.demo.admin import Admin
from podidentity_lab.kubernetes import ISSUER, Kubernetes
from serving import LOOPBACK, served, unused_port
from waiting import until

NAMESPACE, NAME = "podidentity-broker", "podidentity-broker"
SUBJECT = f"system:serviceaccount:{NAMESPACE}:{NAME}"
SERVER_NAME = "broker.example"
CALLERS_AUDIENCE = "api://AKSIdentityBinding"
EXCHANGE_AUDIENCE = "api://AzureADTokenExchange"
GROUP, LOCATION = "broker", "westeurope"
KUBELET_SECONDS = 0.1
Json = dict[str, Any]
_RULES = (
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
)
_OWN_RULES = (
    {"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["create", "get", "patch"]},
    {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
)


@dataclass(frozen=True, slots=True)
class Account:
    """A service account (`namespace/name`) with a pod, and the file with the pod's token."""

    key: str
    pod: str
    token_file: str


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker's process: its port, its probes' port, and its log."""

    process: "subprocess.Popen[bytes]"
    port: int
    probe_port: int
    log: Path

    def lines(self) -> list[Json]:
        """Return the log, decoded from JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


class Forms:
    """Azure's hosts, with a record of the forms in which Entra ID was asked for tokens of identities."""

    def __init__(self, application: Callable[..., Awaitable[None]]) -> None:
        self.all: list[dict[str, str]] = []
        self._application = application

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer as Azure."""

        async def note() -> Json:
            message: Json = await receive()
            fields = parse_qs(message.get("body", b"").decode("latin-1"))
            if "client_assertion" in fields:
                self.all.append({name: values[0] for name, values in fields.items()})
            return message

        await self._application(scope, note, send)

    def of(self, client_id: str) -> list[dict[str, str]]:
        """Return the forms for one identity."""
        return [form for form in self.all if form["client_id"] == client_id]


@dataclass
class Stage:
    """The lab and one broker; `folder` holds the files that a kubelet would bring into pods."""

    folder: Path
    kubernetes: Kubernetes
    kubectl: Kubectl
    azure: Azure
    forms: Forms
    admin: Admin
    tenant_id: str
    environment: Mapping[str, str]
    kubeconfig: Path
    resources: contextlib.ExitStack
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def account(self, key: str) -> Account:
        """Create a service account with its namespace, a pod of it, and the pod's token."""
        namespace, _, name = key.partition("/")
        pod = f"{name}-{next(self.numbers)}"
        if self.kubectl.tried("get", "namespace", namespace).returncode:
            self.kubectl("create", "namespace", namespace)
        kubectl = self._kubectl(namespace)
        if kubectl.tried("get", "serviceaccount", name).returncode:
            kubectl("create", "serviceaccount", name)
        spec = {"serviceAccountName": name, "nodeSelector": {"none": "x"}, "containers": [{"name": "c", "image": "c"}]}
        kubectl("create", "-f", "-", stdin={"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": spec})
        return Account(key, pod, str(self.token_file(key, pod, CALLERS_AUDIENCE)))

    def token_file(self, key: str, pod: str, audience: str) -> Path:
        """Return a file with a token of a service account, bound to a pod where one is named."""
        namespace, _, name = key.partition("/")
        bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}") if pod else ()
        token = self._kubectl(namespace)("create", "token", name, f"--audience={audience}", *bound)
        path = self.folder / f"token-{next(self.numbers)}"
        path.write_text(token.strip())
        return path

    def delete_pod(self, account: Account) -> None:
        """Delete an account's pod."""
        kubectl = self._kubectl(account.key.partition("/")[0])
        kubectl("delete", "pod", account.pod, "--force", "--grace-period=0")

    def identity(self, name: str, *, credential: bool = True) -> str:
        """Create a managed identity, with a federated credential for the broker; return its client ID."""
        identity = self.admin.create_identity(GROUP, name, LOCATION)
        if credential:
            self.trust(name)
        return str(identity["properties"]["clientId"])

    def trust(self, name: str) -> None:
        """Give an identity its federated credential for the broker."""
        properties = {"issuer": ISSUER, "subject": SUBJECT, "audiences": [EXCHANGE_AUDIENCE]}
        path = f"{self.admin.identity(GROUP, name)}/federatedIdentityCredentials/broker"
        self.admin._arm("PUT", path, "2023-01-31", {"properties": properties})

    def grant(self, client_id: str, *subjects: str) -> str:
        """Let service accounts (`namespace/name`) and groups use an identity, as AKS documents it; return the name."""
        name = f"identity-user-{next(self.numbers)}"
        rule = {"verbs": ["use-managed-identity"], "apiGroups": ["cid.wi.aks.azure.com"], "resources": [client_id]}
        self._create("ClusterRole", name, rules=[rule])
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        self._create("ClusterRoleBinding", name, roleRef=role, subjects=[_subject(text) for text in subjects])
        return name

    def withdraw(self, grant: str) -> None:
        """Take a grant back."""
        self.kubectl("delete", "clusterrolebinding", grant)

    def bundle(self, name: str = NAME) -> str:
        """Return the certificates in a broker's ConfigMap, which clients must trust."""
        return str(self.kubernetes.storage.get("configmaps", NAMESPACE, f"{name}-ca")["data"]["ca.crt"])

    def start(self, name: str = NAME, *program: str) -> Broker:
        """Start a broker and wait until it is ready."""
        port, probe_port, log = unused_port(), unused_port(), self.folder / f"{name}.log"
        flags = {
            "tenant-id": self.tenant_id,
            "namespace": NAMESPACE,
            "name": name,
            "kubeconfig": str(self.kubeconfig),
            "token-file": str(self.folder / "own-token"),
            "server-names": SERVER_NAME,
            "listen-address": LOOPBACK,
            "port": port,
            "http-probe-port": probe_port,
            "prometheus-port": unused_port(),
            "drain": "0s",
            "log-format": "json",
            "v": 5,
        }
        command = [sys.executable, *(program or ("-m", "podidentity")), "broker"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *(f"--{flag}={value}" for flag, value in flags.items())],
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
            )
        self.resources.callback(_end, process)
        until(lambda: process.poll() is not None or _is_ready(probe_port), "the broker is ready")
        assert process.poll() is None, log.read_text()
        return Broker(process, port, probe_port, log)

    def variables(self, broker: Broker, account: Account, client_id: str, ca_file: str) -> dict[str, str]:
        """Return the environment of a pod's container, as the webhook would make it."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "AZURE_CLIENT_ID": client_id,
            "AZURE_TENANT_ID": self.tenant_id,
            "AZURE_FEDERATED_TOKEN_FILE": account.token_file,
            "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
            "AZURE_KUBERNETES_TOKEN_PROXY": f"https://{LOOPBACK}:{broker.port}",
            "AZURE_KUBERNETES_SNI_NAME": SERVER_NAME,
            "AZURE_KUBERNETES_CA_FILE": ca_file,
        }

    @contextlib.contextmanager
    def volume(self, name: str = NAME) -> Iterator[str]:
        """Keep a broker's bundle in a volume, as a kubelet does; yield the file's path."""
        folder = self.folder / f"volume-{next(self.numbers)}"
        folder.mkdir()
        (folder / "ca.crt").symlink_to("..data/ca.crt")
        stop = threading.Event()
        _project(folder, self.bundle(name), 0)
        thread = threading.Thread(target=_keep, args=(folder, lambda: self.bundle(name), stop))
        thread.start()
        try:
            yield str(folder / "ca.crt")
        finally:
            stop.set()
            thread.join()

    def _create(self, kind: str, name: str, **content: Any) -> None:
        metadata = {"name": name}
        body = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata, **content}
        self.kubectl("create", "-f", "-", stdin=body)

    def _kubectl(self, namespace: str) -> Kubectl:
        return Kubectl(self.folder / "kubeconfig", namespace)


@contextlib.contextmanager
def set_up(folder: Path) -> Iterator[Stage]:
    """Yield the lab's Kubernetes and Azure with the broker's own accounts in both; no broker runs yet."""
    with contextlib.ExitStack() as resources:
        path, kubernetes = resources.enter_context(embedded(folder))
        azure = Azure(AzureSettings())
        azure.publish_issuer(ISSUER, kubernetes.token_keys)
        forms = Forms(azure.app)
        port = resources.enter_context(served(forms, azure.tls_context()))
        environment = _environment(azure, folder, resources.enter_context(_proxy(port)))
        admin = Admin(environment)
        resources.callback(admin.close)
        admin.create_group(GROUP, LOCATION)
        kubectl = Kubectl(path, NAMESPACE)
        tenant_id = azure.settings.tenant_id
        own = folder / "kubeconfig-broker"
        stage = Stage(folder, kubernetes, kubectl, azure, forms, admin, tenant_id, environment, own, resources)
        _create_own_account(stage)
        yield stage


def _create_own_account(stage: Stage) -> None:
    """Create the broker's service account with its rights, its kubeconfig, and its token for Entra ID."""
    key = f"{NAMESPACE}/{NAME}"
    account = stage.account(key)
    subject = {"kind": "ServiceAccount", "namespace": NAMESPACE, "name": NAME}
    for kind, rules in (("ClusterRole", _RULES), ("Role", _OWN_RULES)):
        stage._create(kind, NAME, rules=list(rules))
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": NAME}
        stage._create(f"{kind}Binding", NAME, roleRef=role, subjects=[subject])
    config = (stage.folder / "kubeconfig").read_text()
    token = stage.token_file(key, account.pod, ISSUER).read_text()
    stage.kubeconfig.write_text(config.replace(stage.kubernetes.admin_token, token))
    stage.kubeconfig.chmod(0o600)
    stage.token_file(key, account.pod, EXCHANGE_AUDIENCE).rename(stage.folder / "own-token")


def _environment(azure: Azure, folder: Path, proxy_port: int) -> dict[str, str]:
    """Return the variables by which programs find the lab's Azure."""
    trust = folder / "azure.pem"
    trust.write_bytes(azure.ca_pem)
    return {
        "HTTPS_PROXY": f"http://{LOOPBACK}:{proxy_port}",
        "NO_PROXY": LOOPBACK,
        "SSL_CERT_FILE": str(trust),
        "LAB_TENANT_ID": azure.settings.tenant_id,
        "LAB_SUBSCRIPTION_ID": azure.settings.subscription_id,
        "LAB_OWNER_CLIENT_ID": azure.settings.owner.client_id,
        "LAB_OWNER_CLIENT_SECRET": azure.settings.owner.secret,
    }


@contextlib.contextmanager
def _proxy(port: int) -> Iterator[int]:
    """Run an HTTPS proxy behind which every name is the lab's Azure; yield its port."""
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        server_reader, server_writer = await asyncio.open_connection(LOOPBACK, port)
        writers.append(server_writer)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(carry(reader, server_writer), carry(server_reader, writer))

    async def serve(ready: Callable[[int], None], end: asyncio.Event) -> None:
        server = await asyncio.start_server(connect, LOOPBACK, 0)
        ready(server.sockets[0].getsockname()[1])
        await end.wait()
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    with _in_thread(serve) as address:
        yield address


@contextlib.contextmanager
def _in_thread(serve: Callable[[Callable[[int], None], asyncio.Event], Awaitable[None]]) -> Iterator[int]:
    """Run a server in a thread of its own until the block ends; yield its port."""
    ports: list[int] = []
    begun, ends = threading.Event(), []

    def ready(port: int) -> None:
        ports.append(port)
        begun.set()

    async def run() -> None:
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        await serve(ready, end)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    begun.wait()
    try:
        yield ports[0]
    finally:
        ends[0]()
        thread.join()


def _subject(text: str) -> Json:
    namespace, slash, name = text.partition("/")
    if slash:
        return {"kind": "ServiceAccount", "namespace": namespace, "name": name}
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": text}


def _project(folder: Path, content: str, number: int) -> None:
    """Write a new version of a volume and let `..data` lead to it, in one step."""
    version = folder / f"..{number}"
    version.mkdir()
    (version / "ca.crt").write_text(content)
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    link.rename(folder / "..data")


def _keep(folder: Path, bundle: Callable[[], str], stop: threading.Event) -> None:
    content = (folder / "ca.crt").read_text()
    for number in itertools.count(1):
        if stop.wait(KUBELET_SECONDS):
            return
        previous, content = content, bundle()
        if content != previous:
            _project(folder, content, number)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()
