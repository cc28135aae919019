"""The token-file door: a pod of this node proves itself with its own token, and the broker says what that may have.

For pods that interception cannot tell apart (those on the node's own network) or does not reach. The signature of the
proof is the broker's to check, for each request; nothing is kept here. What is known of this node's pods counts beside
it: the proof must be that of a pod here, and come from that pod's address.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from podidentity.bounded import BoundedDict
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.service_account_tokens import BoundPod, bound_pod
from podidentity.core.model.snapshot import Pod
from podidentity.core.model.token_bucket import TokenBucket, full_bucket
from podidentity.core.tokens.imds import Refusal, Token, TokenFileRequest, render_error
from podidentity.core.tokens.sources import ProvenIdentity
from podidentity.core.tokens.token_file import CHALLENGE, render_token
from podidentity.errors import AzureError, PodIdentityError
from podidentity.issuance.ports import Tokens
from podidentity.nmi.answers import Answer, refuse
from podidentity.nmi.ports import WATCH_TRUSTED_SECONDS, Peer
from podidentity.nmi.waiting import Waiting
from podidentity.timing import Clock

_UNAUTHORIZED = 401
_REFUSALS = frozenset({400, 401, 403, 429})
_ENTRIES = 4096
_PROOFS_AT_ONCE = 5.0
_PROOF_SECONDS = 2.0
"""New proofs of one pod, good or bad: a kubelet makes one an hour. The broker hears 20 bad ones of a node at once."""


class NodePods(Protocol):
    """The pods of this node."""

    def by_name(self, key: ObjectKey) -> Pod | None:
        """Return a live pod of this node."""

    def with_address(self, address: str, /) -> Sequence[Pod]:
        """Return the live pods with a network of their own that claim `address`."""

    def confirmed_at(self) -> float:
        """Return when this was last known to be true, in steady seconds; -inf before the first list."""


class TokenFileDoor:
    """Answers pods that prove themselves. `is_own_address` says whether an address is this host's own.

    `wait_seconds` is how long a proof may be ahead of the API server's watch.
    """

    def __init__(
        self,
        pods: NodePods,
        tokens: Tokens,
        waiting: Waiting,
        is_own_address: Callable[[str], bool],
        clock: Clock,
        wait_seconds: float,
    ) -> None:
        self._pods = pods
        self._tokens = tokens
        self._waiting = waiting
        self._is_own_address = is_own_address
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._shares: BoundedDict[str, TokenBucket] = BoundedDict(_ENTRIES)
        self._proofs: BoundedDict[bytes, None] = BoundedDict(_ENTRIES)
        """Digests of proofs that were sent before and not refused."""

    async def answer(self, request: TokenFileRequest, peer: Peer) -> Answer:
        """Return the token that the pod's proof earns, or the reason why there is none."""
        claim = bound_pod(request.proof)
        if claim is None:
            return challenge(
                "the token names no pod; send the one that is projected into the pod, as it is in its file"
            )
        pod = await self._find(claim)
        if isinstance(pod, Refusal):
            return refuse(pod)
        refusal = self._refuse_address(pod, peer.address)
        if refusal is not None:
            return refuse(refusal, pod)
        if not peer.uid and self._pods.with_address(peer.address):
            peer.uid = pod.uid  # the connection ends with its pod, also while it waits: its address may be another's
        digest = hashlib.sha256(request.proof.encode()).digest()
        pause = self._pause(pod, digest)
        if pause > 0:
            message = f"pod {pod.key} sends one new token after the other; ask again in a moment"
            return refuse(Refusal(429, message), pod, retry_after_seconds=round(pause) + 1)
        source = ProvenIdentity(request.token_request.client_id, pod.key.namespace, request.proof)
        try:
            grant = await self._tokens.acquire(source, request.token_request.resource)
        except PodIdentityError as error:
            if isinstance(error, AzureError) and error.status == _UNAUTHORIZED:
                self._proofs.pop(digest, None)
            return _failure(error, pod, source)
        if not pod.host_network and not peer.uid:
            peer.uid = pod.uid  # at a node's address, that of the pod whose proof was good
        token = grant if isinstance(grant, Token) else grant[0]
        body = render_token(token, request.selector, self._clock.wall())
        return Answer(200, body, pod=pod, source=source._replace(proof=""))

    def knows(self, address: str) -> bool:
        """Whether an address is that of this node or of one of its pods. A pod's is known some moments after it."""
        return bool(self._pods.with_address(address)) or self._is_own_address(address)

    async def _find(self, claim: BoundPod) -> Pod | Refusal:
        """Return the pod of this node that a proof names; waits while the watch may not know it yet."""
        end = self._clock.steady() + self._wait_seconds
        while True:
            now = self._clock.steady()
            pod = self._pods.by_name(claim.key)
            if pod is not None and pod.uid == claim.uid:
                if now - self._pods.confirmed_at() > WATCH_TRUSTED_SECONDS:
                    return Refusal(503, "the pods of this node have not been confirmed; ask again in a moment")
                return pod
            if now >= end or not await self._waiting.change(claim.key, end - now):
                return Refusal(403, f"pod {claim.key} with UID {claim.uid[:64]} does not run on this node")

    def _refuse_address(self, pod: Pod, address: str) -> Refusal | None:
        """Return why `pod` cannot be at an address: it is another pod's, or none of this node's.

        From the node's own addresses come pods on its network, and others where a network plugin hides their own.
        """
        claimants = self._pods.with_address(address)
        if claimants:
            if any(claimant.uid == pod.uid for claimant in claimants):
                return None
            return Refusal(403, f"the token is that of pod {pod.key}, and {address} is another pod's address")
        if self._is_own_address(address) or not pod.ips:
            return None
        return Refusal(403, f"the token is that of pod {pod.key}, which is not at {address}; ask from within the pod")

    def _pause(self, pod: Pod, digest: bytes) -> float:
        """Take a new proof into account; return for how long it is not heard, in seconds."""
        if digest in self._proofs:
            return 0.0
        now = self._clock.steady()
        share = self._shares.get(pod.uid) or full_bucket(_PROOFS_AT_ONCE, _PROOF_SECONDS, now)
        pause = share.ready_at(now) - now
        if pause <= 0:
            self._shares[pod.uid] = share.take(now)
            self._proofs[digest] = None
        return pause


def challenge(message: str) -> Answer:
    """Return the answer that tells a client in which file its proof is."""
    return Answer(_UNAUTHORIZED, render_error(_UNAUTHORIZED, message, challenge=CHALLENGE), message)


def refuse_here(refusal: Refusal) -> Answer:
    """Return the answer that a refusal makes at this door: without proof, the file is told."""
    return challenge(refusal.message) if refusal.status == _UNAUTHORIZED else refuse(refusal)


def _failure(error: PodIdentityError, pod: Pod, source: ProvenIdentity) -> Answer:
    """Return the broker's refusal in its own words; 503 when it does not answer, or a setting is wrong."""
    status, pause = 503, None
    if isinstance(error, AzureError):
        status, pause = (error.status if error.status in _REFUSALS else 503), error.retry_after_seconds
    if status == _UNAUTHORIZED:
        answer = challenge(str(error))
    else:
        seconds = None if pause is None else max(1, round(pause))
        answer = refuse(Refusal(status, str(error)), retry_after_seconds=seconds)
    return replace(answer, pod=pod, source=source._replace(proof=""))
