"""Whose token a pod's request is answered with: asks `core`, remembers its answers while nothing changes.

Excepted pods and MIC itself are answered as IMDS would; all others by their assigned identities (standard mode) or
their bindings (managed mode). A remembered choice holds for exactly one pod object and one revision of the identities.
Called by `token`.
"""

from podidentity.core import choosing, rules
from podidentity.core.choosing import Chosen, Refused, Wait
from podidentity.core.cluster import Pod
from podidentity.core.identities import AzureIdentity
from podidentity.core.imds import Refusal, TokenRequest
from podidentity.core.sources import SourceRules, allowed_source, own_source
from podidentity.nmi.answers import Allowed
from podidentity.nmi.ports import WATCH_TRUSTED_SECONDS, Grants
from podidentity.nmi.settings import Settings

_REQUESTS_PER_POD = 64
_PODS = 4096
_UIDS = 8192
_HAD_PER_POD = 64  # each edit of an identity makes another
_NOTHING: frozenset[AzureIdentity] = frozenset()


Choice = Allowed | Wait | Refusal


class Access:
    """Choices for the pods of this node."""

    def __init__(self, grants: Grants, settings: Settings) -> None:
        self._grants = grants
        self._managed_mode = settings.managed_mode
        self._force_namespaced = settings.force_namespaced
        self._mic_namespace = settings.mic_namespace
        self._allowed = SourceRules(settings.secret_namespaces, settings.logins)
        self._revision = -1
        self._remembered: dict[str, tuple[Pod, dict[TokenRequest, Choice]]] = {}
        self._had: dict[str, frozenset[AzureIdentity]] = {}

    def choice(self, pod: Pod, asked: TokenRequest, now: float) -> Choice:
        """Say what `pod` is answered with when it asks `asked`, `now` in steady seconds."""
        if now - self._grants.granted_as_of() > WATCH_TRUSTED_SECONDS:
            return Refusal(503, "what the identities of this node are has not been confirmed; ask again in a moment")
        revision = self._grants.revision
        if revision != self._revision:
            self._remembered.clear()
            self._revision = revision
        remembered = self._remembered.get(pod.uid)
        choice = remembered[1].get(asked) if remembered is not None and remembered[0] is pod else None
        return self._remember(pod, asked) if choice is None else choice

    def _remember(self, pod: Pod, asked: TokenRequest) -> Choice:
        if len(self._remembered) > _PODS:
            self._remembered.clear()
        remembered = self._remembered.get(pod.uid)
        if remembered is None or remembered[0] is not pod or len(remembered[1]) >= _REQUESTS_PER_POD:
            remembered = self._remembered[pod.uid] = (pod, {})
        choice = remembered[1][asked] = self._decide(pod, asked)
        return choice

    def note_given(self, uid: str, identity: AzureIdentity) -> None:
        """Remember that this very pod had an identity: when it is taken away, there is nothing to wait for."""
        had = self._had.get(uid, _NOTHING)
        self._had[uid] = (had if len(had) < _HAD_PER_POD else _NOTHING) | {identity}
        while len(self._had) > _UIDS:
            del self._had[next(iter(self._had))]

    def forget(self, uid: str) -> None:
        """Drop what is remembered of a pod that is gone."""
        self._remembered.pop(uid, None)
        self._had.pop(uid, None)

    def _decide(self, pod: Pod, asked: TokenRequest) -> Choice:
        exceptions = self._grants.exceptions_in(pod.key.namespace)
        if rules.is_excepted(pod, exceptions) or rules.is_mic(pod, self._mic_namespace):
            return Allowed(pod, own_source(asked), None, None)
        match self._choose(pod, asked):
            case Chosen(identity, binding):
                source = allowed_source(identity, self._allowed)
                if isinstance(source, Refusal):
                    return source
                self.note_given(pod.uid, identity)
                return Allowed(pod, source, identity, binding)
            case Refused(status, why):
                return Refusal(status, why)
            case wait:
                return wait

    def _choose(self, pod: Pod, asked: TokenRequest) -> Chosen | Wait | Refused:
        had = self._had.get(pod.uid, _NOTHING)
        if self._managed_mode:
            return choosing.choose_bound(pod, asked, self._grants.bound_to(pod), had=had)
        assigned = self._grants.assigned_to(pod.key)
        return choosing.choose(pod, asked, assigned, had=had, force_namespaced=self._force_namespaced)
