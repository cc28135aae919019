"""How many changes of one namespace a watch passes on in a second: no tenant's writes may keep a daemon busy.

A change beyond that waits here. Only the newest state of each object waits, so memory does not grow with the number of
changes, and the state that is passed on in the end is the true one. Deletions never wait: they end what somebody may
use, and there are no more of them than of additions, which are bounded.
"""

import asyncio
import logging
from typing import Generic, TypeVar

from podidentity.bounded import BoundedDict
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.token_bucket import TokenBucket, full_bucket

CHANGES_AT_ONCE = 1_000
"""More than a roll-out causes in a second: kube-controller-manager sends 20 requests a second (--kube-api-qps)."""
CHANGE_SECONDS = 1 / 500
"""Seconds until the next change. The 10,000 objects that a watch keeps of a namespace take 20 s, far less than the
120 s for which NMI relies on what a watch has shown."""
_BUCKETS = 4_096

_log = logging.getLogger(__name__)
T = TypeVar("T")


class NamespacePace(Generic[T]):
    """Lets changes through at once, or keeps the newest state of the object until it is the turn of its namespace.

    A state is whatever the caller makes of it. `name` is for the log. Times are steady seconds.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._buckets: BoundedDict[str, TokenBucket] = BoundedDict(_BUCKETS)
        self._waiting: dict[str, dict[ObjectKey, T]] = {}
        self._slow: set[str] = set()
        self._has_waiting = asyncio.Event()

    def take(self, key: ObjectKey, state: T, now: float) -> bool:
        """Return whether this change is to be handled now. If not, its state waits, in the place of an older one."""
        namespace = key.namespace
        states = self._waiting.get(namespace)
        bucket = self._bucket(namespace, now)
        if states is None and bucket.tokens_at(now) >= 1:
            self._buckets[namespace] = bucket.take(now)
            return True
        if states is None:
            states = self._waiting[namespace] = {}
            self._has_waiting.set()
            self._log_first(namespace)
        states[key] = state
        return False

    def drop(self, key: ObjectKey) -> None:
        """Forget the state that waits for an object, if there is one: the object is gone."""
        states = self._waiting.get(key.namespace)
        if states is not None and states.pop(key, None) is not None and not states:
            del self._waiting[key.namespace]

    def clear(self) -> None:
        """Forget all states that wait: a list, which is newer, has replaced them."""
        self._waiting.clear()

    def pop(self, now: float) -> T | None:
        """Return one state whose turn has come; None when there is none."""
        for namespace, states in self._waiting.items():
            bucket = self._bucket(namespace, now)
            if bucket.tokens_at(now) >= 1:
                self._buckets[namespace] = bucket.take(now)
                key = next(iter(states))
                state = states[key]
                self.drop(key)
                return state
        return None

    async def next_pause(self, now: float) -> float:
        """Wait until a state waits; return in how many seconds the next turn comes, 0 when it has come."""
        while not self._waiting:
            self._has_waiting.clear()
            await self._has_waiting.wait()
        return min(self._bucket(namespace, now).ready_at(now) for namespace in self._waiting) - now

    def _bucket(self, namespace: str, now: float) -> TokenBucket:
        return self._buckets.get(namespace) or full_bucket(CHANGES_AT_ONCE, CHANGE_SECONDS, now)

    def _log_first(self, namespace: str) -> None:
        """Log it once for each namespace: a tenant may bring it about as often as it likes."""
        if namespace not in self._slow:
            self._slow.add(namespace)
            _log.warning(
                "namespace %s changes its %s more than %.0f times a second: of each only the newest state counts, "
                "some seconds later; find what writes them",
                namespace,
                self._name,
                1 / CHANGE_SECONDS,
            )
