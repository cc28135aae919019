"""`/host/token`: tokens of pods, asked by root programs of the node over a Unix socket.

Upstream serves it on loopback, to every process of the node. Here the asking process must be root's, who could reach
IMDS anyway, and loopback is a door that is opened for the secrets-store CSI driver alone: a pod's manifest can make the
kubelet ask there, by a probe with `host: 127.0.0.1`, and the pod's state then tells what was answered.
Statuses are upstream's (`pkg/nmi/server`, hostHandler), where it has them.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.imds import HostTokenRequest, Refusal, Token, render, render_error, token_fields
from podidentity.nmi.answers import Answer, refuse
from podidentity.nmi.ports import LOCAL_PEER, ROOT_UID, WATCH_TRUSTED_SECONDS, Peer
from podidentity.nmi.token import FetchedToken, Missing, TokenFlow
from podidentity.timing import Clock

_OK = 200


class PodsByName(Protocol):
    """The pods of this node, by name."""

    def by_name(self, key: ObjectKey) -> Pod | None:
        """Return a live pod of this node."""

    def confirmed_at(self) -> float:
        """Return when this was last known to be true, in steady seconds; -inf before the first list."""


class HostTokens:
    """Answers `/host/token`. `owner_of` returns the UID behind a loopback connection; None when it is unknown.

    On loopback only with `loopback`; whoever was admitted by the socket is root.
    """

    def __init__(
        self,
        flow: TokenFlow,
        pods: PodsByName,
        owner_of: Callable[[Peer], Awaitable[int | None]],
        clock: Clock,
        *,
        enabled: bool,
        loopback: bool,
    ) -> None:
        self._flow = flow
        self._pods = pods
        self._owner_of = owner_of
        self._clock = clock
        self._enabled = enabled
        self._loopback = loopback

    async def answer(self, request: HostTokenRequest, peer: Peer) -> Answer:
        """Return the token and the client ID of the pod that the request names; never with Retry-After."""
        answer = await self._answer(request, peer)
        return answer if answer.status == _OK else replace(answer, body=render_error(answer.status, answer.reason))

    async def _answer(self, request: HostTokenRequest, peer: Peer) -> Answer:
        if not self._enabled:
            return refuse(Refusal(404, "tokens for other pods are switched off (--host-token-endpoint)"))
        if peer.address == LOCAL_PEER:
            return await self._for_pod(request, peer)
        if not self._loopback:
            return refuse(
                Refusal(404, "tokens for other pods are asked over NMI's Unix socket (--host-token-loopback)")
            )
        if await self._owner_of(peer) != ROOT_UID:
            return refuse(Refusal(403, "only a program that runs as root on the node may ask for a pod's token"))
        return await self._for_pod(request, peer)

    async def _for_pod(self, request: HostTokenRequest, peer: Peer) -> Answer:
        """Take the steps of a pod's own request, the pod looked up by name."""
        outcome = await self._flow.repeat(lambda _: self._step(request), request.token_request, peer)
        return outcome if isinstance(outcome, Answer) else self._answer_with(outcome)

    def _step(self, request: HostTokenRequest) -> Answer | Missing:
        now = self._clock.steady()
        if now - self._pods.confirmed_at() > WATCH_TRUSTED_SECONDS:
            return refuse(Refusal(503, "the pods of this node have not been confirmed; ask again in a moment"))
        pod = self._pods.by_name(request.pod)
        if pod is None:
            return refuse(Refusal(404, f"no pod {request.pod} runs on this node"))
        return self._flow.step_for(pod, request.token_request, now)

    def _answer_with(self, token: FetchedToken) -> Answer:
        grant, identity = token.entry.grant, token.permission.identity
        first = grant if isinstance(grant, Token) else grant[0]
        body = {
            "token": token_fields(first, self._clock.wall()),
            "clientid": identity.client_id if identity is not None else "",
        }
        return replace(self._flow.answer(token), body=render(200, body))
