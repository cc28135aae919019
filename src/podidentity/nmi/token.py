"""From a token request and a connection to an answer: the path that everything else serves.

`step` is synchronous and looks everything up afresh: pod, access, token. When something is missing it says what, and
`wait` gets it and takes the step again, from the beginning: whatever changed meanwhile counts. Called by `app`.
"""

from typing import NamedTuple

from podidentity.core.choosing import Wait
from podidentity.core.cluster import Pod
from podidentity.core.identities import AssignedState, AzureIdentity, AzureIdentityBinding
from podidentity.core.imds import Refusal, TokenRequest, render_error
from podidentity.core.sources import Source
from podidentity.errors import AzureError, PodIdentityError
from podidentity.nmi.access import Access, Allowed
from podidentity.nmi.cache import Cached, Kept
from podidentity.nmi.finding import Finding, Look, Looked, Stranger
from podidentity.nmi.ports import Clock, Peer, Tokens
from podidentity.nmi.settings import Settings
from podidentity.nmi.waiting import Waiting

RETRY_SECONDS = 20
"""Upstream's Retry-After when a wait was in vain and --set-retry-after-header is given."""

_SOON_SECONDS = 1


class Answer(NamedTuple):
    """A whole response, and what the audit line says of it."""

    status: int
    body: bytes
    why: str = ""
    pod: Pod | None = None
    identity: AzureIdentity | None = None
    binding: AzureIdentityBinding | None = None
    source: Source | None = None
    cached: bool = False


class NoToken(NamedTuple):
    """Everything is decided but the token is not here."""

    pod: Pod
    allowed: Allowed


class NotAssigned(NamedTuple):
    """MIC has still to act."""

    pod: Pod
    wait: Wait


Missing = Look | Stranger | NoToken | NotAssigned


class Fetched(NamedTuple):
    """A token that was waited for. It counts only while the decision still comes to its source."""

    source: Source
    kept: Kept

    def answers(self, missing: object) -> bool:
        """Say whether this is the token that `missing` lacks."""
        return isinstance(missing, NoToken) and missing.allowed.source == self.source


class TokenFlow:
    """Answers token requests. Without a cache among `tokens`, each costs a call to the source, as upstream has it."""

    def __init__(
        self, finding: Finding, access: Access, waiting: Waiting, tokens: Tokens, clock: Clock, settings: Settings
    ) -> None:
        self._finding = finding
        self._access = access
        self._waiting = waiting
        self._tokens = tokens
        self._cache = tokens if isinstance(tokens, Cached) else None
        self._clock = clock
        self._settings = settings

    def step(self, asked: TokenRequest, peer: Peer, looked: Looked | None = None) -> Answer | Missing:
        """Answer at once if that is possible. `looked` is what the API server just said of the peer's address."""
        pod = self._finding.pod_of(peer, looked)
        if isinstance(pod, Look | Stranger):
            return pod
        if isinstance(pod, Refusal):
            return refuse(pod)
        return self.step_for(pod, asked)

    def step_for(self, pod: Pod, asked: TokenRequest) -> Answer | NoToken | NotAssigned:
        """Answer for a pod that is known, from the cache if it is there."""
        missing = self.missing_for(pod, asked)
        if isinstance(missing, NoToken) and self._cache is not None:
            kept = self._cache.cached(missing.allowed.source, asked.resource)
            return missing if kept is None else self.granted(missing, kept, cached=True)
        return missing

    def missing_for(self, pod: Pod, asked: TokenRequest) -> Answer | NoToken | NotAssigned:
        """Decide about a pod that is known: refuse, or say what an answer takes."""
        choice = self._access.choice(pod, asked)
        if isinstance(choice, Allowed):
            return NoToken(pod, choice)
        return refuse(choice, pod) if isinstance(choice, Refusal) else NotAssigned(pod, choice)

    async def wait(self, asked: TokenRequest, peer: Peer) -> Answer:
        """Step, get what is missing and step again, until there is an answer. Cancelled when the client hangs up.

        Nothing from before counts: this runs in a task that began later than the step that asked for it, and a change
        in between has woken nobody.
        """
        started = self._clock.steady()
        got: Looked | Kept | None = None
        fetched: Fetched | None = None
        while True:
            step = self.step(asked, peer, got if isinstance(got, Looked) else None)
            if fetched and isinstance(step, NoToken) and fetched.answers(step):
                return self.granted(step, fetched.kept)
            if isinstance(step, Answer):
                return step._replace(cached=step.cached and fetched is None)
            taken = await self._get(asked, peer, step, started)
            if isinstance(taken, Answer):
                return taken
            got = taken
            if isinstance(got, Kept) and isinstance(step, NoToken):
                fetched = Fetched(step.allowed.source, got)

    async def _get(
        self, asked: TokenRequest, peer: Peer, missing: Missing, started: float
    ) -> Looked | Kept | Answer | None:
        if isinstance(missing, Look):
            looked = await self._finding.look(peer)
            return refuse(looked) if isinstance(looked, Refusal) else looked
        if isinstance(missing, Stranger):
            return await self._wait_known(missing, started)
        return await self.get(asked, missing, started)

    async def get(self, asked: TokenRequest, missing: NoToken | NotAssigned, started: float) -> Kept | Answer | None:
        """Wait for what is missing. An Answer ends it; after anything else, decide again. `started` is steady time."""
        if isinstance(missing, NoToken):
            return await self._fetch(missing, asked)
        return await self._wait_assigned(missing, started)

    def granted(self, missing: NoToken, kept: Kept, *, cached: bool = False) -> Answer:
        """Make the answer of a token."""
        allowed = missing.allowed
        body = kept.answer(self._clock.wall())
        return Answer(200, body, "", missing.pod, allowed.identity, allowed.binding, allowed.source, cached)

    async def _fetch(self, missing: NoToken, asked: TokenRequest) -> Kept | Answer:
        source = missing.allowed.source
        try:
            if self._cache is not None:
                return await self._cache.kept(source, asked.resource)
            return Kept(await self._tokens.acquire(source, asked.resource), self._clock)
        except PodIdentityError as error:
            return _failed(missing, error)

    async def _wait_known(self, missing: Stranger, started: float) -> Answer | None:
        """Wait for the watch to tell of a pod at the address; an Answer when the time is up."""
        left = started + self._settings.wait_known_seconds - self._clock.steady()
        if left > 0 and await self._waiting.change(missing.address, left):
            return None
        return refuse(Refusal(404, missing.why))

    async def _wait_assigned(self, missing: NotAssigned, started: float) -> Answer | None:
        """Wait for the watch to tell something new of the pod; an Answer when the time is up."""
        settings = self._settings
        limit = settings.wait_created_seconds
        if missing.wait.until is AssignedState.ASSIGNED:
            limit += settings.wait_assigned_seconds
        left = started + limit - self._clock.steady()
        if left > 0 and await self._waiting.change(missing.pod.key, left):
            return None
        if settings.retry_after_header:
            return refuse(Refusal(503, missing.wait.why), missing.pod, retry_after_seconds=RETRY_SECONDS)
        return refuse(Refusal(404, missing.wait.why), missing.pod)


def refuse(refusal: Refusal, pod: Pod | None = None, *, retry_after_seconds: int | None = None) -> Answer:
    """Make the answer of a refusal; 503 asks the client to come back."""
    if refusal.status == 503 and retry_after_seconds is None:  # noqa: PLR2004  # Service Unavailable
        retry_after_seconds = _SOON_SECONDS
    body = render_error(refusal.status, refusal.why, retry_after_seconds=retry_after_seconds)
    return Answer(refusal.status, body, refusal.why, pod)


def _failed(missing: NoToken, error: PodIdentityError) -> Answer:
    """403 when IMDS or Entra refused (its words are passed on), 503 when it did not answer or a setting is wrong."""
    refused = isinstance(error, AzureError) and 400 <= error.status < 500 and error.status not in {408, 410, 429}  # noqa: PLR2004
    pause = error.retry_after_seconds if isinstance(error, AzureError) else None
    answer = refuse(
        Refusal(403 if refused else 503, str(error)),
        missing.pod,
        retry_after_seconds=None if pause is None else max(1, round(pause)),
    )
    allowed = missing.allowed
    return answer._replace(identity=allowed.identity, binding=allowed.binding, source=allowed.source)
