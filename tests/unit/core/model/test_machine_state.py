"""What MIC publishes of a machine for NMI: its name, its form, and what cannot be read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import make
from podidentity.core.model import arm, machine_state
from podidentity.core.model.machine_state import IDENTITIES, RULES, MachineState
from podidentity.errors import MalformedObjectError

CLIENT_IDS = st.dictionaries(
    st.builds(make.identity_id, st.sampled_from("abc"), st.sampled_from(["apps", "more"])),
    st.sampled_from(["", "11111111-1111-1111-1111-111111111111"]),
)


@given(st.builds(MachineState, CLIENT_IDS, st.booleans(), st.booleans()))
def test_what_is_written_is_read(state: MachineState) -> None:
    """The annotations hold everything, including identities for which ARM reports no client ID."""
    assert machine_state.parse_annotations(machine_state.render_annotations(state, "path")) == state


def test_what_arm_says_comes_through() -> None:
    """NMI has the identities and client IDs that ARM reported, and MIC's rules."""
    state = machine_state.machine_state(make.state("b", "a"), make.policy(force_namespaced=True))
    assert state.arm_state.identities == make.state("a", "b").identities
    assert arm.client_ids([state.arm_state]) == arm.client_ids([make.state("a", "b")])
    assert (state.force_namespaced, state.allow_list) == (True, False)


def test_two_thousand_identities_fit() -> None:
    """An object has room for 256 KiB of annotations."""
    names = [f"identity-of-an-application-{number:04}" for number in range(2000)]
    client_id = "11111111-1111-1111-1111-111111111111"
    state = MachineState({make.identity_id(name): client_id for name in names})
    assert sum(map(len, machine_state.render_annotations(state, "path").values())) < 256 * 1024


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {IDENTITIES: "{}"},
        {IDENTITIES: "[]", RULES: "{}"},
        {IDENTITIES: "{", RULES: "{}"},
        {IDENTITIES: '{"group": 7}', RULES: '{"forceNamespaced": false, "namespaceAllowList": false}'},
    ],
)
def test_half_of_it_is_nothing(annotations: dict[str, str]) -> None:
    """An object that lacks a part or has another form is an error that says to delete it."""
    with pytest.raises(MalformedObjectError, match="delete it"):
        machine_state.parse_annotations(annotations)


def test_a_rule_that_is_not_clearly_off_is_on() -> None:
    """A rule whose value is not understood is on, so that nothing is allowed by mistake.

    A malformed identity ID is left out.
    """
    read = machine_state.parse_annotations(
        {IDENTITIES: '{"/a": {"b": "c"}}', RULES: '{"forceNamespaced": "no", "namespaceAllowList": 0}'}
    )
    assert read == MachineState({}, force_namespaced=True, allow_list=True)


def test_each_machine_has_a_name_of_its_own() -> None:
    """Names differ by subscription, group and kind, and not by case.

    A node without a provider ID of Azure has its object by its own name.
    """
    names = [
        machine_state.object_name(target)
        for target in (
            arm.scale_set("s", "g", "aks-pool_1.vmss"),
            arm.scale_set("s", "h", "aks-pool_1.vmss"),
            arm.virtual_machine("s", "g", "aks-pool_1.vmss"),
            machine_state.published_target("n1", ""),
            machine_state.published_target("n2", "kind://docker/n2"),
            machine_state.published_target("n1", make.node("n1").provider_id),
        )
    ]
    assert len(set(names)) == len(names)
    assert names[0] == machine_state.object_name(arm.scale_set("S", "G", "AKS-pool_1.vmss"))
    assert names[0].startswith("podidentity-vmss-aks-pool-1-vmss-")
    assert machine_state.object_name(arm.scale_set("s", "g", "___")).startswith("podidentity-vmss-")
    assert len(machine_state.object_name(arm.scale_set("s", "g", "x" * 200))) < 100
