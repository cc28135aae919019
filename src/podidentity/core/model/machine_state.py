"""What MIC tells NMI of one VM or scale set: which identities are there, and by which rules MIC assigns.

One small object for each, in MIC's namespace: MIC writes it when it changes, the NMIs of that machine watch it by its
name, so the API server offers an event to them alone. Whoever has a node knows the name, without asking anybody. The
object is a Lease that nobody holds, with annotations: no rule can name objects like these in advance, and the right to
write every ConfigMap of a namespace, or to read them, would be worth more to an attacker than that to its Leases.
"""

import hashlib
import json
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from podidentity.core.model import arm
from podidentity.core.model.arm import ArmState, IdentityId, ScaleSet, Target
from podidentity.core.model.policy import Policy
from podidentity.errors import MalformedObjectError

LABEL = "podidentity.io/machine-state"
"""On each of these objects; its value is `true`."""
MACHINE, IDENTITIES, RULES = "podidentity.io/machine", "podidentity.io/identities", "podidentity.io/rules"
"""Annotations: the path in ARM, the client IDs by resource ID without the last segment and by that one, MIC's rules."""
_NAME_CHARACTERS = 40  # of the machine's own, for people; the hash makes it unique


_ORDER = operator.attrgetter("subscription", "group", "name")
"""How identities compare; as a key, thousands are sorted in milliseconds."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """The identities on a VM or scale set with the client IDs that ARM reports ("": none), and MIC's rules."""

    client_ids: Mapping[IdentityId, str] = field(default_factory=dict)
    force_namespaced: bool = False
    allow_list: bool = False

    @property
    def arm_state(self) -> ArmState:
        """The same as MIC has it, as far as NMI must know it."""
        reports = ((identity, client_id) for identity, client_id in self.client_ids.items() if client_id)
        return ArmState(frozenset(self.client_ids), tuple(reports))


def machine_state(arm_state: ArmState, policy: Policy) -> MachineState:
    """Return what NMI is told of a target that ARM describes like this."""
    client_ids = dict(arm_state.client_ids)
    return MachineState(
        {identity: client_ids.get(identity, "") for identity in sorted(arm_state.identities, key=_ORDER)},
        policy.force_namespaced,
        policy.allow_list,
    )


def published_target(node_name: str, provider_id: str) -> Target:
    """Return by what a node's object is named: without an Azure provider ID by the node alone.

    NMI does not have azure.json, which says where such a node lies.
    """
    return arm.target_of(node_name, provider_id, "", "")


def object_name(target: Target) -> str:
    """Return the name of a target's object: readable, and unique for subscription, group and name."""
    kind = "vmss" if isinstance(target, ScaleSet) else "vm"
    place = f"{kind}/{target.subscription}/{target.group}/{target.name}"
    readable = re.sub(r"[^a-z0-9]+", "-", target.name)[:_NAME_CHARACTERS].strip("-")
    digest = hashlib.sha256(place.encode()).hexdigest()[:16]
    return "-".join(filter(None, ("podidentity", kind, readable, digest)))


def render_annotations(state: MachineState, path: str) -> dict[str, str]:
    """Return the object's annotations, of which it may have 256 KiB: groups are written once. `path` is for people."""
    groups: dict[str, dict[str, str]] = {}
    for identity, client_id in state.client_ids.items():
        group, _, name = identity.text.rpartition("/")
        groups.setdefault(group, {})[name] = client_id
    rules = {"forceNamespaced": state.force_namespaced, "namespaceAllowList": state.allow_list}
    return {
        MACHINE: path,
        IDENTITIES: json.dumps(groups, separators=(",", ":"), sort_keys=True),
        RULES: json.dumps(rules, sort_keys=True),
    }


def parse_annotations(annotations: Mapping[str, str]) -> MachineState:
    """Return what an object's annotations say. Raises MalformedObjectError: half of the truth would be a guess."""
    try:
        groups: Mapping[str, Mapping[str, Any]] = json.loads(annotations[IDENTITIES])
        rules = json.loads(annotations[RULES])
        client_ids = {
            arm.parse_identity_id(f"{group}/{name}"): str(client_id)
            for group, names in groups.items()
            for name, client_id in names.items()
        }
        return MachineState(
            {identity: client_id for identity, client_id in client_ids.items() if identity is not None},
            force_namespaced=rules["forceNamespaced"] is not False,
            allow_list=rules["namespaceAllowList"] is not False,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise MalformedObjectError(
            f"its annotations are not what MIC writes ({error!r}); delete it, and MIC writes it anew"
        ) from None
