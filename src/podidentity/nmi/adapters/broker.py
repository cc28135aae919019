"""Tokens of the broker, which NMI asks in the name of its node's pods, or with a pod's own token.

In their name NMI proves itself with its own token: the broker takes this node's name from it, and gives what the pod's
service account may have. The form is that of a token request to Entra ID, with the pod in three more fields.

Connections are used again for a while, each for one request at a time: a handshake costs more than an answer.
"""

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from podidentity.core.exchange.requests import NODE_PATH, TOKEN_FILE_PATH
from podidentity.core.model.federation import exchange_form
from podidentity.core.tokens.choosing import IDENTITY_NOT_FOUND
from podidentity.core.tokens.imds import Token
from podidentity.core.tokens.sources import BrokerIdentity, ProvenIdentity, Source
from podidentity.errors import AzureError, ConfigurationError
from podidentity.http import access_token, json_object, read_body, retry_after_seconds
from podidentity.kube.transport import CONNECTED, Pool, Transport
from podidentity.timing import Clock

_CONNECT_SECONDS = 3.0
_PROBE_SECONDS = 1  # of silence, while an answer is waited for or a connection is unused
_TIMEOUT = httpx2.Timeout(50.0, connect=_CONNECT_SECONDS)  # the broker waits for a credential that was just created
POOL = Pool(connections=64, idle=8, idle_seconds=10.0, age_seconds=60.0)
"""A broker has places for 4096 connections, and a cluster may have as many nodes. A connection stays with one replica:
after its age, others get their part, and the broker shows its certificate again."""
_ANSWER_LIMIT_BYTES = 256 * 1024
_WORDS_CHARACTERS = 600
_NOT_GRANTED = frozenset({403, 404})


class BrokerAddress(NamedTuple):
    """Where the broker is, whom to trust there, and with which token NMI proves itself."""

    url: str
    ca: Path
    token: Path


class _Connections(NamedTuple):
    """An HTTP client and the transport that it sends by; `ca_version` tells contents of the CA's file apart."""

    client: httpx2.AsyncClient
    transport: Transport
    ca_version: tuple[int, int]


class Broker:
    """The broker of the cluster. The caller closes it."""

    def __init__(self, address: BrokerAddress, user_agent: str, clock: Clock) -> None:
        self._address = address
        self._user_agent = user_agent
        self._clock = clock
        self._connections: _Connections | None = None

    async def aclose(self) -> None:
        """Close all connections."""
        if self._connections is not None:
            await self._connections.client.aclose()

    async def acquire(self, source: Source, resource: str) -> Token:
        """Return a token of `source`. Raises `AzureError` with the broker's words, `ConfigurationError` for a bad file.

        An identity that the pod may not use is told as IMDS tells it of one that is not on the machine.
        """
        if isinstance(source, ProvenIdentity):
            form = exchange_form(source.client_id, f"{resource}/.default", source.proof)
            return await self._post(TOKEN_FILE_PATH, form, resource)
        if not isinstance(source, BrokerIdentity):
            raise ConfigurationError("NMI asks the broker in the name of pods alone; report this as a bug")
        pod = {"pod_namespace": source.namespace, "pod_name": source.pod, "pod_uid": source.pod_uid}
        form = exchange_form(source.client_id, f"{resource}/.default", self._assertion())
        try:
            return await self._post(NODE_PATH, form | pod, resource)
        except AzureError as error:
            if error.status in _NOT_GRANTED:
                raise AzureError(f"{IDENTITY_NOT_FOUND}: {error}", status=400, code="invalid_request") from None
            raise

    async def _post(self, path: str, form: Mapping[str, str], resource: str) -> Token:
        connections, url = self._open(), self._address.url + path
        try:
            response, body = await _send(connections, url, form)
        except httpx2.HTTPError as error:
            words = str(error) or type(error).__name__
            message = f"the broker at {self._address.url} does not answer ({words}); check that this node reaches it"
            raise AzureError(message) from None
        document = json_object(body or b"")
        if not response.is_success:
            raise _refusal(response, document)
        return self._token(document, resource)

    def _assertion(self) -> str:
        path = self._address.token
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: NMI's token for the broker cannot be read: {error}") from error

    def _open(self) -> _Connections:
        """Return connections that trust the CA as it is in its file now: the broker replaces it from time to time."""
        path, connections = self._address.ca, self._connections
        try:
            status = path.stat()
            version = status.st_mtime_ns, status.st_ino
            if connections is None or version != connections.ca_version:
                connections = self._connect(ssl.create_default_context(cafile=path), version)
        except (OSError, ssl.SSLError) as error:
            if connections is None:
                raise ConfigurationError(f"{path}: the broker's CA cannot be read: {error}") from error
        return connections

    def _connect(self, trusted: ssl.SSLContext, ca_version: tuple[int, int]) -> _Connections:
        """Return new connections, and give up those that trust another CA, which may be replaced for a reason."""
        if self._connections is not None:
            self._connections.transport.retire()
        transport = Transport(httpx2.URL(self._address.url), trusted, POOL)
        headers = {"User-Agent": self._user_agent}
        client = httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT, transport=transport, trust_env=False)
        self._connections = _Connections(client, transport, ca_version)
        return self._connections

    def _token(self, document: Mapping[str, Any], resource: str) -> Token:
        now = int(self._clock.wall())
        try:
            return Token(access_token(document), now + int(document["expires_in"]), now, resource)
        except (KeyError, ValueError, TypeError):
            message = f"{self._address.url} answered with something that is no token; check the broker's address"
            raise AzureError(message) from None


@contextlib.asynccontextmanager
async def open_broker(address: BrokerAddress, user_agent: str, clock: Clock) -> AsyncIterator[Broker]:
    """Yield the broker, and close its connections at the end."""
    broker = Broker(address, user_agent, clock)
    try:
        yield broker
    finally:
        await broker.aclose()


async def _send(connections: _Connections, url: str, form: Mapping[str, str]) -> tuple[httpx2.Response, bytes | None]:
    """Return the answer and its body. Raises httpx2.HTTPError.

    A connection that was used before may have been closed at its other end just now. Then the request is sent once
    more: to ask twice for a token is as to ask once.
    """
    request = _Request()
    try:
        return await request.send(connections.client, url, form)
    except (httpx2.RemoteProtocolError, httpx2.ReadError):
        if request.is_connection_new or request.has_head:
            raise
    connections.transport.close_idle()  # they lead to where this one led
    return await _Request().send(connections.client, url, form)


class _Request:
    """One request, and what is known of its connection when it fails."""

    def __init__(self) -> None:
        self.is_connection_new = self.has_head = False

    async def send(
        self, client: httpx2.AsyncClient, url: str, form: Mapping[str, str]
    ) -> tuple[httpx2.Response, bytes | None]:
        """Return the answer and its body. Raises httpx2.HTTPError."""
        async with client.stream("POST", url, data=form, extensions={"trace": self._note}) as response:
            self.has_head = True
            return response, await read_body(response, _ANSWER_LIMIT_BYTES)

    async def _note(self, step: str, details: Mapping[str, Any]) -> None:
        if step != CONNECTED:
            return
        self.is_connection_new = True
        connection = details["return_value"].get_extra_info("socket")
        with contextlib.suppress(OSError):  # it may be closed again
            # A machine that is gone acknowledges nothing, be it bytes or probes; a broker that is slow does. The limit
            # is in milliseconds, and holds for probes, too (tcp(7)).
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_CONNECT_SECONDS * 1000))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS)


def _refusal(response: httpx2.Response, document: Mapping[str, Any]) -> AzureError:
    words = str(document.get("error_description") or response.reason_phrase)[:_WORDS_CHARACTERS]
    return AzureError(
        words,
        status=response.status_code,
        code=str(document.get("error", "")),
        retry_after_seconds=retry_after_seconds(response),
    )
