"""The settings of an installation that decisions depend on."""

from dataclasses import dataclass
from enum import StrEnum

from podidentity.core.model import arm
from podidentity.core.model.arm import Target
from podidentity.core.model.snapshot import Node


class ConditionLevel(StrEnum):
    """Which conditions are written. Each write makes a new version: whoever writes the object back meets it."""

    ALL = "all"
    PROBLEMS = "problems"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that decisions depend on; built once from MIC's flags and azure.json.

    `immutable_client_ids` and `cluster_client_id` (lower case) are never unassigned. `subscription` and `group` say
    where a node without an Azure provider ID lies.
    """

    force_namespaced: bool = False
    immutable_client_ids: frozenset[str] = frozenset()
    cluster_client_id: str = ""
    subscription: str = ""
    group: str = ""
    allow_list: bool = False
    """Whether namespaces must be allowed the identities that they name (`Snapshot.allow_list`)."""
    assign_on_binding: bool = False
    """Whether a binding's identity goes on the targets before the first pod."""

    def target_of(self, node: Node) -> Target:
        """Return the VM or scale set that a node is."""
        return arm.target_of(node.name, node.provider_id, self.subscription, self.group)
