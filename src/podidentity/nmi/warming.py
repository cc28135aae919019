"""Fetches the broker's tokens of a pod while its containers are being started: SDKs wait one second for an answer.

What a pod will ask for is what pods of its service account have been given on this node. Only pods that have not
started are warmed, so that NMI asks for nothing at its own start, and each for a limited time. The grants are asked
each time, by the broker: warming gives nothing that the pod would not be given.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from podidentity.bounded import BoundedDict
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.imds import TokenRequest
from podidentity.core.tokens.sources import BrokerIdentity
from podidentity.errors import PodIdentityError
from podidentity.issuance.cache import BROKER_SECONDS, Cache
from podidentity.issuance.fairness import FairLimiter, FairQuota
from podidentity.nmi.access import Access
from podidentity.nmi.answers import Permission
from podidentity.nmi.host_token import PodsByName
from podidentity.timing import Clock

_log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
Account = tuple[str, str]
"""A namespace and the name of a service account."""

REQUESTS_PER_ACCOUNT = 4  # an SDK asks for each service it speaks to; few programs speak to more
ACCOUNTS = 1024  # more than a node has pods
PODS, PODS_PER_NAMESPACE = 512, 64  # a node has some hundred pods, and few of them start at a time
PER_SECOND = 20.0  # a fifth of what the broker is asked for this node
AT_ONCE = 8  # a quarter, likewise
PER_NAMESPACE = 2
PAUSE_SECONDS = BROKER_SECONDS * 0.6  # past half of a token's time in the cache it is fetched anew, unnoticed
RETRY_SECONDS = 4.0  # the cache remembers a failure for 3 s
STARTED_SECONDS = 60.0  # a program asks within its first minute
LONGEST_SECONDS = 600.0  # a pod may stay Pending for ever: an image that does not exist


class Warming:
    """What pods of this node are likely to ask for, and the pods whose tokens are being fetched.

    `spawn` starts a task in the daemon's task group. Nothing is remembered or fetched unless `enabled`.
    """

    def __init__(
        self, pods: PodsByName, access: Access, cache: Cache, clock: Clock, spawn: Spawn, *, enabled: bool
    ) -> None:
        self._pods = pods
        self._access = access
        self._cache = cache
        self._clock = clock
        self._spawn = spawn
        self._enabled = enabled
        self._requests: BoundedDict[Account, dict[TokenRequest, None]] = BoundedDict(ACCOUNTS)
        self._tasks: dict[ObjectKey, tuple[str, asyncio.Task[None]]] = {}
        self._quota = FairQuota(PODS, PODS_PER_NAMESPACE)
        self._limiter = FairLimiter(clock, per_second=PER_SECOND, at_once=AT_ONCE, per_asker=PER_NAMESPACE)

    def note_fetched(self, permission: Permission, request: TokenRequest) -> None:
        """Note that a pod was given a token that the cache did not have."""
        pod = permission.pod
        if not self._enabled or not isinstance(permission.source, BrokerIdentity) or not pod.service_account:
            return
        account = pod.key.namespace, pod.service_account
        requests = self._requests.pop(account, {})
        requests.pop(request, None)
        requests[request] = None
        while len(requests) > REQUESTS_PER_ACCOUNT:
            del requests[next(iter(requests))]  # the oldest
        self._requests[account] = requests

    def pod_changed(self, key: ObjectKey) -> None:
        """Begin to warm a pod that is about to start; end what is done for one that has gone."""
        if not self._requests:
            return
        pod = self._pods.by_name(key)
        uid, task = self._tasks.get(key, ("", None))
        if task is not None and (pod is None or pod.ending or pod.uid != uid):
            task.cancel()
            del self._tasks[key]
            task = None
        if task is None and pod is not None and self._may_begin(pod):
            self._begin(pod)

    def _may_begin(self, pod: Pod) -> bool:
        return (
            pod.phase == "Pending"
            and not (pod.ending or pod.host_network)
            and (pod.key.namespace, pod.service_account) in self._requests
            and not self._quota.is_full(pod.key.namespace)
        )

    def _begin(self, pod: Pod) -> None:
        namespace = pod.key.namespace
        self._quota.take(namespace)
        task = self._spawn(self._warm(pod.key))
        task.add_done_callback(lambda _: self._quota.give_back(namespace))
        self._tasks[pod.key] = pod.uid, task  # also when it has ended: once for each pod, which may be Pending for ever

    async def _warm(self, key: ObjectKey) -> None:
        """Keep a pod's tokens in the cache until it has been running for a while. It is cancelled when the pod goes."""
        end, running = self._clock.steady() + LONGEST_SECONDS, False
        while (pod := self._pods.by_name(key)) is not None and self._clock.steady() < end:
            if pod.phase != "Pending" and not running:
                end, running = min(end, self._clock.steady() + STARTED_SECONDS), True
            try:
                pause = await self._fetch_all(pod)
            except Exception:  # noqa: BLE001  # a bug here must not end the daemon
                _log.exception("tokens of the pod %s are not fetched in advance because of a bug; report it", key)
                return
            await self._clock.sleep(pause)

    async def _fetch_all(self, pod: Pod) -> float:
        """Have each token in the cache that the pod may have; return after how many seconds to look again."""
        pause = PAUSE_SECONDS
        for request in tuple(self._requests.get((pod.key.namespace, pod.service_account), ())):
            choice = self._access.choice(pod, request, self._clock.steady())
            if not isinstance(choice, Permission):
                pause = RETRY_SECONDS  # its binding may be about to come
            elif isinstance(choice.source, BrokerIdentity) and not await self._fetch(choice.source, request.resource):
                pause = RETRY_SECONDS
        return pause

    async def _fetch(self, source: BrokerIdentity, resource: str) -> bool:
        """Have a token in the cache, and a newer one when it is time for that; return whether there is one."""
        if self._cache.get(source, resource, self._clock.steady(), int(self._clock.wall())) is not None:
            return True
        try:
            async with self._limiter.turn(source.namespace):
                # An asker of its own: it must not use up what the pod itself may begin.
                await self._cache.get_or_fetch(source, resource, f"{source.pod_uid} in advance")
        except PodIdentityError as error:
            name = f"{source.namespace}/{source.pod}"
            _log.debug("the token of %s that the pod %s may ask for was not fetched: %s", resource, name, error)
            return False
        return True
