"""Waits while a new federated credential spreads through Entra ID, and keeps pauses that Entra ID asks for.

A credential that was just created is known everywhere after seconds to minutes; until then Entra ID answers as if there
were none. What is missing for longer is missing: then nobody waits for it any more.
"""

from collections.abc import Callable

from podidentity.bounded import BoundedDict
from podidentity.core.exchange.answers import SPREAD_CODES, codes_of
from podidentity.core.tokens.sources import FederatedIdentity, Source
from podidentity.errors import AzureError
from podidentity.issuance.ports import Grant, Tokens
from podidentity.timing import Clock

WAIT_SECONDS = 45.0
"""So long callers are held; Java's SDK gives up after 60 s."""
FORGET_SECONDS = 600.0
_PAUSES_SECONDS = (1.0, 2.0, 4.0, 5.0)
_IDENTITIES = 4096
_THROTTLED = 429

Missing = Callable[[FederatedIdentity, AzureError], None]


class SpreadingTokens:
    """Asks again while an identity may have a credential that is not known everywhere yet.

    `on_missing` is told once of each identity whose credential Entra ID does not know.
    """

    def __init__(self, source: Tokens, clock: Clock, on_missing: Missing) -> None:
        self._source = source
        self._clock = clock
        self._on_missing = on_missing
        self._deadlines: BoundedDict[str, float] = BoundedDict(_IDENTITIES)

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a token. Raises what the source raised last."""
        attempt = 0
        while True:
            try:
                grant = await self._source.acquire(source, resource)
            except AzureError as error:
                pause = _PAUSES_SECONDS[min(attempt, len(_PAUSES_SECONDS) - 1)]
                if not self._may_wait(source, error, pause):
                    raise
            else:
                if isinstance(source, FederatedIdentity):
                    self._deadlines.pop(source.client_id, None)
                return grant
            attempt += 1
            await self._clock.sleep(pause)

    def _may_wait(self, source: Source, error: AzureError, pause_seconds: float) -> bool:
        if not isinstance(source, FederatedIdentity) or SPREAD_CODES.isdisjoint(codes_of(error)):
            return False
        now = self._clock.steady()
        deadline = self._deadlines.get(source.client_id)
        if deadline is None or now >= deadline + FORGET_SECONDS:
            deadline = self._deadlines[source.client_id] = now + WAIT_SECONDS
            self._on_missing(source, error)
        return now + pause_seconds <= deadline


class ThrottledTokens:
    """After a 429 nobody asks for the same identity before the time that it names; others go on."""

    def __init__(self, source: Tokens, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._pauses: BoundedDict[str, tuple[float, AzureError]] = BoundedDict(_IDENTITIES)

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a token. Raises what the source raises, and the last 429 again while its pause lasts."""
        identity = source.client_id if isinstance(source, FederatedIdentity) else ""
        until, previous = self._pauses.get(identity, (0.0, None))
        remaining = until - self._clock.steady()
        if previous is not None and remaining > 0:
            raise AzureError(str(previous), status=_THROTTLED, code=previous.code, retry_after_seconds=remaining)
        try:
            return await self._source.acquire(source, resource)
        except AzureError as error:
            if error.status == _THROTTLED and error.retry_after_seconds:
                self._pauses[identity] = self._clock.steady() + error.retry_after_seconds, error
            raise
