"""Answers one request request of one connection: tokens, the node's own requests, what may be passed on to IMDS.

`answer` is synchronous; only when something has to be waited for does it return a `Pending`, whose `wait` is a task of
the listener's. Knows nothing of bytes beyond the answers it returns.
"""

import logging
from dataclasses import dataclass

from podidentity.core.tokens.imds import (
    Forward,
    HostTokenRequest,
    ParsedRequest,
    Refusal,
    TokenFileRequest,
    TokenRequest,
)
from podidentity.nmi.answers import Answer, refuse
from podidentity.nmi.host_token import HostTokens
from podidentity.nmi.metrics import Observer, now
from podidentity.nmi.ports import Peer
from podidentity.nmi.proxy import Proxy
from podidentity.nmi.token import TokenFlow
from podidentity.nmi.token_file import TokenFileDoor, challenge, refuse_here

_log = logging.getLogger(__name__)

STRANGERS = "strangers"
"""Clients of the token-file door that are neither this node's pods nor itself: one of them can have any number of IPv6
addresses."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A request whose answer has to be waited for."""

    request: ParsedRequest
    peer: Peer
    start: float


class App:
    """The daemon's answers. `proxy` and `host_tokens` serve their routes; `flow` everything about tokens.

    `token_file` serves pods that prove themselves.
    """

    def __init__(
        self, flow: TokenFlow, host_tokens: HostTokens, token_file: TokenFileDoor, proxy: Proxy, observer: Observer
    ) -> None:
        self._flow = flow
        self._host_tokens = host_tokens
        self._token_file = token_file
        self._proxy = proxy
        self._observer = observer

    def answer(self, request: ParsedRequest, peer: Peer) -> Answer | Pending:
        """Answer a pod's request at once, or return a `Pending` to wait for."""
        start = now()
        if isinstance(request, TokenRequest):
            step = self._flow.step(request, peer)
        elif isinstance(request, Refusal):
            step = refuse(request)
        elif isinstance(request, Forward):
            return Pending(request, peer, start)
        else:
            step = refuse(Refusal(404, "tokens for other pods are given to programs of the node only"))
        if not isinstance(step, Answer):
            return Pending(request, peer, start)
        self._observer.note(request, peer.address, step, now() - start)
        return step

    def answer_node(self, request: ParsedRequest, peer: Peer) -> Answer | Pending:
        """Answer a program of the node: it is no pod, and only asks for pods' tokens."""
        start = now()
        if isinstance(request, HostTokenRequest):
            return Pending(request, peer, start)
        if not isinstance(request, Refusal):
            refusal = Refusal(404, f"no pod has the address {peer.address}")
        else:
            refusal = request
        step = refuse(refusal)
        self._observer.note(request, peer.address, step, now() - start)
        return step

    def answer_by_proof(self, request: ParsedRequest, peer: Peer) -> Answer | Pending:
        """Answer a pod that asks at the token-file door, where its own token says who it is."""
        start = now()
        if isinstance(request, TokenFileRequest) and request.proof:
            return Pending(request, peer, start)
        if isinstance(request, Refusal):
            step = refuse_here(request)
        else:
            step = challenge("ask again with the content of the file that WWW-Authenticate names")
        self._observer.note(request, peer.address, step, now() - start)
        return step

    def client_by_proof(self, peer: Peer) -> str:
        """Return whose places a client of the token-file door takes: its own, or one share of all strangers."""
        return peer.address if self._token_file.knows(peer.address) else STRANGERS

    async def wait(self, pending: Pending) -> Answer:
        """Return the answer to wait for. Cancelled when the client hangs up."""
        answer = await self._wait(pending)
        self._observer.note(pending.request, pending.peer.address, answer, now() - pending.start)
        return answer

    async def _wait(self, pending: Pending) -> Answer:
        match pending.request:
            case TokenRequest() as request:
                return await self._flow.wait(request, pending.peer)
            case HostTokenRequest() as host_request:
                return await self._host_tokens.answer(host_request, pending.peer)
            case TokenFileRequest() as file_request:
                return await self._token_file.answer(file_request, pending.peer)
            case Forward() as forward:
                return await self._proxy.forward(forward, pending.peer.address)
            case _:  # nothing else is ever pending
                return refuse(Refusal(500, "this request cannot be answered"))

    def fail(self, request: ParsedRequest, peer: Peer) -> Answer:
        """Answer a request that ran into a bug: 500, and the traceback in the log."""
        _log.exception("a request could not be answered because of a bug")
        self._observer.metrics.bugs.inc()
        answer = refuse(Refusal(500, "an internal error; see the log of NMI"))
        self._observer.note(request, peer.address, answer, 0.0)
        return answer
