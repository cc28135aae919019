"""Which identity answers a token request: the pod's assigned identities against what the request names.

`choose` serves standard mode, `choose_bound` managed mode. The result carries its reason,
which is shown unchanged in the answer, the log and `explain`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from podidentity.core.model.arm import IdentityId, fold_case
from podidentity.core.model.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.core.model.matching import Match
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.imds import TokenRequest

IDENTITY_NOT_FOUND = "Identity not found"
"""IMDS's own words; clients match them and go on with their credential chain at once."""


@dataclass(frozen=True, slots=True)
class IdentityChoice:
    """This identity answers, because of this binding."""

    identity: AzureIdentity
    binding: AzureIdentityBinding


@dataclass(frozen=True, slots=True)
class NotReady:
    """No identity yet: MIC has still to bring an assigned identity to the state `until`."""

    until: AssignedState
    message: str


@dataclass(frozen=True, slots=True)
class NoIdentity:
    """No identity for this request; `status` is the HTTP status of the answer."""

    status: int
    message: str


def choose(
    pod: Pod,
    request: TokenRequest,
    assigned_identities: Iterable[AzureAssignedIdentity],
    *,
    earlier_identities: Collection[AzureIdentity] = (),
    missing_identities: Collection[IdentityId] = (),
    force_namespaced: bool = False,
) -> IdentityChoice | NotReady | NoIdentity:
    """Return the identity that answers `request` for `pod`, in standard mode.

    `assigned_identities` are the objects that name the pod. They count only when their node is the pod's and the pod's
    label still matches their binding's selector: they carry no UID, and a re-created `web-0` must not inherit.
    `earlier_identities` are those that this very pod (by UID) was given before: for them there is nothing to wait for.
    `missing_identities` are those that IMDS said a moment ago are not on the machine: they count as not yet assigned.
    The first in binding order wins when the request names none (upstream: `pkg/nmi/standard.go`), those of the pod's
    own namespace before all others: nobody elsewhere can step in front of a pod's identity.
    """
    if not pod.selector or request.object_id:
        return _NOT_FOUND
    counting = (item for item in assigned_identities if _counts(pod, item, force_namespaced=force_namespaced))
    fitting = sorted(
        (item for item in counting if _fits(item.identity, request)), key=lambda item: _order(pod, item.binding)
    )
    for item in fitting:
        if item.state == AssignedState.ASSIGNED and item.identity.arm_id not in missing_identities:
            return IdentityChoice(item.identity, item.binding)
    if fitting:
        return NotReady(AssignedState.ASSIGNED, f"the identity of pod {pod.key} is not yet on its node")
    if any(_fits(identity, request) for identity in earlier_identities):
        return _NOT_FOUND
    return NotReady(AssignedState.CREATED, f"no assigned identity for pod {pod.key}{_criterion(request)}")


def choose_bound(
    pod: Pod, request: TokenRequest, bound: Iterable[Match], *, earlier_identities: Collection[AzureIdentity] = ()
) -> IdentityChoice | NoIdentity:
    """Return the identity that answers `request` for `pod`, in managed mode: from its bindings, in their order."""
    if not pod.selector or request.object_id:
        return _NOT_FOUND
    for match in sorted(bound, key=lambda match: _order(pod, match.binding)):
        if _fits(match.identity, request):
            return IdentityChoice(match.identity, match.binding)
    if any(_fits(identity, request) for identity in earlier_identities):
        return _NOT_FOUND
    return NoIdentity(404, f"no AzureIdentityBinding gives pod {pod.key} an identity{_criterion(request)}")


# Without a label there is nothing to wait for; an object ID is not known to match anything.
_NOT_FOUND = NoIdentity(400, IDENTITY_NOT_FOUND)


def _counts(pod: Pod, item: AzureAssignedIdentity, *, force_namespaced: bool) -> bool:
    return (
        item.pod == pod.key
        and item.node == pod.node
        and item.binding.selector == pod.selector
        and item.state != AssignedState.UNASSIGNED
        and not item.deleting
        and (_in_one_namespace(pod, item) or not (force_namespaced or item.identity.namespaced))
    )


def _order(pod: Pod, binding: AzureIdentityBinding) -> tuple[bool, ObjectKey]:
    return binding.key.namespace != pod.key.namespace, binding.key


def _in_one_namespace(pod: Pod, item: AzureAssignedIdentity) -> bool:
    """MIC sees to that too; but it may run without the flag, and the object was written before a change of mind."""
    return pod.key.namespace == item.binding.key.namespace == item.identity.key.namespace


def _fits(identity: AzureIdentity, request: TokenRequest) -> bool:
    if request.client_id:
        return identity.client_id.lower() == request.client_id.lower()
    if request.resource_id:
        return fold_case(identity.resource_id) == fold_case(request.resource_id)
    return True


def _criterion(request: TokenRequest) -> str:
    if request.client_id:
        return " with the client ID that was asked for"
    if request.resource_id:
        return f" with resource ID {request.resource_id}"
    return ""
