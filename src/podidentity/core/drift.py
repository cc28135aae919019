"""What must change on one VM or scale set: what is in use against what ARM says is there.

Decides for one target at a time, on the freshest state there is; `mic` sends the result as PATCHes. An identity is
removed only when all of this holds: MIC put it there, nothing uses it, and it is neither immutable nor the cluster's.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from podidentity.core.arm import IdentityId, TargetState
from podidentity.core.assigning import Policy

IDENTITIES_PER_PATCH = 150
"""ARM refuses more in one request (upstream: `pkg/cloudprovider/truncate.go`)."""


@dataclass(frozen=True, slots=True)
class Change:
    """What to put on a target and what to take off, each in a fixed order."""

    assign: tuple[IdentityId, ...] = ()
    unassign: tuple[IdentityId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.assign or self.unassign)


def change(in_use: AbstractSet[IdentityId], put: AbstractSet[IdentityId], state: TargetState, policy: Policy) -> Change:
    """Say what must change. A target that is gone, or going, needs nothing."""
    if state.gone:
        return Change()
    kept = protected(state, policy)
    return Change(
        assign=tuple(sorted(in_use - state.identities)),
        unassign=tuple(sorted((put & state.identities) - in_use - kept)),
    )


def first_patch(wanted: Change, *, apart: bool) -> Change:
    """Cut what ARM takes in one PATCH, additions first: a pod waits for those.

    Removals ride along when there is room, unless they are to be kept `apart`.
    """
    together = not apart and len(wanted.assign) + len(wanted.unassign) <= IDENTITIES_PER_PATCH
    if together or not wanted.assign:
        return Change(wanted.assign, wanted.unassign[:IDENTITIES_PER_PATCH])
    return Change(wanted.assign[:IDENTITIES_PER_PATCH])


def protected(state: TargetState, policy: Policy) -> frozenset[IdentityId]:
    """Name the identities on a target that are immutable or the cluster's own, by the client ID that ARM tells.

    azure.json may name the cluster's own by its resource ID too.
    """
    fixed = policy.immutable_client_ids | {policy.cluster_client_id}
    own = frozenset(one for one in state.identities if one.text.lower() == policy.cluster_client_id)
    return own | frozenset(identity for identity, client_id in state.client_ids if client_id and client_id in fixed)
