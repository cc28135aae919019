"""What must change on one VM or scale set: what is in use against what ARM says is there.

Decides for one target at a time, on the freshest state there is; `mic` sends the result as PATCHes. An identity is
removed only when all of this holds: MIC put it there, nothing uses it, and it is neither immutable nor the cluster's.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from podidentity.core.model.arm import ArmState, IdentityId, parse_identity_id
from podidentity.core.model.policy import Policy

IDENTITIES_PER_PATCH = 150
"""ARM refuses more in one request (upstream: `pkg/cloudprovider/truncate.go`)."""


@dataclass(frozen=True, slots=True)
class TargetChange:
    """The identities to put on a target and to take off, each in a fixed order."""

    assign: tuple[IdentityId, ...] = ()
    unassign: tuple[IdentityId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.assign or self.unassign)


def change(
    in_use: AbstractSet[IdentityId], assigned_by_mic: AbstractSet[IdentityId], arm_state: ArmState, policy: Policy
) -> TargetChange:
    """Return what must change. A target that is gone or being deleted needs nothing."""
    if arm_state.is_gone:
        return TargetChange()
    unremovable = protected(arm_state, policy)
    return TargetChange(
        assign=tuple(sorted(in_use - arm_state.identities)),
        unassign=tuple(sorted((assigned_by_mic & arm_state.identities) - in_use - unremovable)),
    )


def first_patch(required: TargetChange, *, separate_removals: bool) -> TargetChange:
    """Return as much as ARM takes in one PATCH, additions first: pods wait for those.

    Removals ride along when there is room, unless they are to be sent separately (`separate_removals`).
    """
    in_one = not separate_removals and len(required.assign) + len(required.unassign) <= IDENTITIES_PER_PATCH
    if in_one or not required.assign:
        return TargetChange(required.assign, required.unassign[:IDENTITIES_PER_PATCH])
    return TargetChange(required.assign[:IDENTITIES_PER_PATCH])


def protected(arm_state: ArmState, policy: Policy) -> frozenset[IdentityId]:
    """Return the identities on a target that are immutable or the cluster's own, by the client ID that ARM reports.

    azure.json may name the cluster's own by its resource ID too.
    """
    fixed = policy.immutable_client_ids | {policy.cluster_client_id}
    cluster_identity = parse_identity_id(policy.cluster_client_id)
    return (arm_state.identities & {cluster_identity}) | frozenset(
        identity for identity, client_id in arm_state.client_ids if client_id and client_id in fixed
    )
