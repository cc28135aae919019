"""Keeps tokens: one call to the source per identity and resource, however many pods ask, refreshed before they expire.

Who may have a token is decided before the cache is asked, on every request; of pods it knows only which one began a
call, so that no pod takes the room of all. Failures are kept for seconds, so that a broken identity cannot flood IMDS.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Protocol

from podidentity.bounded import BoundedDict
from podidentity.core.model.identities import SecretReference
from podidentity.core.tokens.imds import Token, render_token, render_tokens
from podidentity.core.tokens.sources import BrokerIdentity, ManagedIdentity, ServicePrincipal, Source
from podidentity.errors import AzureError, PodIdentityError
from podidentity.issuance.fairness import FairQuota, Pace
from podidentity.issuance.ports import Grant, Tokens
from podidentity.timing import Clock

Key = tuple[Source, str]
Spawn = Callable[[Coroutine[None, None, None]], object]

ENTRY_LIMIT = 4096  # far more than identities times resources on one node; a bound, not a size
LONG_LIFE_SECONDS = 2 * 3600  # SDKs refresh tokens that live longer at half their life
REFRESH_AHEAD_SECONDS = 15 * 60  # SDKs ask again in the last 5 minutes: they must find a fresh one by then
JITTER_SECONDS = 5 * 60
SAME_TOKEN_PAUSE_SECONDS = 60
BROKER_PAUSE_SECONDS = 5  # the same for one of the broker: half of a life that nears its end is no pause
FAILURE_SECONDS = 3.0
SHORTEST_PAUSE_SECONDS = 1.0
LONGEST_FAILURE_SECONDS = 600.0  # when Retry-After asks for it; a failure is news of a moment
FLIGHTS_PER_ASKER = 64  # under way or waiting for their turn; no pod needs that many tokens at once
FLIGHT_LIMIT = 2048
FIRSTS_PER_ASKER = 2  # a second: a machine's pods share what IMDS answers, 20 a second
FIRST_WAIT_SECONDS = 10.0
MACHINE_IDENTITY = ManagedIdentity()  # no ID asked for: whose token it is changes with what is assigned to the machine
MACHINE_IDENTITY_SECONDS = 5.0
BROKER_SECONDS = 20.0  # the broker itself asks again whether the pod may: what is withdrawn ends within 30 s
_INFINITY = float("inf")
LAST_SECONDS = 5  # a token that expires on its way to the client is no use


class SecretCheck(Protocol):
    """Whether the Secret that a service principal's token was made with is still the same."""

    def is_current(self, source: Source) -> bool:
        """Whether the Secret of `source` was read so lately that its tokens may be given."""

    async def check(self, source: Source) -> None:
        """Read the Secret unless it is current; the cache has dropped its tokens, if it must, before this returns."""


class CachedToken:
    """A token in the cache, and the response it makes, written once a second."""

    __slots__ = ("_response", "_second", "ends", "grant", "refresh_at", "steady_end", "texts")

    def __init__(self, grant: Grant, clock: Clock) -> None:
        self.grant = grant
        self.texts = tuple(token.access_token for token in _tokens_of(grant))
        self.ends = min(token.expires_on for token in _tokens_of(grant)) - LAST_SECONDS
        # Counted on the steady clock too: a wall clock that is set back must not keep a token alive.
        self.steady_end = clock.steady() + self.ends - clock.wall()
        self.refresh_at = self.steady_end
        self._second = -1
        self._response = b""

    def response(self, second: int) -> bytes:
        """Return the whole HTTP response, with `expires_in` counted from `second` (since 1970)."""
        if second != self._second:
            grant = self.grant
            self._response = render_token(grant, second) if isinstance(grant, Token) else render_tokens(grant, second)
            self._second = second
        return self._response


@dataclass(slots=True)
class _Failure:
    error: PodIdentityError
    until: float


class Cache(Protocol):
    """Where a decision finds its token."""

    def get(self, source: Source, resource: str, steady: float, second: int) -> CachedToken | None:
        """Return a valid token without waiting, or None. It is `steady` by the steady clock, `second` by the wall's."""

    async def get_or_fetch(self, source: Source, resource: str, asker: str) -> CachedToken:
        """Return a valid token; `asker` is whose call to the source that is. Raises what the source raises."""

    def forget(self, source: Source) -> None:
        """Drop every token of `source`."""

    def forget_secret(self, secret: SecretReference) -> None:
        """Drop every token that was made with a Secret."""


class NoCache:
    """Keeps nothing: each request costs a call to the source, as upstream has it."""

    def __init__(self, source: Tokens, clock: Clock) -> None:
        self._source = source
        self._clock = clock

    def get(self, source: Source, resource: str, steady: float, second: int) -> None:
        """Return None."""

    async def get_or_fetch(self, source: Source, resource: str, asker: str) -> CachedToken:  # noqa: ARG002  # as the cache has it
        """Return a new token. Raises what the source raises."""
        return CachedToken(await self._source.acquire(source, resource), self._clock)

    def forget(self, source: Source) -> None:
        """Do nothing."""

    def forget_secret(self, secret: SecretReference) -> None:
        """Do nothing."""


class TokenCache:
    """Tokens from a cache in front of `source`. `spawn` starts a task in the daemon's task group.

    `spread` returns numbers from 0 to 1 that keep nodes from refreshing in step; a pod may begin `firsts_per_asker`
    calls a second for tokens that nobody has yet. `secret_check` is asked before each answer that rests on a Secret.
    """

    def __init__(
        self,
        source: Tokens,
        clock: Clock,
        spawn: Spawn,
        *,
        secret_check: SecretCheck | None = None,
        spread: Callable[[], float] = random.random,
        firsts_per_asker: int = FIRSTS_PER_ASKER,
    ) -> None:
        self._source = source
        self._clock = clock
        self._spawn = spawn
        self._secret_check = secret_check
        self._spread = spread
        self._tokens: BoundedDict[Key, CachedToken] = BoundedDict(ENTRY_LIMIT)
        self._failures: BoundedDict[Key, _Failure] = BoundedDict(ENTRY_LIMIT)
        # No `bounded.SingleFlight`: a call outlives those who wait for it. docs/decisions/token-flights.md
        self._flights: dict[Key, asyncio.Future[CachedToken | PodIdentityError]] = {}
        self._quota = FairQuota(FLIGHT_LIMIT, FLIGHTS_PER_ASKER)
        self._pace = Pace(clock, starts=firsts_per_asker, longest_seconds=FIRST_WAIT_SECONDS)

    def get(self, source: Source, resource: str, steady: float, second: int) -> CachedToken | None:
        """Return a valid token without waiting, or None. Starts a refresh when it is time for one.

        It is now `steady` by the steady clock, and `second` by the wall's.
        """
        key = (source, resource)
        token = self._tokens.get(key)
        if token is None or (isinstance(source, ServicePrincipal) and not self._is_current(source)):
            return None
        if steady >= token.steady_end or second >= token.ends:
            return None
        if steady >= token.refresh_at and self._may_start(key, steady):
            self._start(key, source)
        self._tokens.move_to_end(key)
        return token

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a token, from the cache or the source; whoever asks meanwhile waits for the same call."""
        return (await self.get_or_fetch(source, resource)).grant

    async def get_or_fetch(self, source: Source, resource: str, asker: str = "") -> CachedToken:
        """Return what `get` would, waiting for the source. Raises what the source raises.

        `asker` is whose call it is while it lasts: it goes on when its client hangs up, so clients do not bound them.
        """
        token = self._get_now(source, resource)
        if token is not None:
            return token
        key = (source, resource)
        if self._secret_check is not None and key in self._tokens:
            await self._secret_check.check(source)
            token = self._get_now(source, resource)
            if token is not None:
                return token
        self._raise_recent_failure(key)
        if key not in self._flights:
            await self._wait_for_start(asker or source)
            token = self._get_now(source, resource)
            if token is not None:
                return token
            self._raise_recent_failure(key)
        flight = self._flights.get(key)
        if flight is None:
            if self._quota.is_full(asker or source):
                raise _too_many()
            flight = self._start(key, asker or source)
        # Shielded: one client's hang-up must not end the call that others wait for.
        outcome = await asyncio.shield(flight)
        if isinstance(outcome, PodIdentityError):
            raise outcome.with_traceback(None)
        return outcome

    def _raise_recent_failure(self, key: Key) -> None:
        failure = self._recent_failure(key, self._clock.steady())
        if failure is not None:
            raise failure.error.with_traceback(None)  # else it would grow with each time it is raised

    async def _wait_for_start(self, asker: Hashable) -> None:
        """Return when `asker` may begin one more call. Raises `AzureError` when that would take too long."""
        delay = self._pace.delay(asker)
        if delay is None:
            raise _too_many()
        if delay > 0:
            await self._clock.sleep(delay)

    def _is_current(self, source: ServicePrincipal) -> bool:
        return self._secret_check is None or self._secret_check.is_current(source)

    def _get_now(self, source: Source, resource: str) -> CachedToken | None:
        return self.get(source, resource, self._clock.steady(), int(self._clock.wall()))

    def forget(self, source: Source) -> None:
        """Drop every token and failure of `source`, because what it rests on changed."""
        self._forget(lambda candidate: candidate == source)

    def forget_secret(self, secret: SecretReference) -> None:
        """Drop everything that was made with a Secret."""
        self._forget(lambda source: isinstance(source, ServicePrincipal) and source.secret == secret)

    def _forget(self, concerns: Callable[[Source], bool]) -> None:
        for store in (self._tokens, self._failures):
            for key in [key for key in store if concerns(key[0])]:
                del store[key]
        for key in [key for key in self._flights if concerns(key[0])]:
            del self._flights[key]  # whoever waits is answered; what arrives is not kept

    def __len__(self) -> int:
        return len(self._tokens)

    def _recent_failure(self, key: Key, steady: float) -> _Failure | None:
        failure = self._failures.get(key)
        if failure is not None and steady >= failure.until:
            del self._failures[key]
            return None
        return failure

    def _may_start(self, key: Key, steady: float) -> bool:
        return key not in self._flights and not self._recent_failure(key, steady) and not self._quota.is_full(key[0])

    def _start(self, key: Key, asker: Hashable) -> asyncio.Future[CachedToken | PodIdentityError]:
        flight: asyncio.Future[CachedToken | PodIdentityError] = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        self._quota.take(asker)
        self._spawn(self._fly(key, flight, asker))
        return flight

    async def _fly(self, key: Key, flight: asyncio.Future[CachedToken | PodIdentityError], asker: Hashable) -> None:
        try:
            outcome = await self._outcome(key)
            if self._flights.get(key) is flight:  # not forgotten while it was in the air
                self._land(key, outcome)
            flight.set_result(outcome)
        except Exception as error:  # noqa: BLE001  # a bug is a 500 for whoever waits: it must not end the daemon
            flight.set_exception(error)
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]
            self._quota.give_back(asker)
            flight.cancel()  # when this task was cancelled; else it is done already

    async def _outcome(self, key: Key) -> CachedToken | PodIdentityError:
        try:
            return CachedToken(await self._source.acquire(*key), self._clock)
        except PodIdentityError as error:
            return error

    def _land(self, key: Key, outcome: CachedToken | PodIdentityError) -> None:
        steady = self._clock.steady()
        if isinstance(outcome, PodIdentityError):
            pause = outcome.retry_after_seconds if isinstance(outcome, AzureError) else None
            # Not longer than Retry-After: whoever comes back when told to must not meet the same failure.
            seconds = pause if pause is not None and pause >= SHORTEST_PAUSE_SECONDS else FAILURE_SECONDS
            seconds = min(seconds, LONGEST_FAILURE_SECONDS)
            self._failures[key] = _Failure(outcome, steady + seconds)
            return
        outcome.steady_end = min(outcome.steady_end, steady + _longest_seconds(key[0]))
        previous = self._tokens.get(key)
        remaining = outcome.steady_end - steady
        if previous is not None and previous.texts == outcome.texts:
            # A broker has the same token for hours, and says each time whether the pod still may have it.
            pause = BROKER_PAUSE_SECONDS if isinstance(key[0], BrokerIdentity) else SAME_TOKEN_PAUSE_SECONDS
            outcome.refresh_at = steady + max(remaining / 2, pause)
        else:
            outcome.refresh_at = steady + refresh_after(remaining, self._spread())
        self._failures.pop(key, None)
        self._tokens[key] = outcome


def _longest_seconds(source: Source) -> float:
    """Return how long a token of `source` is kept at most, however long it is good."""
    if source == MACHINE_IDENTITY:
        return MACHINE_IDENTITY_SECONDS
    return BROKER_SECONDS if isinstance(source, BrokerIdentity) else _INFINITY


def refresh_after(remaining_seconds: float, spread: float) -> float:
    """Return after how many seconds a token that lives `remaining_seconds` is fetched anew; `spread` is from 0 to 1."""
    if remaining_seconds > LONG_LIFE_SECONDS:
        return remaining_seconds * (0.5 - 0.1 * spread)
    lead = REFRESH_AHEAD_SECONDS + JITTER_SECONDS * spread
    return max(remaining_seconds - lead, remaining_seconds / 2)


def _too_many() -> AzureError:
    return AzureError("too many tokens are being asked for at once; ask again in a moment", retry_after_seconds=1.0)


def _tokens_of(grant: Grant) -> tuple[Token, ...]:
    return (grant,) if isinstance(grant, Token) else grant
