"""What bench/lab.py compares: the lab, Azurite, moto, and a kube-apiserver with its etcd, all on loopback.

Azurite and moto are installed from npm and PyPI, with the pins in bench/reference, to the cache that the clients of the
interop tests have too. `make cluster-ready` builds kube-apiserver. Each keeps its data in memory, but for etcd.
"""

import base64
import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import trustme

from interop import clients
from podidentity_lab import environment
from podidentity_lab.directory import Directory
from podidentity_lab.real import pki, plane, program
from processes import proportional_mib, tree
from serving import unused_port
from waiting import until

BOUND = ("setpriv", "--pdeathsig=KILL", "--")  # whoever kills the benchmark leaves no server behind
LOOPBACK = "127.0.0.1"
READY_SECONDS = 120.0
PINS = Path(__file__).parent / "reference"
AZURITE = clients.Client(
    "azurite",
    ("node", "npm"),
    (str(PINS / "azurite/package.json"),),
    clients.javascript_packages(str(PINS / "azurite")),
)
MOTO = clients.Client(
    "moto",
    (),
    (str(PINS / "moto/requirements.txt"), str(PINS / "moto/constraints.txt")),
    clients.python_packages(str(PINS / "moto")),
)
PREPARATIONS: dict[str, Callable[[], object]] = {
    "kube-apiserver": program.require,
    "azurite": lambda: clients.ensure(AZURITE),
    "moto": lambda: clients.ensure(MOTO),
}
"""What finds or installs each program, before anything is measured. Raises `MissingToolError`, `LabError`, or
`RuntimeError` with what the package manager wrote."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, with the status of its good answer."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


class Endpoint:
    """A server as a client has it: one connection, which stays open; `headers` go with every request.

    `proxy` is the port of a proxy on loopback through which the server is reached. Without `ca_pem` there is no TLS.
    """

    def __init__(self, host: str, port: int, ca_pem: str, headers: Mapping[str, str], proxy: int | None = None) -> None:
        self.host = host
        self.headers = headers
        address = (LOOPBACK if proxy else host, proxy or port)
        self._connection = http.client.HTTPConnection(*address, timeout=60)
        if ca_pem:
            context = ssl.create_default_context(cadata=ca_pem)
            self._connection = http.client.HTTPSConnection(*address, timeout=60, context=context)
        if proxy:
            self._connection.set_tunnel(host, port)

    def send(self, call: Call) -> bytes:
        """Return the body of the answer. Raises `SystemExit` when it is not the good one, `OSError` without any."""
        self._connection.request(call.method, call.path, call.body or None, {**self.headers, **call.headers})
        response = self._connection.getresponse()
        body = response.read()
        if response.status != call.status:
            raise SystemExit(f"{call.method} {self.host}{call.path} was answered {response.status}: {body[:300]!r}")
        return body

    def answers(self, call: Call) -> bool:
        """Whether it gives the good answer by now; the next try has a connection of its own."""
        try:
            self.send(call)
        except (OSError, http.client.HTTPException, SystemExit):
            self._connection.close()
            return False
        return True

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()


@dataclass(slots=True)
class Emulator:
    """A program that runs. `ready_s`: from the start of its process to its first good answer."""

    roots: Sequence[int]
    ready_s: float
    endpoints: Mapping[str, Endpoint]

    def memory_mib(self) -> float:
        """Return the memory of all its processes."""
        return round(proportional_mib([pid for root in self.roots for pid in tree(root)]), 1)


@contextlib.contextmanager
def run_processes(folder: Path, commands: Sequence[Sequence[str]], variables: Mapping[str, str]) -> Iterator[list[int]]:
    """Run commands while the body runs; yield their process IDs. What they write goes to files in `folder`."""
    with contextlib.ExitStack() as stack:
        pids: list[int] = []
        for command in commands:
            log = stack.enter_context((folder / f"{Path(command[0]).name}-{len(pids)}.log").open("wb"))
            process = subprocess.Popen([*BOUND, *command], env=variables, cwd=folder, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            pids.append(process.pid)
        yield pids


def lab_words(*words: str) -> list[str]:
    """Return a `podidentity lab` command."""
    return [sys.executable, "-m", "podidentity", "lab", *words]


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[tuple[Emulator, Mapping[str, str]]]:
    """Run a lab with one node; yield it with the variables of its user's shell.

    It is ready when its Kubernetes has listed namespaces and its ARM subscriptions.
    """
    variables = {"PATH": os.environ["PATH"], "HOME": "/", "PODIDENTITY_LAB_HOME": str(folder / "labs")}
    directory = Directory(folder / "labs" / "bench")
    start = time.monotonic()
    with run_processes(folder, [lab_words("up", "--name", "bench", "--nodes", "1")], variables) as pids:
        until(directory.facts_file.exists, f"the lab is ready; see {folder}", READY_SECONDS)
        shell = environment.variables(directory)
        kubernetes = _from_kubeconfig(json.loads(directory.kubeconfig.read_text()))
        kubernetes.send(Call("GET", "/api/v1/namespaces"))
        arm = azure_endpoint(shell, "management.azure.com")
        arm.send(Call("GET", "/subscriptions?api-version=2022-12-01"))
        emulator = Emulator(pids, time.monotonic() - start, {"kubernetes": kubernetes, "arm": arm})
        kubernetes.close()
        arm.close()
        try:
            yield emulator, shell
        finally:
            kubernetes.close()
            arm.close()
            subprocess.run(lab_words("down", "--name", "bench"), env=variables, check=True, timeout=60)


def _from_kubeconfig(config: Mapping[str, list[Mapping[str, Mapping[str, str]]]]) -> Endpoint:
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    port = urlsplit(cluster["server"]).port
    assert port is not None
    ca_pem = base64.b64decode(cluster["certificate-authority-data"]).decode()
    return Endpoint(LOOPBACK, port, ca_pem, {"Authorization": f"Bearer {user['token']}"})


def azure_endpoint(variables: Mapping[str, str], host: str, audience: str = "") -> Endpoint:
    """Return a host of the lab's Azure for its owner, whose token is for `audience`, or else for that host."""
    proxy = urlsplit(variables["HTTPS_PROXY"]).port
    ca_pem = Path(variables["SSL_CERT_FILE"]).read_text()
    login = Endpoint("login.microsoftonline.com", 443, ca_pem, {}, proxy)
    scope = f"{audience or f'https://{host}'}/.default"
    form = (
        f"grant_type=client_credentials&client_id={variables['LAB_OWNER_CLIENT_ID']}"
        f"&client_secret={variables['LAB_OWNER_CLIENT_SECRET']}&scope={scope}"
    )
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    token = json.loads(
        login.send(Call("POST", f"/{variables['LAB_TENANT_ID']}/oauth2/v2.0/token", form.encode(), kind))
    )
    login.close()
    return Endpoint(host, 443, ca_pem, {"Authorization": f"Bearer {token['access_token']}"}, proxy)


@contextlib.contextmanager
def single(folder: Path, command: Sequence[str], endpoint: Endpoint, first: Call) -> Iterator[Emulator]:
    """Run a server of one process, which has started once it gives a good answer to `first`."""
    start = time.monotonic()
    with run_processes(folder, [command], {"PATH": os.environ["PATH"]}) as pids:
        until(lambda: endpoint.answers(first), f"the first answer; see {folder}", READY_SECONDS)
        emulator = Emulator(pids, time.monotonic() - start, {"": endpoint})
        endpoint.close()
        yield emulator
        endpoint.close()


BLOB_ACCOUNT = "devstoreaccount1"
BLOB_HEADERS = {"x-ms-version": "2023-11-03", "x-ms-blob-type": "BlockBlob"}


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Emulator]:
    """Run Azurite's blob service, which checks a bearer token as far as it does: its times, issuer and audience."""
    server = clients.ensure(AZURITE) / "node_modules/azurite/dist/src/blob/main.js"
    now = int(time.time())
    claims = {"iss": f"https://sts.windows.net/{pki.ADMIN}/", "aud": "https://storage.azure.com"}
    times = {"iat": now - 60, "nbf": now - 60, "exp": now + 3600}
    token = jwt.encode(claims | times, "a key that nobody checks, of a fair length", algorithm="HS256")

    authority, port = trustme.CA(), unused_port()
    certificate = authority.issue_cert(LOOPBACK)
    certificate_file, key_file = folder / "server.pem", folder / "server.key"
    certificate_file.write_bytes(b"".join(entry.bytes() for entry in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key_file)
    options = ["--silent", "--disableTelemetry", "--inMemoryPersistence", "--oauth", "basic", f"--blobPort={port}"]
    command = ["node", str(server), *options, f"--cert={certificate_file}", f"--key={key_file}"]
    headers = BLOB_HEADERS | {"Authorization": f"Bearer {token}"}
    endpoint = Endpoint(LOOPBACK, port, authority.cert_pem.bytes().decode(), headers)
    with single(folder, command, endpoint, Call("GET", f"/{BLOB_ACCOUNT}?comp=list")) as emulator:
        yield emulator


def aws_headers(service: str) -> dict[str, str]:
    """Return what leads to a service of moto, which looks at no signature."""
    credential = f"key/20200101/us-east-1/{service}/aws4_request"
    return {"Authorization": f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=none"}


def iam(action: str, **fields: str) -> Call:
    """Return a call of AWS's IAM."""
    form = "&".join(f"{name}={value}" for name, value in {"Action": action, "Version": "2010-05-08", **fields}.items())
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return Call("POST", "/", form.encode(), aws_headers("iam") | kind)


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Emulator]:
    """Run moto's server, without TLS, as its users have it."""
    port = unused_port()
    command = [str(clients.ensure(MOTO) / "bin/moto_server"), f"--host={LOOPBACK}", f"--port={port}"]
    with single(folder, command, Endpoint(LOOPBACK, port, "", {}), iam("ListRoles")) as emulator:
        yield emulator


@contextlib.contextmanager
def kube_apiserver(folder: Path) -> Iterator[Emulator]:
    """Run a kube-apiserver and its etcd, without controllers. Raises `LabError` if it was never built."""
    kubernetes, keys = program.require(), pki.make(folder / "pki", [])
    etcd, port = f"http://{LOOPBACK}:{unused_port()}", unused_port()
    server = [
        *dict(plane.commands(kubernetes, keys, folder, folder))["kube-apiserver"],
        f"--etcd-servers={etcd}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={port}",
        "--endpoint-reconciler-type=none",
        "--disable-admission-plugins=ServiceAccount",  # no controller makes any
    ]
    store = [str(kubernetes.component("etcd")), etcd, str(folder / "etcd")]
    headers = {"Authorization": f"Bearer {keys.tokens[pki.ADMIN]}"}
    endpoint = Endpoint(LOOPBACK, port, keys.ca_pem.decode(), headers)
    start = time.monotonic()
    with run_processes(folder, [store, server], {"PATH": os.environ["PATH"]}) as pids:
        until(lambda: endpoint.answers(Call("GET", "/readyz")), "kube-apiserver is ready", READY_SECONDS)
        emulator = Emulator(pids, time.monotonic() - start, {"": endpoint})
        endpoint.close()
        yield emulator
        endpoint.close()
