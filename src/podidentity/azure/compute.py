"""The identities of a VM or scale set in ARM: read them, change them, wait until the change is done.

One document and one property are touched, so these are plain requests. Protocol: learn.microsoft.com/rest/api/compute.
`core/target/next_step` decides when.
"""

from collections.abc import Mapping
from sys import intern
from typing import Any

import httpx2

from podidentity.azure.management import Management, document
from podidentity.azure.operations import Operations
from podidentity.core.model.arm import ArmState, IdentityId, Target, parse_identity_id
from podidentity.core.target.drift import TargetChange
from podidentity.errors import AzureError

API_VERSION = "2019-12-01"
"""What upstream uses; every cloud has it."""
IDENTITY_API_VERSION = "2023-01-31"
_BUSY = {"creating", "updating"}
Json = dict[str, Any]


class Machines:
    """VMs and scale sets of one cloud."""

    def __init__(self, arm: Management) -> None:
        self._arm = arm
        self._operations = Operations(arm)

    async def get(self, target: Target) -> ArmState:
        """Read a target's state from ARM; `is_gone` when ARM has no such target. Raises AzureError."""
        try:
            answer = await self._arm.send("GET", self._url(target))
        except AzureError as error:
            if error.status == httpx2.codes.NOT_FOUND:
                return ArmState(is_gone=True)
            raise
        return read_state(document(answer))

    async def client_id(self, identity: IdentityId) -> str:
        """Return the client ID that a user-assigned identity has in ARM, in lower case. Raises AzureError."""
        url = f"{self._arm.base}{identity.text}?api-version={IDENTITY_API_VERSION}"
        properties = _object(document(await self._arm.send("GET", url)), "properties")
        return str(properties.get("clientId") or "").lower()

    async def patch(self, target: Target, change: TargetChange, state: ArmState) -> ArmState:
        """Change the identities of a target and return when ARM has done it. Raises AzureError.

        Returns the target as the answer to the PATCH describes it: with the client IDs of the identities that were
        assigned, when ARM gave them; an empty `ArmState` when the answer has no document.
        """
        answer = await self._arm.send("PATCH", self._url(target), {"identity": render_identity(change, state)})
        await self._operations.wait(f"the change of {target}", answer)
        try:
            return read_state(document(answer))
        except AzureError:
            return ArmState()

    def _url(self, target: Target) -> str:
        return f"{self._arm.base}{target.path}?api-version={API_VERSION}"


def read_state(resource: Mapping[str, Any]) -> ArmState:
    """Read a VM's or scale set's document; every field of it may be missing. Raises AzureError for another shape."""
    identity = _object(resource, "identity")
    entries = _object(identity, "userAssignedIdentities")
    client_ids_by_identity: dict[IdentityId, str] = {}
    for text in entries:
        identity_id = parse_identity_id(text)
        if identity_id is not None:
            # Shared by all targets of an identity: 50 scale sets with 2,000 identities report 100,000 client IDs.
            client_ids_by_identity[identity_id] = intern(str(_object(entries, text).get("clientId") or "").lower())
    provisioning_state = str(_object(resource, "properties").get("provisioningState", "")).lower()
    return ArmState(
        identities=frozenset(client_ids_by_identity),
        client_ids=tuple(sorted(client_ids_by_identity.items())),
        system_assigned="systemassigned" in str(identity.get("type", "")).lower(),
        has_unknown_identities=len(client_ids_by_identity) < len(entries),
        is_gone=provisioning_state == "deleting",
        is_busy=provisioning_state in _BUSY,
    )


def _object(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the object under `name`, empty when the field is missing or null. Raises AzureError for another value."""
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise AzureError(f'ARM answered with a document in which "{name}" is no object; check the address of ARM')
    return value


def render_identity(change: TargetChange, state: ArmState) -> Json:
    """Return the `identity` property of a PATCH: it names only what changes; a system-assigned identity stays."""
    system = ["SystemAssigned"] if state.system_assigned else []
    remaining = (state.identities | {*change.assign}) - {*change.unassign}
    if not (remaining or state.has_unknown_identities):
        return {"type": "SystemAssigned" if system else "None", "userAssignedIdentities": None}
    entries: Json = {identity.text: {} for identity in change.assign}
    entries |= {identity.text: None for identity in change.unassign}
    return {"type": ", ".join([*system, "UserAssigned"]), "userAssignedIdentities": entries}
