"""Has the token that a caller may have: from the cache, from Entra ID, past the cache when a client was challenged."""

from podidentity.bounded import BoundedDict
from podidentity.core.exchange.requests import CAPABILITIES, TokenRequest
from podidentity.core.tokens.imds import Token
from podidentity.core.tokens.sources import FederatedIdentity
from podidentity.errors import AzureError
from podidentity.issuance.cache import Cache
from podidentity.issuance.fairness import Pace
from podidentity.issuance.ports import Grant, Tokens
from podidentity.timing import Clock

CHALLENGES_PER_NAMESPACE = 20  # a second
CHALLENGE_WAIT_SECONDS = 10.0
DROP_SECONDS = 60.0
"""So often a challenge takes an identity's tokens out of the cache: one pod must not take them from all others."""
_IDENTITIES = 4096


class Exchange:
    """Tokens of the identities of one tenant. `sources` is what `cache` stands in front of."""

    def __init__(self, tenant_id: str, cache: Cache, sources: Tokens, clock: Clock) -> None:
        self._tenant_id = tenant_id
        self._cache = cache
        self._sources = sources
        self._clock = clock
        self._pace = Pace(clock, starts=CHALLENGES_PER_NAMESPACE, longest_seconds=CHALLENGE_WAIT_SECONDS)
        self._drops: BoundedDict[str, float] = BoundedDict(_IDENTITIES)

    async def token(self, request: TokenRequest, asker: str) -> tuple[Token, bool]:
        """Return a token, and whether it was in the cache. Raises what the source raises.

        `asker` is the namespace whose call to Entra ID it is, if there is one.
        """
        source = FederatedIdentity(self._tenant_id, request.client_id, request.claims)
        if request.challenge:
            await self._wait_for_turn(asker)
            grant = await self._sources.acquire(source, request.scope)
            self._drop(source)
            return _only(grant), False
        cached = self._cache.get(source, request.scope, self._clock.steady(), int(self._clock.wall()))
        if cached is not None:
            return _only(cached.grant), True
        return _only((await self._cache.get_or_fetch(source, request.scope, asker)).grant), False

    async def _wait_for_turn(self, asker: str) -> None:
        """Return when `asker` may send one more challenge. Raises `AzureError` when that would take too long."""
        delay = self._pace.delay(asker)
        if delay is None:
            message = f"namespace {asker} sends too many challenges at once; ask again in a moment"
            raise AzureError(message, retry_after_seconds=1.0)
        await self._clock.sleep(delay)

    def _drop(self, source: FederatedIdentity) -> None:
        """Forget the identity's tokens: what the challenged one was refused for holds for those in the cache too."""
        now = self._clock.steady()
        if now < self._drops.get(source.client_id, -DROP_SECONDS) + DROP_SECONDS:
            return
        self._drops[source.client_id] = now
        self._cache.forget(source._replace(claims=""))
        self._cache.forget(source._replace(claims=CAPABILITIES))


def _only(grant: Grant) -> Token:
    if not isinstance(grant, Token):
        raise TypeError("an exchange gives one token")
    return grant
