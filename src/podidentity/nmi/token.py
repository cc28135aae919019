"""From a token request and a connection to an answer: the path that everything else serves.

`step` is synchronous and looks everything up afresh: pod, access, token. When something is missing it says what, and
`wait` gets it and takes the step again, from the beginning: whatever changed meanwhile counts. Called by `app`.
"""

from dataclasses import replace
from typing import NamedTuple

from podidentity.core.choosing import Wait
from podidentity.core.cluster import Pod
from podidentity.core.identities import AssignedState
from podidentity.core.imds import Refusal, TokenRequest
from podidentity.core.sources import Source
from podidentity.errors import AzureError, PodIdentityError
from podidentity.nmi.access import Access
from podidentity.nmi.answers import Allowed, Answer, refuse
from podidentity.nmi.cache import Cached, Kept
from podidentity.nmi.finding import Finding, Look, Looked, Stranger
from podidentity.nmi.ports import Clock, Peer, Tokens
from podidentity.nmi.settings import Settings
from podidentity.nmi.waiting import Waiting

RETRY_SECONDS = 20
"""Upstream's Retry-After when a wait was in vain and --set-retry-after-header is given."""


class NotAssigned(NamedTuple):
    """MIC has still to act."""

    pod: Pod
    wait: Wait


Missing = Look | Stranger | Allowed | NotAssigned
"""What an answer takes: a look, a pod, a token (everything else is decided), or MIC."""


class Fetched(NamedTuple):
    """A token that was waited for. It counts only while the decision still comes to its source."""

    source: Source
    kept: Kept

    def answers(self, missing: object) -> bool:
        """Say whether this is the token that `missing` lacks."""
        return isinstance(missing, Allowed) and missing.source == self.source


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
        now = self._clock.steady()
        pod = self._finding.pod_of(peer, looked, now)
        if not isinstance(pod, Pod):
            return refuse(pod) if isinstance(pod, Refusal) else pod
        choice = self._access.choice(pod, asked, now)
        if not isinstance(choice, Allowed):
            return _without_token(pod, choice)
        if self._cache is None:
            return choice
        second = int(self._clock.wall())
        kept = self._cache.cached(choice.source, asked.resource, now, second)
        if kept is None:
            return choice
        # The same answer again while its bytes are the same, which is for a second.
        body, given = kept.answer(second), choice.given
        if given is None or given.body is not body:
            given = choice.given = self._answer(choice, body, cached=True)
        return given

    def missing_for(self, pod: Pod, asked: TokenRequest, now: float) -> Answer | Allowed | NotAssigned:
        """Decide about a pod that is known: refuse, or say what an answer takes."""
        choice = self._access.choice(pod, asked, now)
        return choice if isinstance(choice, Allowed) else _without_token(pod, choice)

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
            if fetched and isinstance(step, Allowed) and fetched.answers(step):
                return self.granted(step, fetched.kept)
            if isinstance(step, Answer):
                return replace(step, cached=step.cached and fetched is None)
            taken = await self._get(asked, peer, step, started)
            if isinstance(taken, Answer):
                return taken
            got = taken
            if isinstance(got, Kept) and isinstance(step, Allowed):
                fetched = Fetched(step.source, got)

    async def _get(
        self, asked: TokenRequest, peer: Peer, missing: Missing, started: float
    ) -> Looked | Kept | Answer | None:
        if isinstance(missing, Look):
            looked = await self._finding.look(peer)
            return refuse(looked) if isinstance(looked, Refusal) else looked
        if isinstance(missing, Stranger):
            return await self._wait_known(missing, started)
        return await self.get(asked, missing, started)

    async def get(self, asked: TokenRequest, missing: Allowed | NotAssigned, started: float) -> Kept | Answer | None:
        """Wait for what is missing. An Answer ends it; after anything else, decide again. `started` is steady time."""
        if isinstance(missing, Allowed):
            return await self._fetch(missing, asked)
        return await self._wait_assigned(missing, started)

    def granted(self, allowed: Allowed, kept: Kept) -> Answer:
        """Make the answer of a token that was waited for."""
        return self._answer(allowed, kept.answer(int(self._clock.wall())), cached=False)

    @staticmethod
    def _answer(allowed: Allowed, body: bytes, *, cached: bool) -> Answer:
        return Answer(200, body, "", allowed.pod, allowed.identity, allowed.binding, allowed.source, cached)

    async def _fetch(self, missing: Allowed, asked: TokenRequest) -> Kept | Answer:
        source = missing.source
        try:
            if self._cache is not None:
                return await self._cache.kept(source, asked.resource, missing.pod.uid)
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


def _without_token(pod: Pod, choice: Wait | Refusal) -> Answer | NotAssigned:
    return refuse(choice, pod) if isinstance(choice, Refusal) else NotAssigned(pod, choice)


def _failed(missing: Allowed, error: PodIdentityError) -> Answer:
    """403 when IMDS or Entra refused (its words are passed on), 503 when it did not answer or a setting is wrong."""
    refused = isinstance(error, AzureError) and 400 <= error.status < 500 and error.status not in {408, 410, 429}  # noqa: PLR2004
    pause = error.retry_after_seconds if isinstance(error, AzureError) else None
    answer = refuse(
        Refusal(403 if refused else 503, str(error)),
        missing.pod,
        retry_after_seconds=None if pause is None else max(1, round(pause)),
    )
    return replace(answer, identity=missing.identity, binding=missing.binding, source=missing.source)
