"""Identities that are on a target although no pod uses them now: before the first pod, and for a while after the last.

`promised` is what `--assign-on=binding` puts on targets before any pod, `lingering` what `--unassign-delay` keeps.
Neither gives a pod anything: that takes an assigned identity. Used by `planning` and `mic.sync`.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from podidentity.core import arm, matching, selecting
from podidentity.core.arm import IdentityId, ScaleSet, Target
from podidentity.core.assigning import Policy
from podidentity.core.cluster import Node, Snapshot
from podidentity.core.matching import Unusable
from podidentity.core.selecting import BadSelector

InUse = Mapping[Target, frozenset[IdentityId]]
IdleSince = Mapping[tuple[Target, IdentityId], float]
"""Since when nothing uses an identity that MIC put on a target, in seconds of the caller's clock."""


def target_of(node: Node, policy: Policy) -> Target:
    """Say which VM or scale set a node is."""
    return arm.target_of(node.name, node.provider_id, policy.subscription, policy.group)


def promised(snapshot: Snapshot, policy: Policy) -> Mapping[Target, set[IdentityId]]:
    """Say what the bindings promise to which targets; nothing unless identities are assigned on binding.

    A binding without a node selector promises its identity to every scale set of the cluster, but to no single VM; one
    with a selector, to each target with a node that matches.
    """
    promises: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    if not policy.assign_on_binding:
        return promises
    by_selector: defaultdict[str, set[IdentityId]] = defaultdict(set)
    for binding in snapshot.bindings:
        found = matching.usable(binding, snapshot.identities, snapshot.allowed if policy.allow_list else None)
        if binding.selector and not isinstance(found, Unusable) and found.arm_id is not None:
            by_selector[binding.node_selector].add(found.arm_id)
    for selector, identities in by_selector.items():
        for target in _targets(selector, snapshot, policy):
            promises[target] |= identities
    return promises


@dataclass(frozen=True, slots=True)
class Kept:
    """What to keep on each target, since when it is idle, and in how many seconds the next one is due (None: never)."""

    in_use: InUse
    idle_since: IdleSince
    due_seconds: float | None


def lingering(in_use: InUse, put: InUse, idle_since: IdleSince, now: float, delay_seconds: float) -> Kept:
    """Add to `in_use` what MIC put and nothing has used for less than `delay_seconds`.

    What is first seen idle is idle since now: a restart, or a new leader, begins the delay anew.
    """
    idle = {
        (target, identity): idle_since.get((target, identity), now)
        for target, identities in put.items()
        for identity in identities - in_use.get(target, frozenset())
    }
    kept: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    for (target, identity), since in idle.items():
        if since + delay_seconds > now:
            kept[target].add(identity)
    due = min((idle[target, one] + delay_seconds - now for target in kept for one in kept[target]), default=None)
    targets = {*in_use, *kept}
    return Kept({one: in_use.get(one, frozenset()) | kept.get(one, set()) for one in targets}, idle, due)


def _targets(selector: str, snapshot: Snapshot, policy: Policy) -> set[Target]:
    wanted = selecting.parse_selector(selector)
    if isinstance(wanted, BadSelector):
        return set()
    targets = {target_of(node, policy) for node in snapshot.nodes.values() if wanted.selects(node.labels)}
    return targets if selector else {target for target in targets if isinstance(target, ScaleSet)}
