"""Identities that are on a target although no pod uses them now: before the first pod, and for a while after the last.

`preassigned` returns what `--assign-on=binding` puts on targets before any pod, `retained` adds what `--unassign-delay`
keeps. Neither gives a pod access: that takes an assigned identity.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from podidentity.core.model import label_selector, matching, steps
from podidentity.core.model.arm import IdentityId, ScaleSet, Target
from podidentity.core.model.label_selector import BadSelector
from podidentity.core.model.matching import Unusable
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Snapshot
from podidentity.core.model.steps import Steps

InUse = Mapping[Target, frozenset[IdentityId]]
IdleSince = Mapping[tuple[Target, IdentityId], float]
"""Since when nothing uses an identity that MIC put on a target, in seconds of the caller's clock."""


def preassigned(snapshot: Snapshot, policy: Policy) -> Steps[Mapping[Target, set[IdentityId]]]:
    """Return what bindings put on each target before any pod; nothing unless identities are assigned on binding.

    A binding without a node selector puts its identity on every scale set of the cluster, but on no single VM; one with
    a selector, on each target with a node that matches.
    """
    promises: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    if not policy.assign_on_binding:
        return promises
    by_selector: defaultdict[str, set[IdentityId]] = defaultdict(set)
    permissions = snapshot.allow_list if policy.allow_list else None
    for bindings in steps.parts(snapshot.bindings):
        for binding in bindings:
            result = matching.usable(binding, snapshot.identities, permissions)
            if binding.selector and not isinstance(result, Unusable) and result.arm_id is not None:
                by_selector[binding.node_selector].add(result.arm_id)
        yield
    for selector, identities in by_selector.items():
        for target in (yield from _targets(selector, snapshot, policy)):
            promises[target] |= identities
    return promises


@dataclass(frozen=True, slots=True)
class Retention:
    """The identities to keep on each target, since when each is idle, and the seconds until the next is due."""

    in_use: InUse
    idle_since: IdleSince
    due_seconds: float | None


def retained(
    in_use: InUse, assigned_by_mic: InUse, idle_since: IdleSince, now: float, delay_seconds: float
) -> Retention:
    """Return `in_use` with what MIC put on targets and nothing has used for less than `delay_seconds`.

    What is first seen idle is idle since now: a restart, or a new leader, begins the delay anew.
    """
    idle = {
        (target, identity): idle_since.get((target, identity), now)
        for target, identities in assigned_by_mic.items()
        for identity in identities - in_use.get(target, frozenset())
    }
    delayed: defaultdict[Target, set[IdentityId]] = defaultdict(set)
    for (target, identity), since in idle.items():
        if since + delay_seconds > now:
            delayed[target].add(identity)
    due_seconds = min(
        (idle[target, identity] + delay_seconds - now for target in delayed for identity in delayed[target]),
        default=None,
    )
    targets = {*in_use, *delayed}
    return Retention(
        {target: in_use.get(target, frozenset()) | delayed.get(target, set()) for target in targets}, idle, due_seconds
    )


def _targets(selector: str, snapshot: Snapshot, policy: Policy) -> Steps[set[Target]]:
    parsed_selector = label_selector.parse_selector(selector)
    if isinstance(parsed_selector, BadSelector):
        return set()
    targets: set[Target] = set()
    for nodes in steps.parts(snapshot.nodes.values()):
        targets.update(policy.target_of(node) for node in nodes if parsed_selector.selects(node.labels))
        yield
    return targets if selector else {target for target in targets if isinstance(target, ScaleSet)}
