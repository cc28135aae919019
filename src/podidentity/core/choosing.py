"""Which identity answers a token request: the pod's assigned identities against what the request names.

`choose` serves standard mode, `choose_bound` managed mode; NMI and `explain` call them. The result carries its reason,
which is shown unchanged in the answer, the log and `explain`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from podidentity.core.cluster import Pod
from podidentity.core.identities import AssignedState, AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding
from podidentity.core.imds import TokenRequest
from podidentity.core.matching import Match

IDENTITY_NOT_FOUND = "Identity not found"
"""IMDS's own words; clients match them and go on with their credential chain at once."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """This identity answers, because of this binding."""

    identity: AzureIdentity
    binding: AzureIdentityBinding


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet: MIC has still to bring an assigned identity to `until`."""

    until: AssignedState
    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No identity for this request; `status` is the HTTP status of the answer."""

    status: int
    why: str


def choose(
    pod: Pod,
    asked: TokenRequest,
    assigned: Iterable[AzureAssignedIdentity],
    *,
    had: Collection[AzureIdentity] = (),
    force_namespaced: bool = False,
) -> Chosen | Wait | Refused:
    """Pick the identity that answers `asked` for `pod`, in standard mode.

    `assigned` are the objects that name the pod. They count only when their node is the pod's and the pod's label
    still matches their binding's selector: they carry no UID, and a re-created `web-0` must not inherit.
    `had` are the identities that this very pod (by UID) was given before: for those there is nothing to wait for.
    The first in binding order wins when the request names none (upstream: `pkg/nmi/standard.go`).
    """
    if not pod.selector or asked.object_id:
        return _NOT_FOUND
    counting = (one for one in assigned if _counts(pod, one, force_namespaced=force_namespaced))
    fitting = sorted((one for one in counting if _fits(one.identity, asked)), key=lambda one: one.binding.key)
    for one in fitting:
        if one.state == AssignedState.ASSIGNED:
            return Chosen(one.identity, one.binding)
    if fitting:
        return Wait(AssignedState.ASSIGNED, f"the identity of pod {pod.key} is not yet on its node")
    if any(_fits(identity, asked) for identity in had):
        return _NOT_FOUND
    return Wait(AssignedState.CREATED, f"no assigned identity for pod {pod.key}{_named(asked)}")


def choose_bound(
    pod: Pod, asked: TokenRequest, bound: Iterable[Match], *, had: Collection[AzureIdentity] = ()
) -> Chosen | Refused:
    """Pick the identity that answers `asked` for `pod`, in managed mode: from its bindings, in their order."""
    if not pod.selector or asked.object_id:
        return _NOT_FOUND
    for match in bound:
        if _fits(match.identity, asked):
            return Chosen(match.identity, match.binding)
    if any(_fits(identity, asked) for identity in had):
        return _NOT_FOUND
    return Refused(404, f"no AzureIdentityBinding gives pod {pod.key} an identity{_named(asked)}")


# Without a label there is nothing to wait for; an object ID is not known to match anything.
_NOT_FOUND = Refused(400, IDENTITY_NOT_FOUND)


def _counts(pod: Pod, one: AzureAssignedIdentity, *, force_namespaced: bool) -> bool:
    return (
        one.pod == pod.key
        and one.node == pod.node
        and one.binding.selector == pod.selector
        and one.state != AssignedState.UNASSIGNED
        and not one.deleting
        and (_in_one_namespace(pod, one) or not (force_namespaced or one.identity.namespaced))
    )


def _in_one_namespace(pod: Pod, one: AzureAssignedIdentity) -> bool:
    """MIC sees to that too; but it may run without the flag, and the object was written before a change of mind."""
    return pod.key.namespace == one.binding.key.namespace == one.identity.key.namespace


def _fits(identity: AzureIdentity, asked: TokenRequest) -> bool:
    if asked.client_id:
        return identity.client_id.lower() == asked.client_id.lower()
    if asked.resource_id:
        return identity.resource_id.lower() == asked.resource_id.lower()
    return True


def _named(asked: TokenRequest) -> str:
    if asked.client_id:
        return " with the client ID that was asked for"
    if asked.resource_id:
        return f" with resource ID {asked.resource_id}"
    return ""
