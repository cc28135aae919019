"""Whose token a pod's request is answered with: asks `core`, and reuses its decisions while nothing changes.

Excepted pods and MIC itself are answered as IMDS would; all others by their assigned identities (standard mode) or
their bindings (managed mode). A choice is reused for exactly one pod object and one revision of what concerns it.

Where NMI decides by itself what MIC would assign, IMDS is the second witness of what is on the machine: an identity
that it does not know counts as not there yet, for some seconds.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from podidentity.bounded import BoundedDict
from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, AzureIdentity
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens import choosing, exemptions
from podidentity.core.tokens.choosing import IdentityChoice, NoIdentity, NotReady
from podidentity.core.tokens.imds import Refusal, TokenRequest
from podidentity.core.tokens.sources import Source, SourceRules, allowed_source, own_source
from podidentity.nmi.answers import Permission
from podidentity.nmi.ports import WATCH_TRUSTED_SECONDS, Grants
from podidentity.nmi.settings import Settings

_REQUESTS_PER_POD = 64
_PODS = 4096
_UIDS = 8192
_IDENTITIES_PER_POD = 64  # each edit of an identity makes another
_MISSING = 1024  # more identities than a machine carries
SETTLED_SECONDS = 100.0
"""For how long after MIC's word that an identity is on the machine IMDS may not know it yet: upstream's whole wait."""
MISSING_SECONDS = 5.0
"""How long an identity that IMDS does not know counts as not there; upstream looked again as often."""
_INFINITY = float("inf")
_NO_IDENTITIES: frozenset[AzureIdentity] = frozenset()


Choice = Permission | NotReady | Refusal


class Access:
    """Choices for the pods of this node."""

    def __init__(self, grants: Grants, settings: Settings) -> None:
        self._grants = grants
        self._managed_mode = settings.managed_mode
        self._force_namespaced = settings.force_namespaced
        self._mic_namespace = settings.mic_namespace
        self._source_rules = SourceRules(settings.secret_namespaces, settings.logins, bool(settings.broker))
        self._choices: BoundedDict[str, tuple[Pod, int, dict[TokenRequest, Choice]]] = BoundedDict(_PODS)
        self._assigned_identities: BoundedDict[str, tuple[Pod, int, Sequence[AzureAssignedIdentity]]] = BoundedDict(
            _PODS
        )
        self._identities: BoundedDict[str, frozenset[AzureIdentity]] = BoundedDict(_UIDS)
        self._unknown_to_imds: BoundedDict[IdentityId, tuple[Source, float]] = BoundedDict(_MISSING)

    def choice(self, pod: Pod, request: TokenRequest, now: float) -> Choice:
        """Return whose token answers `request` of `pod`, or why none does. `now` is steady time."""
        if now - self._grants.grants_confirmed_at() > WATCH_TRUSTED_SECONDS:
            return Refusal(503, "what the identities of this node are has not been confirmed; ask again in a moment")
        revision = self._grants.revision_of(pod)
        if self._unknown_to_imds:
            self._drop_old_missing(now)
        entry = self._choices.get(pod.uid)
        if entry is None or entry[0] is not pod or entry[1] != revision:
            entry = self._choices[pod.uid] = (pod, revision, {})
        choice = entry[2].get(request)
        return self._decide_and_store(pod, request, revision) if choice is None else choice

    def _decide_and_store(self, pod: Pod, request: TokenRequest, revision: int) -> Choice:
        choices = self._choices[pod.uid][2]
        if len(choices) >= _REQUESTS_PER_POD:
            choices = {}
            self._choices[pod.uid] = (pod, revision, choices)
        choice = choices[request] = self._decide(pod, request)
        return choice

    def note_identity(self, uid: str, identity: AzureIdentity) -> None:
        """Note that this very pod had an identity: when it is taken away, there is nothing to wait for."""
        identities = self._identities.get(uid, _NO_IDENTITIES)
        self._identities[uid] = (identities if len(identities) < _IDENTITIES_PER_POD else _NO_IDENTITIES) | {identity}

    def note_missing(self, permission: Permission, now: float) -> bool:
        """Note that IMDS does not know the identity of `permission`; return whether the pod may wait for it.

        Where MIC has said for a while that it is there, IMDS has the last word, as with any other failure: it was
        deleted in Azure, and nobody is about to bring it.
        """
        identity = permission.identity.arm_id if permission.identity is not None else None
        if identity is None or not self._grants.decides:
            return False
        since = self._grants.there_since(identity)
        if since is not None and now - since > SETTLED_SECONDS:
            return False
        self._unknown_to_imds[identity] = permission.source, now + MISSING_SECONDS
        self._choices.clear()
        return True

    def take_missing(self, identities: Collection[IdentityId]) -> tuple[Source, ...]:
        """Return the sources of those of `identities` that IMDS did not know, and believe again that they are there."""
        return tuple(self._take(identity) for identity in tuple(self._unknown_to_imds) if identity in identities)

    def recheck_seconds(self, now: float) -> float:
        """Return after how many seconds IMDS is asked again for an identity that it did not know; infinite for none."""
        return max(min((until for _, until in self._unknown_to_imds.values()), default=_INFINITY) - now, 0.0)

    def _take(self, identity: IdentityId) -> Source:
        self._choices.clear()
        return self._unknown_to_imds.pop(identity)[0]

    def _drop_old_missing(self, now: float) -> None:
        for identity in [identity for identity, (_, until) in self._unknown_to_imds.items() if until <= now]:
            self._take(identity)

    def forget(self, uid: str) -> None:
        """Drop everything about a pod that is gone."""
        self._choices.pop(uid, None)
        self._assigned_identities.pop(uid, None)
        self._identities.pop(uid, None)

    def _decide(self, pod: Pod, request: TokenRequest) -> Choice:
        exceptions = self._grants.exceptions_in(pod.key.namespace)
        if exemptions.is_excepted(pod, exceptions) or exemptions.is_mic(pod, self._mic_namespace):
            return Permission(pod, own_source(request), None, None)
        match self._choose(pod, request):
            case IdentityChoice(identity, binding):
                source = allowed_source(identity, pod, self._source_rules)
                if isinstance(source, Refusal):
                    return source
                self.note_identity(pod.uid, identity)
                return Permission(pod, source, identity, binding)
            case NoIdentity(status, message):
                return Refusal(status, message)
            case wait:
                return wait

    def _choose(self, pod: Pod, request: TokenRequest) -> IdentityChoice | NotReady | NoIdentity:
        identities = self._identities.get(pod.uid, _NO_IDENTITIES)
        if self._managed_mode:
            return choosing.choose_bound(pod, request, self._grants.bound_to(pod), earlier_identities=identities)
        assigned_identities = self._assigned_to(pod)
        if self._grants.decides:
            # As MIC's objects have it: what was Assigned once stays so, also while Azure has lost it for a moment.
            assigned_identities = [
                replace(item, state=AssignedState.ASSIGNED) if item.identity in identities else item
                for item in assigned_identities
            ]
        return choosing.choose(
            pod,
            request,
            assigned_identities,
            earlier_identities=identities,
            missing_identities=self._unknown_to_imds,
            force_namespaced=self._force_namespaced,
        )

    def _assigned_to(self, pod: Pod) -> Sequence[AzureAssignedIdentity]:
        """Return a pod's assigned identities: found out once for all its requests, of which many may wait."""
        revision = self._grants.revision_of(pod)
        pod_then, revision_then, assigned_identities = self._assigned_identities.get(pod.uid, (None, 0, ()))
        if pod_then is not pod or revision_then != revision:
            assigned_identities = self._grants.assigned_to(pod)
            self._assigned_identities[pod.uid] = pod, revision, assigned_identities
        return assigned_identities
