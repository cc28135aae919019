"""`/host/token`: tokens of pods, asked by root programs of the node (the secrets-store CSI driver) over loopback.

Upstream serves it to every process of the node; here the asking process must be root's, who could reach IMDS anyway.
Statuses are upstream's (`pkg/nmi/server`, hostHandler), where it has them.
Called by `app`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from podidentity.core.cluster import Pod
from podidentity.core.identities import ObjectKey
from podidentity.core.imds import HostTokenRequest, Refusal, Token, render, render_error, token_fields
from podidentity.nmi.answers import Allowed, Answer, refuse
from podidentity.nmi.cache import Kept
from podidentity.nmi.ports import WATCH_TRUSTED_SECONDS, Clock, Peer
from podidentity.nmi.token import Fetched, TokenFlow

_ROOT = 0
_OK = 200


class PodsByName(Protocol):
    """The pods of this node, by name."""

    def named(self, key: ObjectKey) -> Pod | None:
        """Return a live pod of this node."""

    def confirmed(self) -> float:
        """Say when this was last known to be true, in steady seconds; -inf before the first list."""


class HostTokens:
    """Answers `/host/token`. `owner_of` says which user a loopback connection belongs to; None means unknown."""

    def __init__(
        self,
        flow: TokenFlow,
        pods: PodsByName,
        owner_of: Callable[[Peer], Awaitable[int | None]],
        clock: Clock,
        *,
        enabled: bool,
    ) -> None:
        self._flow = flow
        self._pods = pods
        self._owner_of = owner_of
        self._clock = clock
        self._enabled = enabled

    async def answer(self, request: HostTokenRequest, peer: Peer) -> Answer:
        """Answer with the token and the client ID of the pod that the request names; never with Retry-After."""
        answer = await self._answer(request, peer)
        return answer if answer.status == _OK else replace(answer, body=render_error(answer.status, answer.why))

    async def _answer(self, request: HostTokenRequest, peer: Peer) -> Answer:
        if not self._enabled:
            return refuse(Refusal(404, "tokens for other pods are switched off (--host-token-endpoint)"))
        if await self._owner_of(peer) != _ROOT:
            return refuse(Refusal(403, "only a program that runs as root on the node may ask for a pod's token"))
        return await self._for_pod(request)

    async def _for_pod(self, request: HostTokenRequest) -> Answer:
        """Go the way of a pod's own request, the pod looked up by name; everything again after each wait."""
        started = self._clock.steady()
        fetched: Fetched | None = None
        while True:
            now = self._clock.steady()
            if now - self._pods.confirmed() > WATCH_TRUSTED_SECONDS:
                return refuse(Refusal(503, "the pods of this node have not been confirmed; ask again in a moment"))
            pod = self._pods.named(request.pod)
            if pod is None:
                return refuse(Refusal(404, f"no pod {request.pod} runs on this node"))
            missing = self._flow.missing_for(pod, request.asked, now)
            if isinstance(missing, Answer):
                return missing
            if fetched and isinstance(missing, Allowed) and fetched.answers(missing):
                return self._granted(missing, fetched.kept)
            got = await self._flow.get(request.asked, missing, started)
            if isinstance(got, Answer):
                return got
            if isinstance(got, Kept) and isinstance(missing, Allowed):
                fetched = Fetched(missing.source, got)

    def _granted(self, missing: Allowed, kept: Kept) -> Answer:
        token = kept.grant if isinstance(kept.grant, Token) else kept.grant[0]
        identity = missing.identity
        body = {
            "token": token_fields(token, self._clock.wall()),
            "clientid": identity.client_id if identity is not None else "",
        }
        return replace(self._flow.granted(missing, kept), body=render(200, body))
