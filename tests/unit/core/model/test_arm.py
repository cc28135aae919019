"""ARM IDs compare without case and keep what was written."""

import pytest

import make
from podidentity.core.model import arm

SCALE_SET_NODE = (
    "azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachineScaleSets/N/virtualMachines/0"
)


@pytest.mark.parametrize("text", [make.resource_id("reader"), make.resource_id("reader").upper()])
def test_identity_ids_compare_without_case(text: str) -> None:
    """IDs compare without case and keep their spelling; az writes both `resourcegroups` and `resourceGroups`."""
    result = arm.parse_identity_id(text)
    assert result == make.identity_id("reader")
    assert str(result) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reader",
        make.resource_id("reader") + "/x",
        make.resource_id("a/b"),
        make.resource_id("a\\b"),
        " " + make.resource_id("r"),
        make.resource_id(""),
    ],
)
def test_anything_else_is_no_identity_id(text: str) -> None:
    """A malformed ID is refused rather than guessed at."""
    assert arm.parse_identity_id(text) is None


def test_resource_groups_with_dots_and_parentheses_are_read() -> None:
    """Names of resource groups with dots and parentheses are read; upstream's pattern missed these characters."""
    assert arm.parse_identity_id(make.resource_id("reader", group="team.(x)_1")) is not None


def test_a_node_of_a_scale_set_is_the_scale_set() -> None:
    """Identities are assigned to the scale set, not to its instance."""
    target = arm.target_of("n1", SCALE_SET_NODE, "", "")
    assert target == arm.scale_set("s", "g", "n")
    assert target.path == "/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachineScaleSets/N"
    assert str(target) == "scale set n"


def test_a_node_that_is_a_vm_is_the_vm() -> None:
    """The provider ID of a single VM leads to that VM."""
    provider_id = "azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/N"
    target = arm.target_of("n1", provider_id, "", "")
    assert target == arm.virtual_machine("s", "g", "n")
    assert target.path.endswith("/virtualMachines/N")
    assert str(target) == "VM n"


@pytest.mark.parametrize("provider_id", ["", "kind://docker/x", "aws:///eu/i-1"])
def test_a_foreign_provider_id_means_a_vm_named_like_the_node(provider_id: str) -> None:
    """A node with another provider ID, or none, is a VM of the node's name, as in upstream."""
    assert arm.target_of("Node-1", provider_id, "S", "G") == arm.virtual_machine("s", "g", "node-1")


def test_arm_tells_client_ids() -> None:
    """A target lists client IDs; an identity that was deleted in Azure is still listed, without one."""
    silent = arm.ArmState(client_ids=((make.identity_id("gone"), ""),))
    assert arm.client_ids([make.state("reader"), silent]) == {make.identity_id("reader"): "client-of-reader"}


def test_a_look_alike_is_not_somebodys_identity() -> None:
    """An ID with the Kelvin sign is not that with a `k`: a tenant's ID must not take another's place in a plan."""
    kelvin = arm.parse_identity_id(make.resource_id("\u212aeys"))
    assert kelvin is not None
    assert kelvin != make.identity_id("keys")
    assert arm.parse_identity_id(make.resource_id("keys", "GR\u00d6\u00dfe")) == make.identity_id(
        "keys", "gr\u00f6\u00dfe"
    )


@pytest.mark.parametrize("lookalike", ["\u212a", "\u2126", "\u212b", "\u0130", "\u017f", "\u0131", "\u1e9e"])
def test_no_letter_takes_anothers_place(lookalike: str) -> None:
    """Kelvin, Ohm and Angstrom signs, Turkish i's, the long s and capital sharp s remain letters of their own."""
    others = {lookalike.lower(), lookalike.upper(), lookalike.casefold()} - {lookalike}
    assert arm.fold_case(lookalike) not in {arm.fold_case(other) for other in others}


@pytest.mark.parametrize("text", ["Reader", "GR\u00d6\u00dfE", "\u041f\u043e\u0434"])
def test_both_cases_of_a_letter_are_one(text: str) -> None:
    """Upper and lower case of a letter are equal, in ASCII and beyond."""
    assert arm.fold_case(text) == arm.fold_case(text.lower()) == text.lower()


def test_an_id_that_is_too_long_is_none() -> None:
    """An ID longer than ARM's, which have some 350 characters, is refused: every ID is remembered."""
    assert arm.parse_identity_id(make.resource_id("r" * 1000)) is None
