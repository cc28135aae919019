"""A VM's identities: what ARM's document says, and what a PATCH asks for."""

import make
from podidentity.azure.compute import read_state, render_identity
from podidentity.core.model.arm import ArmState
from podidentity.core.target.drift import TargetChange

READER, WRITER = make.identity_id("reader"), make.identity_id("writer")


def test_every_field_of_a_document_may_be_missing() -> None:
    """A missing or null field is read as nothing there; upstream crashed with a nil pointer."""
    assert read_state({}) == ArmState()
    assert read_state({"identity": None, "properties": None}) == ArmState()


def test_identities_and_their_client_ids_are_read() -> None:
    """Identities and client IDs are read from ARM's document; an entry whose key is no ARM ID is skipped."""
    given = {READER.text.upper(): {"clientId": "ABC"}, "/odd": {}}
    state = read_state({"identity": {"type": "SystemAssigned, UserAssigned", "userAssignedIdentities": given}})
    assert state.identities == {READER}
    assert state.client_ids == ((READER, "abc"),)
    assert state.system_assigned


def test_a_scale_set_under_deletion_is_gone() -> None:
    """A scale set under deletion counts as gone, so that it gets no PATCH."""
    assert read_state({"properties": {"provisioningState": "Deleting"}}).is_gone


def test_only_what_changes_is_named() -> None:
    """A PATCH names only the identities that change, so that all others stay on the target."""
    asked = render_identity(TargetChange(assign=(WRITER,)), ArmState(frozenset({READER})))
    assert asked == {"type": "UserAssigned", "userAssignedIdentities": {WRITER.text: {}}}
    removed = render_identity(TargetChange(unassign=(WRITER,)), ArmState(frozenset({READER, WRITER})))
    assert removed == {"type": "UserAssigned", "userAssignedIdentities": {WRITER.text: None}}


def test_the_last_identity_leaves_and_the_system_assigned_one_stays() -> None:
    """Without user-assigned identities the type is None, or SystemAssigned where the machine has that one."""
    last = TargetChange(unassign=(READER,))
    assert render_identity(last, ArmState(frozenset({READER}))) == {"type": "None", "userAssignedIdentities": None}
    system = ArmState(frozenset({READER}), system_assigned=True)
    assert render_identity(last, system) == {"type": "SystemAssigned", "userAssignedIdentities": None}
    added = render_identity(TargetChange(assign=(READER,)), ArmState(system_assigned=True))
    assert added["type"] == "SystemAssigned, UserAssigned"
