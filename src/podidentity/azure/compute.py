"""The identities of a VM or scale set in ARM: read them, change them, wait until the change is done.

One document and one property are touched, so these are plain requests. Protocol: learn.microsoft.com/rest/api/compute.
When to ask is decided by `core.keeping`.
"""

from collections.abc import Mapping
from typing import Any

import httpx2

from podidentity.azure.management import Management, document
from podidentity.azure.operations import Operations
from podidentity.core.arm import IdentityId, Target, TargetState, parse_identity_id
from podidentity.core.drift import Change
from podidentity.errors import AzureError

API_VERSION = "2019-12-01"
"""What upstream uses; every cloud has it."""
_BUSY = {"creating", "updating"}
Json = dict[str, Any]


class Machines:
    """VMs and scale sets of one cloud."""

    def __init__(self, arm: Management) -> None:
        self._arm = arm
        self._operations = Operations(arm)

    async def get(self, target: Target) -> TargetState:
        """Read what a target carries; one that does not exist is `gone`. Raises AzureError."""
        try:
            answer = await self._arm.send("GET", self._url(target))
        except AzureError as error:
            if error.status == httpx2.codes.NOT_FOUND:
                return TargetState(gone=True)
            raise
        return read_state(document(answer))

    async def patch(self, target: Target, change: Change, state: TargetState) -> TargetState:
        """Change what a target carries and return when ARM has done it. Raises AzureError.

        Returns what the answer to the PATCH said: with the client IDs of what was put there, when ARM told them.
        """
        answer = await self._arm.send("PATCH", self._url(target), {"identity": render_identity(change, state)})
        await self._operations.wait(f"the change of {target}", answer)
        try:
            return read_state(document(answer))
        except AzureError:
            return TargetState()

    def _url(self, target: Target) -> str:
        return f"{self._arm.base}{target.path}?api-version={API_VERSION}"


def read_state(shown: Mapping[str, Any]) -> TargetState:
    """Read a VM's or scale set's document; every field of it may be missing. Raises AzureError for another shape."""
    identity = _object(shown, "identity")
    carried = _object(identity, "userAssignedIdentities")
    found: dict[IdentityId, str] = {}
    for text in carried:
        parsed = parse_identity_id(text)
        if parsed is not None:
            found[parsed] = str(_object(carried, text).get("clientId") or "").lower()
    doing = str(_object(shown, "properties").get("provisioningState", "")).lower()
    return TargetState(
        identities=frozenset(found),
        client_ids=tuple(sorted(found.items())),
        system_assigned="systemassigned" in str(identity.get("type", "")).lower(),
        others=len(found) < len(carried),
        gone=doing == "deleting",
        busy=doing in _BUSY,
    )


def _object(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Read what must be an object if it is there: to take anything else for an empty one would be to guess."""
    found = holder.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise AzureError(f'ARM answered with a document in which "{name}" is no object; is that ARM?')
    return found


def render_identity(change: Change, state: TargetState) -> Json:
    """Write the property that a PATCH sets: only what changes is named, a system-assigned identity stays."""
    system = ["SystemAssigned"] if state.system_assigned else []
    remaining = (state.identities | {*change.assign}) - {*change.unassign}
    if not (remaining or state.others):
        return {"type": "SystemAssigned" if system else "None", "userAssignedIdentities": None}
    named: Json = {identity.text: {} for identity in change.assign}
    named |= {identity.text: None for identity in change.unassign}
    return {"type": ", ".join([*system, "UserAssigned"]), "userAssignedIdentities": named}
