"""A broker on a real TLS socket, between a cluster that a test scripts and a stand-in for Entra ID on a real socket."""

import asyncio
import contextlib
import itertools
import json
import ssl
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode

import httpx2
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import serving as servers
from clocks import JumpingClock
from podidentity.broker.metrics import Metrics
from podidentity.broker.settings import Settings
from podidentity.broker.wiring import Clients, assemble
from podidentity.core.exchange.callers import AUDIENCE
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.sources import FederatedIdentity
from podidentity.errors import AzureError, KubernetesError
from podidentity.https.server import Server
from podidentity.serving.metrics import make_registry

TENANT = "11111111-2222-3333-4444-555555555555"
READER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
WRITER = "bbbbbbbb-bbbb-cccc-dddd-eeeeeeeeeeee"
PATH = f"/{TENANT}/oauth2/v2.0/token"
SCOPE = "https://vault.azure.net/.default"
SERVER_NAME = "podidentity-broker.podidentity-broker.svc"
SUBJECT = "system:serviceaccount:podidentity-broker:podidentity-broker"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def jwt(claims: Mapping[str, object], header: Mapping[str, object] | None = None) -> str:
    """Return a token with any signature: whether it is good is for the cluster to say."""
    parts = [json.dumps(part).encode() for part in (header or {"alg": "RS256", "kid": "k"}, claims)]
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in (*parts, b"signature"))


class Reply(NamedTuple):
    """An answer of Entra ID's that a test scripts. With `gate`, it waits for the test."""

    status: int
    document: Mapping[str, object] = {}
    headers: Mapping[str, str] = {}
    gate: asyncio.Event | None = None


class Entra:
    """A stand-in for Entra ID: gives numbered tokens, or what is in `script` first; keeps the forms that it got."""

    def __init__(self) -> None:
        self.forms: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.script: deque[Reply] = deque()
        self.life_seconds = 86_400
        self.application = Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST", "GET"])])
        self._numbers = itertools.count(1)

    async def _answer(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.forms.append(form)
        self.paths.append(request.url.path)
        if self.script:
            reply = self.script.popleft()
            if reply.gate is not None:
                await reply.gate.wait()
            if reply.document or reply.status != 200:
                return Response(json.dumps(reply.document), reply.status, dict(reply.headers))
        number = next(self._numbers)
        document = {
            "token_type": "Bearer",
            "expires_in": self.life_seconds,
            "access_token": f"{form['client_id']} {form['scope']} no {number}",
        }
        return Response(json.dumps(document), 200, {"x-ms-request-id": f"trace-{number}"})


class Cluster:
    """A scripted API server: the tokens that it knows, and which users and groups may use which identities."""

    def __init__(self, clock: JumpingClock) -> None:
        self._clock = clock
        self.tokens: dict[str, dict[str, Any]] = {}
        self.grants: set[tuple[str, str]] = set()
        self.questions: list[str] = []
        self.pods: dict[tuple[str, str], Pod] = {}
        self.failure: KubernetesError | None = None

    def token(self, account: str, pod: str = "pod-1", *, audience: str = AUDIENCE, life_seconds: float = 3600) -> str:
        """Return a new token of a service account (`namespace/name`), bound to a pod."""
        namespace, _, name = account.partition("/")
        username = f"system:serviceaccount:{namespace}:{name}"
        claims = {
            "iss": "https://cluster",
            "sub": username,
            "aud": [audience],
            "exp": self._clock.wall() + life_seconds,
            "jti": str(len(self.tokens)),
            "kubernetes.io": {
                "namespace": namespace,
                **({"pod": {"name": pod, "uid": f"uid-of-{pod}"}} if pod else {}),
            },
        }
        token = jwt(claims)
        extra = {"pod-name": pod, "pod-uid": f"uid-of-{pod}", "node-name": "node-1"} if pod else {}
        self.tokens[token] = {
            "authenticated": True,
            "audiences": [audience],
            "user": {
                "username": username,
                "uid": f"uid-of-{name}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
                "extra": {f"authentication.kubernetes.io/{key}": [value] for key, value in extra.items()},
            },
        }
        return token

    def grant(self, who: str, client_id: str = READER) -> None:
        """Let a service account (`namespace/name`) or a group use an identity."""
        namespace, slash, name = who.partition("/")
        self.grants.add((f"system:serviceaccount:{namespace}:{name}" if slash else who, client_id))

    async def review_token(self, assertion: str, audience: str) -> Mapping[str, Any]:
        """Answer a TokenReview."""
        self._ask("token")
        status = self.tokens.get(assertion, {"error": "unknown"})
        return status if audience in status.get("audiences", ()) else {"authenticated": False}

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer a SubjectAccessReview."""
        self._ask("access")
        client_id = spec["resourceAttributes"]["resource"]
        return {"allowed": any((who, client_id) in self.grants for who in (spec["user"], *spec["groups"]))}

    def add_pod(self, key: str, account: str, node: str = "node-1", **fields: Any) -> Pod:
        """Let a pod (`namespace/name`) run on a node."""
        namespace, _, name = key.partition("/")
        pod = Pod(ObjectKey(namespace, name), f"uid-of-{name}", node, "Running", service_account=account)
        pod = replace(pod, **fields)
        self.pods[namespace, name] = pod
        return pod

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        """Return a pod."""
        self._ask("pod")
        return self.pods.get((namespace, name))

    def _ask(self, question: str) -> None:
        self.questions.append(question)
        if self.failure is not None:
            raise self.failure


@dataclass
class Broker:
    """A broker at work, and a client that trusts it."""

    port: int
    tls: ssl.SSLContext
    cluster: Cluster
    entra: Entra
    clock: JumpingClock
    metrics: Metrics
    server: Server
    client: httpx2.AsyncClient
    ca_pem: bytes
    missing: list[str] = field(default_factory=list)

    async def ask(self, token: str, client_id: str = READER, *, path: str = PATH, **fields: str) -> httpx2.Response:
        """Send a token request; `fields` change the form."""
        return await self.client.post(path, data=form(token, client_id) | fields)


def form(token: str, client_id: str = READER) -> dict[str, str]:
    """Return the form of a good request."""
    return {
        "client_id": client_id,
        "client_assertion": token,
        "client_assertion_type": ASSERTION_TYPE,
        "grant_type": "client_credentials",
        "scope": SCOPE,
    }


def encoded(token: str, client_id: str = READER) -> bytes:
    """Return that form as a body."""
    return urlencode(form(token, client_id)).encode()


@contextlib.asynccontextmanager
async def serving(*, cluster_type: type[Cluster] = Cluster, **changes: Any) -> AsyncIterator[Broker]:
    """Serve a broker for which time passes only while it sleeps, and then at once; `changes` are settings."""
    clock = JumpingClock()
    cluster, entra, missing = cluster_type(clock), Entra(), list[str]()
    authority, own = trustme.CA(), trustme.CA()
    async with contextlib.AsyncExitStack() as resources:
        folder = Path(resources.enter_context(TemporaryDirectory()))
        token_file = folder / "token"
        token_file.write_text(jwt({"iss": "https://cluster", "sub": SUBJECT}))
        entra_tls = server_tls(authority, "localhost")
        port = await resources.enter_async_context(servers.serving(entra.application, entra_tls))
        trusted = ssl.create_default_context()
        authority.configure_trust(trusted)
        to_entra = await resources.enter_async_context(httpx2.AsyncClient(verify=trusted, timeout=5.0))
        settings = Settings(TENANT, f"https://localhost:{port}", token_file, **changes)

        def note(source: FederatedIdentity, _error: AzureError) -> None:
            missing.append(source.client_id)

        metrics = Metrics(make_registry())
        tasks = await resources.enter_async_context(_tasks())
        parts = assemble(settings, metrics, Clients(cluster, cluster, to_entra, note), clock, tasks)
        serving_port = await resources.enter_async_context(
            parts.server.listen("127.0.0.1", 0, server_tls(own, SERVER_NAME, "localhost"))
        )
        tls = ssl.create_default_context()
        own.configure_trust(tls)
        client = httpx2.AsyncClient(verify=tls, base_url=f"https://localhost:{serving_port}", timeout=20.0)
        await resources.enter_async_context(client)
        yield Broker(
            serving_port, tls, cluster, entra, clock, metrics, parts.server, client, own.cert_pem.bytes(), missing
        )


@contextlib.asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that ends with what is still under way in it."""
    async with asyncio.TaskGroup() as group:
        pending: set[asyncio.Task[Any]] = set()
        create = group.create_task

        def remember(work: Any) -> asyncio.Task[Any]:
            task = create(work)
            pending.add(task)
            task.add_done_callback(pending.discard)
            return task

        group.create_task = remember  # type: ignore[assignment,method-assign]
        yield group
        for task in pending:
            task.cancel()


def server_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """Return what a server needs that `authority` vouches for under `names`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context
