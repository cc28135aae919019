"""Answers one parsed request of one connection: tokens, the node's own requests, what may be passed on to IMDS.

`answer` is synchronous; only when something has to be waited for it gives back a `Pending`, whose `wait` is a task of
the listener's. Called by `http`; knows nothing of bytes beyond the answers it returns.
"""

import logging
from dataclasses import dataclass

from podidentity.core.imds import Forward, HostTokenRequest, Parsed, Refusal, TokenRequest
from podidentity.nmi.answers import Answer, refuse
from podidentity.nmi.host_token import HostTokens
from podidentity.nmi.observe import Observer, now
from podidentity.nmi.ports import Peer
from podidentity.nmi.proxy import Proxy
from podidentity.nmi.token import TokenFlow

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pending:
    """A request whose answer has to be waited for."""

    parsed: Parsed
    peer: Peer
    started: float


class App:
    """The daemon's answers. `proxy` and `host_tokens` serve their routes; `flow` everything about tokens."""

    def __init__(self, flow: TokenFlow, host_tokens: HostTokens, proxy: Proxy, observer: Observer) -> None:
        self._flow = flow
        self._host_tokens = host_tokens
        self._proxy = proxy
        self._observer = observer

    def answer(self, parsed: Parsed, peer: Peer) -> Answer | Pending:
        """Answer a pod's request at once, or say that it has to wait."""
        started = now()
        if isinstance(parsed, TokenRequest):
            step = self._flow.step(parsed, peer)
        elif isinstance(parsed, Refusal):
            step = refuse(parsed)
        elif isinstance(parsed, Forward):
            return Pending(parsed, peer, started)
        else:
            step = refuse(Refusal(404, "tokens for other pods are given on the node's loopback only"))
        if not isinstance(step, Answer):
            return Pending(parsed, peer, started)
        self._observer.answered(parsed, peer.address, step, now() - started)
        return step

    def answer_node(self, parsed: Parsed, peer: Peer) -> Answer | Pending:
        """Answer a request of a program of the node, on loopback: it is no pod, and only asks for pods' tokens."""
        started = now()
        if isinstance(parsed, HostTokenRequest):
            return Pending(parsed, peer, started)
        step = refuse(parsed if isinstance(parsed, Refusal) else Refusal(404, f"no pod has the address {peer.address}"))
        self._observer.answered(parsed, peer.address, step, now() - started)
        return step

    async def wait(self, pending: Pending) -> Answer:
        """Wait for an answer. Cancelled when the client hangs up."""
        answer = await self._wait(pending)
        self._observer.answered(pending.parsed, pending.peer.address, answer, now() - pending.started)
        return answer

    async def _wait(self, pending: Pending) -> Answer:
        match pending.parsed:
            case TokenRequest() as asked:
                return await self._flow.wait(asked, pending.peer)
            case HostTokenRequest() as asked_for_pod:
                return await self._host_tokens.answer(asked_for_pod, pending.peer)
            case Forward() as forward:
                return await self._proxy.forward(forward, pending.peer.address)
            case _:  # nothing else is ever pending
                return refuse(Refusal(500, "this request cannot be answered"))

    def failed(self, parsed: Parsed, peer: Peer) -> Answer:
        """Answer a request on which we broke: 500, and the traceback in the log."""
        _log.exception("a request could not be answered because of a bug")
        self._observer.metrics.bugs.inc()
        answer = refuse(Refusal(500, "an internal error; see the log of NMI"))
        self._observer.answered(parsed, peer.address, answer, 0.0)
        return answer
