"""Keeps tokens: one call to the source per identity and resource, however many pods ask, refreshed before they expire.

A wrapper on `Tokens`. Who may have a token is decided before this is asked, on every request; of pods it is only known
who began a call, so that no pod takes the room of all. Failures are kept for seconds, so that a broken identity cannot
flood IMDS. Constructed by `daemon`.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Protocol

from podidentity.core.identities import SecretReference
from podidentity.core.imds import Token, render_token, render_tokens
from podidentity.core.sources import ManagedIdentity, ServicePrincipal, Source
from podidentity.errors import AzureError, PodIdentityError
from podidentity.nmi.ports import Clock, Grant, Tokens
from podidentity.nmi.turns import Shares

Key = tuple[Source, str]
Spawn = Callable[[Coroutine[None, None, None]], object]

ENTRY_LIMIT = 4096  # far more than identities times resources on one node; a bound, not a size
LONG_LIFE_SECONDS = 2 * 3600  # SDKs refresh tokens that live longer at half their life
KEPT_AHEAD_SECONDS = 15 * 60  # SDKs ask again in the last 5 minutes: they must find a fresh one by then
JITTER_SECONDS = 5 * 60
SAME_TOKEN_PAUSE_SECONDS = 60
FAILURE_KEPT_SECONDS = 3.0
FAILURE_KEPT_AT_MOST_SECONDS = 600.0  # when Retry-After asks for it; a failure is news of a moment
FLIGHTS_OF_ONE = 64  # under way or waiting for their turn; no pod needs that many tokens at once
FLIGHT_LIMIT = 2048
MACHINES_OWN = ManagedIdentity()  # no ID asked for: whose token it is changes with what is assigned to the machine
MACHINES_OWN_KEPT_SECONDS = 5.0
LAST_SECONDS = 5  # a token that expires on its way to the client is no use


class Standing(Protocol):
    """Whether the Secret that a service principal's token was made with is still the same."""

    def stands(self, source: Source) -> bool:
        """Say whether a token of `source` may be given without another look."""

    async def check(self, source: Source) -> None:
        """Take that look; whoever must drop tokens is told before this returns."""


class Kept:
    """A token in the cache, and the answer it makes, written once a second."""

    __slots__ = ("_answer", "_second", "ends", "grant", "refresh_at", "steady_end", "texts")

    def __init__(self, grant: Grant, clock: Clock) -> None:
        self.grant = grant
        self.texts = tuple(token.access_token for token in _each(grant))
        self.ends = min(token.expires_on for token in _each(grant)) - LAST_SECONDS
        # Counted on the steady clock too: a wall clock that is set back must not keep a token alive.
        self.steady_end = clock.steady() + self.ends - clock.wall()
        self.refresh_at = self.steady_end
        self._second = -1
        self._answer = b""

    def answer(self, second: int) -> bytes:
        """Write the whole response, `expires_in` counted from `second` (since 1970)."""
        if second != self._second:
            grant = self.grant
            self._answer = render_token(grant, second) if isinstance(grant, Token) else render_tokens(grant, second)
            self._second = second
        return self._answer


@dataclass(slots=True)
class _Failed:
    error: PodIdentityError
    until: float


class Cached:
    """Tokens from a cache in front of `source`. `spawn` starts a task in the daemon's task group.

    `spread` gives numbers from 0 to 1 that keep nodes from refreshing in step. `standing`, when set, is asked before
    each answer that rests on a Secret.
    """

    standing: Standing | None = None

    def __init__(
        self, source: Tokens, clock: Clock, spawn: Spawn, *, spread: Callable[[], float] = random.random
    ) -> None:
        self._source = source
        self._clock = clock
        self._spawn = spawn
        self._spread = spread
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._failed: OrderedDict[Key, _Failed] = OrderedDict()
        self._flights: dict[Key, asyncio.Future[Kept | PodIdentityError]] = {}
        self._flying = Shares(FLIGHT_LIMIT, FLIGHTS_OF_ONE)

    def cached(self, source: Source, resource: str, steady: float, second: int) -> Kept | None:
        """Return a valid token without waiting, or None. Starts a refresh when it is time for one.

        It is now `steady` by the steady clock, and `second` by the wall's.
        """
        key = (source, resource)
        kept = self._kept.get(key)
        if kept is None or (isinstance(source, ServicePrincipal) and not self._stands(source)):
            return None
        if steady >= kept.steady_end or second >= kept.ends:
            return None
        if steady >= kept.refresh_at and self._may_start(key, steady):
            self._start(key, source)
        self._kept.move_to_end(key)
        return kept

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a token, from the cache or the source; whoever asks meanwhile waits for the same call."""
        return (await self.kept(source, resource)).grant

    async def kept(self, source: Source, resource: str, asker: str = "") -> Kept:
        """Return what `cached` would, waiting for the source. Raises what the source raises.

        `asker` is whose call it is while it lasts: it goes on when its client hangs up, so clients do not bound them.
        """
        found = self._cached_now(source, resource)
        if found is not None:
            return found
        key = (source, resource)
        if self.standing is not None and key in self._kept:
            await self.standing.check(source)
            found = self._cached_now(source, resource)
            if found is not None:
                return found
        failed = self._failed_lately(key, self._clock.steady())
        if failed is not None:
            raise failed.error.with_traceback(None)  # else it would grow with each time it is raised
        if key not in self._flights and self._flying.full(asker or source):
            raise AzureError("too many tokens are being asked for at once; ask again in a moment")
        # Shielded: one client's hang-up must not end the call that others wait for.
        outcome = await asyncio.shield(self._flights.get(key) or self._start(key, asker or source))
        if isinstance(outcome, PodIdentityError):
            raise outcome.with_traceback(None)
        return outcome

    def _stands(self, source: ServicePrincipal) -> bool:
        return self.standing is None or self.standing.stands(source)

    def _cached_now(self, source: Source, resource: str) -> Kept | None:
        return self.cached(source, resource, self._clock.steady(), int(self._clock.wall()))

    def forget(self, source: Source) -> None:
        """Drop every token and failure of `source`, because what it rests on changed."""
        self._forget(lambda one: one == source)

    def forget_secret(self, secret: SecretReference) -> None:
        """Drop everything that was made with a Secret."""
        self._forget(lambda one: isinstance(one, ServicePrincipal) and one.secret == secret)

    def _forget(self, concerned: Callable[[Source], bool]) -> None:
        for store in (self._kept, self._failed):
            for key in [key for key in store if concerned(key[0])]:
                del store[key]
        for key in [key for key in self._flights if concerned(key[0])]:
            del self._flights[key]  # whoever waits is answered; what arrives is not kept

    def __len__(self) -> int:
        return len(self._kept)

    def _failed_lately(self, key: Key, steady: float) -> _Failed | None:
        failed = self._failed.get(key)
        if failed is not None and steady >= failed.until:
            del self._failed[key]
            return None
        return failed

    def _may_start(self, key: Key, steady: float) -> bool:
        return key not in self._flights and not self._failed_lately(key, steady) and not self._flying.full(key[0])

    def _start(self, key: Key, asker: Hashable) -> asyncio.Future[Kept | PodIdentityError]:
        flight: asyncio.Future[Kept | PodIdentityError] = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        self._flying.take(asker)
        self._spawn(self._fly(key, flight, asker))
        return flight

    async def _fly(self, key: Key, flight: asyncio.Future[Kept | PodIdentityError], asker: Hashable) -> None:
        try:
            outcome = await self._outcome(key)
            if self._flights.get(key) is flight:  # not forgotten while it was in the air
                self._land(key, outcome)
            flight.set_result(outcome)
        except Exception as error:  # noqa: BLE001  # a bug is told to whoever waits (500): it must not end the daemon
            flight.set_exception(error)
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            self._flying.give_back(asker)
            flight.cancel()  # when this task was cancelled; else it is done already

    async def _outcome(self, key: Key) -> Kept | PodIdentityError:
        try:
            return Kept(await self._source.acquire(*key), self._clock)
        except PodIdentityError as error:
            return error

    def _land(self, key: Key, outcome: Kept | PodIdentityError) -> None:
        steady = self._clock.steady()
        if isinstance(outcome, PodIdentityError):
            pause = outcome.retry_after_seconds if isinstance(outcome, AzureError) else None
            kept_seconds = min(max(pause or 0.0, FAILURE_KEPT_SECONDS), FAILURE_KEPT_AT_MOST_SECONDS)
            self._failed[key] = _Failed(outcome, steady + kept_seconds)
            _trim(self._failed)
            return
        if key[0] == MACHINES_OWN:
            outcome.steady_end = min(outcome.steady_end, steady + MACHINES_OWN_KEPT_SECONDS)
        before = self._kept.get(key)
        remaining = outcome.steady_end - steady
        if before is not None and before.texts == outcome.texts:
            outcome.refresh_at = steady + max(remaining / 2, SAME_TOKEN_PAUSE_SECONDS)
        else:
            outcome.refresh_at = steady + refresh_after(remaining, self._spread())
        self._failed.pop(key, None)
        self._kept[key] = outcome
        _trim(self._kept)


def refresh_after(remaining_seconds: float, spread: float) -> float:
    """Say after how many seconds a token that lives `remaining_seconds` is fetched anew; `spread` is from 0 to 1."""
    if remaining_seconds > LONG_LIFE_SECONDS:
        return remaining_seconds * (0.5 - 0.1 * spread)
    ahead = KEPT_AHEAD_SECONDS + JITTER_SECONDS * spread
    return max(remaining_seconds - ahead, remaining_seconds / 2)


def _each(grant: Grant) -> tuple[Token, ...]:
    return (grant,) if isinstance(grant, Token) else grant


def _trim(store: OrderedDict[Key, Kept] | OrderedDict[Key, _Failed]) -> None:
    while len(store) > ENTRY_LIMIT:
        store.popitem(last=False)
