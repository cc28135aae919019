"""What must change on one VM or scale set: what is in use against what ARM says is there.

Decides for one target at a time, on the freshest state there is; `mic` sends the result as PATCHes. An identity is
removed only when all of this holds: MIC put it there, nothing uses it, and it is neither immutable nor the cluster's.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

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
    kept = _protected(state, policy)
    return Change(
        assign=tuple(sorted(in_use - state.identities)),
        unassign=tuple(sorted((put & state.identities) - in_use - kept)),
    )


def patches(wanted: Change) -> Iterator[Change]:
    """Cut a change into what ARM takes in one PATCH, additions first: a pod waits for those."""
    for assign in _chunks(wanted.assign):
        yield Change(assign=assign)
    for unassign in _chunks(wanted.unassign):
        yield Change(unassign=unassign)


def _chunks(identities: Iterable[IdentityId]) -> Iterator[tuple[IdentityId, ...]]:
    remaining = iter(identities)
    while chunk := tuple(islice(remaining, IDENTITIES_PER_PATCH)):
        yield chunk


def _protected(state: TargetState, policy: Policy) -> frozenset[IdentityId]:
    """Identities whose client ID, as ARM tells it, is immutable or the cluster's own."""
    protected = policy.immutable_client_ids | {policy.cluster_client_id}
    return frozenset(identity for identity, client_id in state.client_ids if client_id and client_id in protected)
