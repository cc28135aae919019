"""Who asks, and may they: the API server's answers, kept for seconds.

So short that a deleted pod's token ends within a minute, and a grant that is withdrawn within 30 seconds, for tokens in
the cache too: both are asked before it.
"""

import asyncio
import functools
import hashlib
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Generic, NamedTuple, TypeVar

from podidentity.bounded import BoundedDict, SingleFlight
from podidentity.broker.ports import Pods, Reviews
from podidentity.core.exchange import callers, grants, pods
from podidentity.core.exchange.callers import Caller
from podidentity.core.exchange.pods import NodeDaemon
from podidentity.core.exchange.requests import PodReference, PodTokenRequest, Refusal
from podidentity.core.model.token_bucket import TokenBucket, full_bucket
from podidentity.errors import KubernetesError
from podidentity.timing import Clock

CALLER_SECONDS = 20.0
GRANT_SECONDS = 15.0
POD_SECONDS = 10.0
LAST_CALLER_SECONDS = 50.0
LAST_GRANT_SECONDS = 28.0
"""So old an answer may be where the API server gives no newer one, as while it starts again."""
REFUSAL_SECONDS = 3.0
"""A refusal is kept for a shorter time: a grant that was just made must count soon."""
_REFUSAL_STATUSES = frozenset({401, 403})
_ENTRIES = 16_384
_REFUSALS_AT_ONCE = 20.0
"""Of an address, which may be a node's with all its pods, and of a service account: what is good does not count."""
_REFUSAL_SECONDS = 0.1
_ASKERS = 4096

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class AccessRules(NamedTuple):
    """The audience of callers' tokens, the identities that may be asked for (empty: all), and unbound tokens.

    `node_daemons` are NMI's service accounts, as `namespace/name`; empty where there is no NMI.
    """

    audience: str
    identities: Collection[str] = ()
    unbound: bool = False
    node_daemons: Collection[str] = ()


class Access:
    """Judges callers with `reviews`, and those in whose name NMI asks with `pods`."""

    def __init__(self, reviews: Reviews, pod_reader: Pods, clock: Clock, rules: AccessRules) -> None:
        self._reviews = reviews
        self._pods = pod_reader
        self._clock = clock
        self._rules = rules
        self._callers: _Memory[bytes, Caller] = _Memory(clock, CALLER_SECONDS, LAST_CALLER_SECONDS)
        self._grants: _Memory[tuple[Caller, str], bool] = _Memory(clock, GRANT_SECONDS, LAST_GRANT_SECONDS)
        self._daemons: _Memory[Caller, NodeDaemon] = _Memory(clock, CALLER_SECONDS)
        self._pod_callers: _Memory[tuple[NodeDaemon, PodReference], Caller] = _Memory(clock, POD_SECONDS)
        self._bad_tokens = _Shares(clock)
        self._bad_grants = _Shares(clock)

    async def identify(self, assertion: str, address: str) -> Caller | Refusal:
        """Return whose token `assertion` is. `address` is where it came from."""
        refusal = callers.refuse_early(assertion, self._rules.audience, self._clock.wall())
        if refusal is not None:
            return refusal
        digest = hashlib.sha256(assertion.encode()).digest()
        caller = self._callers.get(digest)
        if caller is not None:
            return caller
        review = functools.partial(self._callers.ask, digest, functools.partial(self._review, assertion))
        return await self._bad_tokens.run(address, review, "tokens that the cluster does not accept")

    async def identify_pod(self, request: PodTokenRequest, address: str) -> Caller | Refusal:
        """Return the service account of the pod in whose name NMI asks."""
        daemon = await self._identify_daemon(request.request.assertion, address)
        if isinstance(daemon, Refusal):
            return daemon
        key = (daemon, request.pod)
        caller = self._pod_callers.get(key)
        return caller or await self._pod_callers.ask(key, functools.partial(self._look_at_pod, *key))

    async def authorize(self, caller: Caller, client_id: str) -> Refusal | None:
        """Return why `caller` gets no tokens of an identity, or None."""
        refusal = grants.refuse_identity(client_id, self._rules.identities)
        if refusal is not None:
            return refusal
        key = (caller, client_id)
        grant = self._grants.get(key)
        if grant is None:
            review = functools.partial(self._grants.ask, key, functools.partial(self._review_access, *key))
            grant = await self._bad_grants.run(caller.key, review, "requests for identities that it may not use")
        return grant if isinstance(grant, Refusal) else None

    async def _identify_daemon(self, assertion: str, address: str) -> NodeDaemon | Refusal:
        caller = await self.identify(assertion, address)
        if isinstance(caller, Refusal):
            return caller
        daemon = pods.node_daemon(caller, self._rules.node_daemons)
        if isinstance(daemon, Refusal) or daemon.node:
            return daemon
        return self._daemons.get(caller) or await self._daemons.ask(caller, functools.partial(self._locate, daemon))

    async def _review(self, assertion: str) -> Caller | Refusal:
        status = await self._reviews.review_token(assertion, self._rules.audience)
        return callers.caller_of(status, self._rules.audience, unbound=self._rules.unbound)

    async def _review_access(self, caller: Caller, client_id: str) -> bool | Refusal:
        status = await self._reviews.review_access(grants.access_review(caller, client_id))
        return grants.refuse_access(status, caller, client_id) or True

    async def _locate(self, daemon: NodeDaemon) -> NodeDaemon | Refusal:
        return pods.locate(daemon, await self._pods.read_pod(daemon.caller.namespace, daemon.caller.pod))

    async def _look_at_pod(self, daemon: NodeDaemon, reference: PodReference) -> Caller | Refusal:
        return pods.pod_caller(daemon, reference, await self._pods.read_pod(reference.namespace, reference.name))


class _Shares:
    """So many refusals of the API server for each asker, then none for a moment: each costs it a review."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: BoundedDict[str, TokenBucket] = BoundedDict(_ASKERS)

    async def run(self, asker: str, review: Callable[[], Awaitable[V | Refusal]], noun: str) -> V | Refusal:
        """Return what `review` returns, unless `asker` was refused too often lately; `noun` says for what it was."""
        now = self._clock.steady()
        pause = self._bucket(asker, now).ready_at(now) - now
        if pause > 0:
            message = f"{asker} sent too many {noun}; ask again in a moment"
            return Refusal(429, "temporarily_unavailable", message, max(1.0, pause))
        try:
            answer = await review()
        except asyncio.CancelledError:  # who does not wait for the answer has cost as much as who is refused
            self._take(asker)
            raise
        if isinstance(answer, Refusal) and answer.status in _REFUSAL_STATUSES:
            self._take(asker)
        return answer

    def _take(self, asker: str) -> None:
        now = self._clock.steady()
        self._buckets[asker] = self._bucket(asker, now).take(now)

    def _bucket(self, asker: str, now: float) -> TokenBucket:
        return self._buckets.get(asker) or full_bucket(_REFUSALS_AT_ONCE, _REFUSAL_SECONDS, now)


class _Memory(Generic[K, V]):
    """Answers of the API server, good ones for `seconds`; whoever asks for the same meanwhile waits for one answer.

    While the API server fails, good answers last for `last_seconds`.
    """

    def __init__(self, clock: Clock, seconds: float, last_seconds: float = 0.0) -> None:
        self._clock = clock
        self._seconds = seconds
        self._more_seconds = max(0.0, last_seconds - seconds)
        self._entries: BoundedDict[K, tuple[float, V | Refusal]] = BoundedDict(_ENTRIES)
        self._flights: SingleFlight[K, V | Refusal] = SingleFlight()

    def get(self, key: K) -> V | Refusal | None:
        """Return what is known and not too old."""
        until, answer = self._entries.get(key, (0.0, None))
        return answer if until > self._clock.steady() else None

    async def ask(self, key: K, call: Callable[[], Awaitable[V | Refusal]]) -> V | Refusal:
        """Return what `call` returns, and keep it. A failure of the API server is a refusal that is not kept."""
        try:
            return await self._flights.run(key, functools.partial(self._call, key, call))
        except KubernetesError as error:
            until, answer = self._entries.get(key, (0.0, None))
            is_good = answer is not None and not isinstance(answer, Refusal)
            if answer is not None and is_good and self._clock.steady() < until + self._more_seconds:
                return answer
            pause = error.retry_after_seconds or 1.0
            return Refusal(503, "temporarily_unavailable", f"the cluster cannot be asked: {error}", pause)

    async def _call(self, key: K, call: Callable[[], Awaitable[V | Refusal]]) -> V | Refusal:
        start = self._clock.steady()  # what the server says may be true of then alone, however late its answer comes
        answer = await call()
        seconds = REFUSAL_SECONDS if isinstance(answer, Refusal) else self._seconds
        self._entries[key] = start + seconds, answer
        return answer
