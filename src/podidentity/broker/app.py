"""Answers one request of one client: reads it, asks who sent it and whether they may, and has the token.

Both questions come before the cache, for each request.
"""

import logging
import secrets
from dataclasses import dataclass
from time import perf_counter

from podidentity.broker.access import Access
from podidentity.broker.exchange import Exchange
from podidentity.broker.metrics import Audit, Record
from podidentity.core.exchange import answers
from podidentity.core.exchange.callers import Caller
from podidentity.core.exchange.requests import (
    NODE_PATH,
    TOKEN_FILE_PATH,
    ConfigurationRequest,
    InstanceRequest,
    PodTokenRequest,
    ProxyRequest,
    Refusal,
    TokenRequest,
    parse,
)
from podidentity.core.model.http_request import HttpRequest
from podidentity.core.tokens.imds import Token
from podidentity.errors import AzureError, PodIdentityError
from podidentity.https.answers import Answer
from podidentity.timing import Clock, render_rfc3339

_log = logging.getLogger(__name__)

PROXY_DOOR, NODE_DOOR, TOKEN_FILE_DOOR = "proxy", "node", "token-file"
_DOORS = {NODE_PATH: NODE_DOOR, TOKEN_FILE_PATH: TOKEN_FILE_DOOR}
_OK = 200
_PATH_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of a request for a token."""

    result: Token | Refusal
    caller: Caller | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Cloud:
    """Whose tokens are given: a tenant, its Entra ID (`https://HOST`), and the credential that its identities need."""

    tenant_id: str
    authority: str
    credential: str


class App:
    """The token proxy: `access` says who may, `exchange` has the token."""

    def __init__(self, cloud: Cloud, access: Access, exchange: Exchange, audit: Audit, clock: Clock) -> None:
        self._cloud = cloud
        self._access = access
        self._exchange = exchange
        self._audit = audit
        self._clock = clock

    async def answer(self, message: HttpRequest, address: str) -> Answer:
        """Answer one request that came from `address`. Raises nothing but cancellation: a bug is answered 500."""
        start = perf_counter()
        request = self._parse(message)
        if isinstance(request, ConfigurationRequest | InstanceRequest):
            _log.debug("discovery: %s asks for %s", address, message.path[:_PATH_CHARACTERS])
        if isinstance(request, ConfigurationRequest):
            return Answer(_OK, answers.configuration_document(self._cloud.authority, self._cloud.tenant_id))
        if isinstance(request, InstanceRequest):
            return Answer(_OK, answers.instance_document(self._cloud.authority, self._cloud.tenant_id))
        outcome = _Outcome(request) if isinstance(request, Refusal) else await self._outcome(request, address)
        answer, trace_id = self._render(outcome.result)
        record = Record(
            _DOORS.get(message.path, PROXY_DOOR),
            address,
            None if isinstance(request, Refusal) else _question(request),
            outcome.caller,
            answer.status,
            outcome.result.message if isinstance(outcome.result, Refusal) else "",
            outcome.cached,
            trace_id,
        )
        self._audit.write(record, perf_counter() - start)
        return answer

    def _parse(self, message: HttpRequest) -> ProxyRequest:
        try:
            return parse(message, self._cloud.tenant_id)
        except Exception:  # noqa: BLE001  # as with every later step: a bug must not end the connection without an answer
            return self._bug()

    async def _outcome(self, request: TokenRequest | PodTokenRequest, address: str) -> _Outcome:
        caller: Caller | None = None
        try:
            identified = await self._identify(request, address)
            if isinstance(identified, Refusal):
                return _Outcome(identified)
            caller = identified
            question = _question(request)
            refusal = await self._access.authorize(caller, question.client_id)
            if refusal is not None:
                return _Outcome(refusal, caller)
            token, cached = await self._exchange.token(question, caller.namespace)
        except AzureError as error:
            return _Outcome(answers.refusal_of(error, self._cloud.credential), caller)
        except PodIdentityError as error:
            return _Outcome(Refusal(503, "temporarily_unavailable", str(error), 1.0), caller)
        except Exception:  # noqa: BLE001  # one request's bug must not end its connection without an answer
            return _Outcome(self._bug(), caller)
        return _Outcome(token, caller, cached)

    def _bug(self) -> Refusal:
        """Note the exception that is being handled, and return the answer."""
        self._audit.count_bug()
        _log.exception("a bug: a request is answered 500")
        return Refusal(500, "server_error", "the broker failed; its log says more")

    async def _identify(self, request: TokenRequest | PodTokenRequest, address: str) -> Caller | Refusal:
        if isinstance(request, PodTokenRequest):
            return await self._access.identify_pod(request, address)
        return await self._access.identify(request.assertion, address)

    def _render(self, result: Token | Refusal) -> tuple[Answer, str]:
        """Return the answer, and the name under which its request stands in the log: Entra ID's, where it was asked."""
        trace_id = secrets.token_hex(8)
        if isinstance(result, Token):
            return Answer(_OK, answers.token_document(result, self._clock.wall())), result.trace_id or trace_id
        document = answers.error_document(result, trace_id, render_rfc3339(self._clock.wall()))
        return Answer(result.status, document, result.retry_after_seconds, result.allow), trace_id


def _question(request: TokenRequest | PodTokenRequest) -> TokenRequest:
    """Return which token is asked for, whoever asks."""
    return request.request if isinstance(request, PodTokenRequest) else request
