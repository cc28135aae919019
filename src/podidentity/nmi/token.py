"""From a token request and a connection to an answer: the path that everything else serves.

`step` is synchronous and looks everything up afresh: pod, access, token. When something is missing it says what, and
`wait` gets it and takes the step again, from the beginning: whatever changed meanwhile counts.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from podidentity.core.model.identities import AssignedState
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.choosing import IDENTITY_NOT_FOUND, NotReady
from podidentity.core.tokens.imds import Refusal, TokenRequest
from podidentity.core.tokens.sources import BrokerIdentity
from podidentity.errors import AzureError, PodIdentityError
from podidentity.issuance.cache import Cache, CachedToken
from podidentity.nmi.access import Access
from podidentity.nmi.answers import Answer, Permission, refuse
from podidentity.nmi.pod_lookup import DirectLookup, NeedsLookup, PodLookup, UnknownPeer
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings
from podidentity.nmi.waiting import Waiting
from podidentity.timing import Clock

_BAD_REQUEST = 400
RETRY_SECONDS = 20
"""Upstream's Retry-After when a wait was in vain and --set-retry-after-header is given."""


class NotAssigned(NamedTuple):
    """MIC has still to act."""

    pod: Pod
    wait: NotReady


Missing = NeedsLookup | UnknownPeer | Permission | NotAssigned
"""What an answer still takes: a direct lookup, a pod at the address, a token (all else is decided), or MIC."""


class FetchedToken(NamedTuple):
    """A token that was waited for, and the permission it was fetched with."""

    permission: Permission
    entry: CachedToken


class TokenFlow:
    """Answers token requests. `note_fetched` hears of each token that the cache did not have."""

    def __init__(
        self,
        pod_lookup: PodLookup,
        access: Access,
        waiting: Waiting,
        cache: Cache,
        clock: Clock,
        settings: Settings,
        *,
        note_fetched: Callable[[Permission, TokenRequest], None],
    ) -> None:
        self._pod_lookup = pod_lookup
        self._access = access
        self._waiting = waiting
        self._cache = cache
        self._note_fetched = note_fetched
        self._clock = clock
        self._settings = settings

    def step(self, request: TokenRequest, peer: Peer, lookup: DirectLookup | None = None) -> Answer | Missing:
        """Return the answer, or what it still takes. `lookup` is a direct lookup of the peer that was just made."""
        now = self._clock.steady()
        pod = self._pod_lookup.pod_of(peer, lookup, now)
        if not isinstance(pod, Pod):
            return refuse(pod) if isinstance(pod, Refusal) else pod
        choice = self._access.choice(pod, request, now)
        if not isinstance(choice, Permission):
            return _without_permission(pod, choice)
        second = int(self._clock.wall())
        token = self._cache.get(choice.source, request.resource, now, second)
        if token is None:
            return choice
        # The same answer again while its bytes are the same, which is for a second.
        body, answer = token.response(second), choice.last_answer
        if answer is None or answer.body is not body:
            answer = choice.last_answer = _answer(choice, body, cached=True)
        return answer

    def step_for(self, pod: Pod, request: TokenRequest, now: float) -> Answer | Permission | NotAssigned:
        """Return a refusal, or what an answer to a request about `pod` still takes. `now` is steady time."""
        choice = self._access.choice(pod, request, now)
        return choice if isinstance(choice, Permission) else _without_permission(pod, choice)

    async def wait(self, request: TokenRequest, peer: Peer) -> Answer:
        """Return the answer, waiting for what it takes. Cancelled when the client hangs up."""
        outcome = await self.repeat(lambda lookup: self.step(request, peer, lookup), request, peer)
        return outcome if isinstance(outcome, Answer) else self.answer(outcome)

    async def repeat(
        self, step: Callable[[DirectLookup | None], Answer | Missing], request: TokenRequest, peer: Peer
    ) -> Answer | FetchedToken:
        """Take `step`, get what is missing, and take it again, until it is an answer or permits what was fetched.

        A fetched token counts only while the step still comes to its source. Nothing from before the first step
        counts: this runs in a task that began later than whatever asked for it, and a change in between has woken
        nobody.
        """
        start = self._clock.steady()
        lookup: DirectLookup | None = None
        token: FetchedToken | None = None
        while True:
            missing = step(lookup)
            if isinstance(missing, Answer):
                return replace(missing, cached=missing.cached and token is None)
            if token and isinstance(missing, Permission) and missing.source == token.permission.source:
                return FetchedToken(missing, token.entry)
            outcome = await self._get(missing, request, peer, start)
            if isinstance(outcome, Answer):
                return outcome
            lookup = outcome if isinstance(outcome, DirectLookup) else None
            if isinstance(outcome, FetchedToken):
                token = outcome

    def answer(self, token: FetchedToken) -> Answer:
        """Return the answer that a token makes which was waited for."""
        return _answer(token.permission, token.entry.response(int(self._clock.wall())), cached=False)

    async def _get(
        self, missing: Missing, request: TokenRequest, peer: Peer, start: float
    ) -> DirectLookup | FetchedToken | Answer | None:
        """Wait for what is missing. An Answer ends everything; after anything else the step is taken again."""
        if isinstance(missing, NeedsLookup):
            lookup = await self._pod_lookup.look(peer)
            return refuse(lookup) if isinstance(lookup, Refusal) else lookup
        if isinstance(missing, UnknownPeer):
            return await self._wait_for_pod(missing, start)
        if isinstance(missing, Permission):
            return await self._fetch(missing, request)
        return await self._wait_for_assignment(missing, start)

    async def _fetch(self, permission: Permission, request: TokenRequest) -> FetchedToken | Answer | None:
        """Return the token; None when IMDS does not know the identity and the pod may wait until it does."""
        try:
            entry = await self._cache.get_or_fetch(permission.source, request.resource, permission.pod.uid)
        except PodIdentityError as error:
            if _is_unknown_identity(error) and self._access.note_missing(permission, self._clock.steady()):
                return None
            return _failure(permission, error)
        self._note_fetched(permission, request)
        return FetchedToken(permission, entry)

    async def _wait_for_pod(self, missing: UnknownPeer, start: float) -> Answer | None:
        """Wait for the watch to report a pod at the address; return an Answer when the time is up."""
        remaining = start + self._settings.wait_known_seconds - self._clock.steady()
        if remaining > 0 and await self._waiting.change(missing.address, remaining):
            return None
        return refuse(Refusal(404, missing.message))

    async def _wait_for_assignment(self, missing: NotAssigned, start: float) -> Answer | None:
        """Wait for the watch to report anything new about the pod; return an Answer when the time is up."""
        settings = self._settings
        limit = settings.wait_created_seconds
        if missing.wait.until is AssignedState.ASSIGNED:
            limit += settings.wait_assigned_seconds
        now = self._clock.steady()
        remaining, recheck = start + limit - now, self._access.recheck_seconds(now)
        if remaining > 0 and (
            await self._waiting.change(missing.pod.key, min(remaining, recheck)) or recheck < remaining
        ):
            return None
        if settings.retry_after_header:
            return refuse(Refusal(503, missing.wait.message), missing.pod, retry_after_seconds=RETRY_SECONDS)
        return refuse(Refusal(404, missing.wait.message), missing.pod)


def _answer(permission: Permission, response: bytes, *, cached: bool) -> Answer:
    return Answer(200, response, "", permission.pod, permission.identity, permission.binding, permission.source, cached)


def _without_permission(pod: Pod, choice: NotReady | Refusal) -> Answer | NotAssigned:
    return refuse(choice, pod) if isinstance(choice, Refusal) else NotAssigned(pod, choice)


def _is_unknown_identity(error: PodIdentityError) -> bool:
    """Whether IMDS says that the machine does not carry the identity that it was asked for."""
    return isinstance(error, AzureError) and error.status == _BAD_REQUEST and IDENTITY_NOT_FOUND in str(error)


def _failure(permission: Permission, error: PodIdentityError) -> Answer:
    """Return 403 when IMDS or Entra ID refused (in its own words), 503 when it did not answer or a setting is wrong.

    What the broker refuses to a pod is 400, as IMDS has it of an identity that is not there: clients go on at once.
    """
    is_refusal = isinstance(error, AzureError) and 400 <= error.status < 500 and error.status not in {408, 410, 429}  # noqa: PLR2004
    status = _BAD_REQUEST if isinstance(permission.source, BrokerIdentity) and _is_unknown_identity(error) else 403
    pause = error.retry_after_seconds if isinstance(error, AzureError) else None
    answer = refuse(
        Refusal(status if is_refusal else 503, str(error)),
        permission.pod,
        retry_after_seconds=None if pause is None else max(1, round(pause)),
    )
    return replace(answer, identity=permission.identity, binding=permission.binding, source=permission.source)
