"""Wrappers around a source of tokens that keep its caller within its limits, and try again.

IMDS answers at most 20 token requests a second and 5 at once for a machine (learn.microsoft.com/entra/identity/
managed-identities-azure-resources/how-to-use-vm-token, managed-identities-faq); it asks clients to try again on 404,
410, 429 and 5xx, a 410 lasting up to 70 s.
"""

from collections.abc import Hashable

from podidentity.core.tokens.sources import BrokerIdentity, FederatedIdentity, ProvenIdentity, ServicePrincipal, Source
from podidentity.errors import AzureError
from podidentity.issuance.fairness import FairLimiter
from podidentity.issuance.ports import Grant, Tokens
from podidentity.timing import Clock

_UPDATING, _THROTTLED, _SERVER_ERROR = 410, 429, 500
_UPDATE_SECONDS = 70.0  # so long an update of IMDS takes, according to its documentation
_PAUSES_SECONDS = (0.2, 0.6, 1.8)  # for no answer and 5xx
_THROTTLED_TIMES = 5
_LONGEST_PAUSE_SECONDS = 30.0


class LimitedTokens:
    """At most `per_second` calls a second and `at_once` at a time, of one tenant's `per_asker`.

    Those who wait take turns by source, those for a service principal by the namespace of its Secret: a pod that asks
    for everything holds up nobody else's identity. With `shared_pause` nobody asks after a 429 before the time it
    names: IMDS counts the calls of the whole machine.
    """

    def __init__(
        self,
        source: Tokens,
        clock: Clock,
        *,
        per_second: float,
        at_once: int,
        per_asker: int | None = None,
        shared_pause: bool = True,
    ) -> None:
        self._source = source
        self._shared_pause = shared_pause
        self._limiter = FairLimiter(clock, per_second=per_second, at_once=at_once, per_asker=per_asker)

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a token, asked for when it is this source's turn. Raises what the source raises."""
        try:
            async with self._limiter.turn(_asker(source)):
                return await self._source.acquire(source, resource)
        except AzureError as error:
            if error.status == _THROTTLED and self._shared_pause:
                self._limiter.pause(min(error.retry_after_seconds or 0.0, _LONGEST_PAUSE_SECONDS))
            raise


class RetryingTokens:
    """Tries again what may succeed in a moment: no answer, 410, 429, 5xx. Obeys Retry-After."""

    def __init__(self, source: Tokens, clock: Clock) -> None:
        self._source = source
        self._clock = clock

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a token, asking until there is one or no hope. Raises what the source raised last."""
        start = self._clock.steady()
        attempt = 0
        while True:
            try:
                return await self._source.acquire(source, resource)
            except AzureError as error:
                pause = _pause(error, attempt, self._clock.steady() - start)
                if pause is None:
                    raise
            attempt += 1
            await self._clock.sleep(pause)


def _asker(source: Source) -> Hashable:
    match source:
        case ServicePrincipal():
            return source.secret.namespace
        case FederatedIdentity():
            return source.client_id
        case BrokerIdentity() | ProvenIdentity():
            return source.namespace
        case _:
            return source


def _pause(error: AzureError, attempt: int, since_seconds: float) -> float | None:
    """Return the seconds to wait before trying again; None when it is no use, or no client would wait for it."""
    retry_after = error.retry_after_seconds
    if retry_after is not None and retry_after > _LONGEST_PAUSE_SECONDS:
        return None
    if error.status == _UPDATING and since_seconds < _UPDATE_SECONDS:
        return retry_after or min(1.0 + attempt, 10.0)
    if error.status == _THROTTLED and attempt < _THROTTLED_TIMES:
        return retry_after or 1.0 * 2**attempt
    passing = error.status == 0 or error.status >= _SERVER_ERROR
    if passing and attempt < len(_PAUSES_SECONDS):
        return retry_after or _PAUSES_SECONDS[attempt]
    return None
