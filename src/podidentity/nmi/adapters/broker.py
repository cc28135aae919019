"""Tokens of the broker, which NMI asks in the name of its node's pods, or with a pod's own token.

In their name NMI proves itself with its own token: the broker takes this node's name from it, and gives what the pod's
service account may have. The form is that of a token request to Entra ID, with the pod in three more fields.
"""

import ssl
from collections.abc import Mapping
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
from podidentity.timing import Clock

_TIMEOUT = httpx2.Timeout(50.0, connect=3.0)  # the broker waits for a credential that was just created
_ANSWER_LIMIT_BYTES = 256 * 1024
_WORDS_CHARACTERS = 600
_NOT_GRANTED = frozenset({403, 404})


class BrokerAddress(NamedTuple):
    """Where the broker is, whom to trust there, and with which token NMI proves itself."""

    url: str
    ca: Path
    token: Path


class Broker:
    """The broker of the cluster."""

    def __init__(self, address: BrokerAddress, user_agent: str, clock: Clock) -> None:
        self._address = address
        self._user_agent = user_agent
        self._clock = clock
        self._client: httpx2.AsyncClient | None = None
        self._ca_version: tuple[int, int] | None = None

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
        client, url = self._open(), self._address.url + path
        try:
            async with client.stream("POST", url, data=form) as response:
                body = await read_body(response, _ANSWER_LIMIT_BYTES)
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

    def _open(self) -> httpx2.AsyncClient:
        """Return a client that trusts the CA as it is in its file now: the broker replaces it from time to time."""
        path = self._address.ca
        try:
            status = path.stat()
            version = status.st_mtime_ns, status.st_ino
            if self._client is None or version != self._ca_version:
                context = ssl.create_default_context(cafile=path)
                self._client, self._ca_version = self._new_client(context), version
        except (OSError, ssl.SSLError) as error:
            if self._client is None:
                raise ConfigurationError(f"{path}: the broker's CA cannot be read: {error}") from error
        return self._client

    def _new_client(self, context: ssl.SSLContext) -> httpx2.AsyncClient:
        """Return a client that keeps no connection: none is left open when another CA makes another client."""
        limits = httpx2.Limits(max_connections=64, max_keepalive_connections=0)
        headers = {"User-Agent": self._user_agent}
        return httpx2.AsyncClient(headers=headers, verify=context, timeout=_TIMEOUT, limits=limits, trust_env=False)

    def _token(self, document: Mapping[str, Any], resource: str) -> Token:
        now = int(self._clock.wall())
        try:
            return Token(access_token(document), now + int(document["expires_in"]), now, resource)
        except (KeyError, ValueError, TypeError):
            message = f"{self._address.url} answered with something that is no token; check the broker's address"
            raise AzureError(message) from None


def _refusal(response: httpx2.Response, document: Mapping[str, Any]) -> AzureError:
    words = str(document.get("error_description") or response.reason_phrase)[:_WORDS_CHARACTERS]
    return AzureError(
        words,
        status=response.status_code,
        code=str(document.get("error", "")),
        retry_after_seconds=retry_after_seconds(response),
    )
