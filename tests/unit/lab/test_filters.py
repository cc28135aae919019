"""The `$filter` of ARM's lists: what it compares, how, and what is refused."""

import pytest

from podidentity_lab.azure import answers, filters

RESOURCE = {
    "id": "/subscriptions/s/resourceGroups/shop/providers/Microsoft.KeyVault/vaults/it's",
    "name": "it's",
    "type": "Microsoft.KeyVault/vaults",
    "location": "westeurope",
    "tags": {"env": "Prod", "team": "web and mail"},
}


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("", True),
        ("name eq 'IT''S'", True),
        ("name ne 'it''s'", False),
        ("resourceType eq 'microsoft.keyvault/vaults' and location eq 'westeurope'", True),
        ("resourceType eq 'microsoft.keyvault/vaults' and location eq 'eastus'", False),
        ("resourceGroup eq 'SHOP'", True),
        ("substringof('t''', name)", True),
        ("startswith(tagName, 'te')", True),
        ("startswith(name, 's')", False),
        ("tagName eq 'ENV' and tagValue eq 'Prod'", True),
        ("tagname eq 'env' and tagvalue eq 'prod'", False),
        ("tagName eq 'env' and tagValue eq 'web and mail'", False),
        ("tagValue eq 'web and mail'", True),
        ("(name eq 'it''s')", True),
    ],
)
def test_a_filter_is_a_conjunction_of_comparisons(condition: str, *, fits: bool) -> None:
    """Names compare without case, values of tags with case; a value belongs to the tag that the filter names."""
    assert filters.matches(filters.parse(condition), RESOURCE) is fits


def test_a_resource_without_tags_and_group_fits_no_comparison_of_them() -> None:
    """A resource without tags or resource group matches no comparison of those."""
    assert not filters.matches(filters.parse("tagName eq 'env'"), {"id": "/subscriptions/s", "tags": None})
    assert not filters.matches(filters.parse("resourceGroup eq 'shop'"), {"id": "/subscriptions/s"})


@pytest.mark.parametrize("condition", ["plan/name eq 'x'", "name gt 'a'", "name eq 'a' or name eq 'b'", "plan eq 'x'"])
def test_what_the_lab_does_not_know_is_refused(condition: str) -> None:
    """An unknown filter is refused: ignored, it would list resources that nobody asked for."""
    with pytest.raises(answers.Refusal) as refusal:
        filters.parse(condition)
    assert refusal.value.response.status_code == 400
    assert b"InvalidFilterInQueryString" in bytes(refusal.value.response.body)


@pytest.mark.parametrize(
    "condition",
    ["name eq 'a'" + " " * 100_000 + "x", "a and " * 20_000, "'" * 99_999, "' and " * 20_001, "''and" * 9999],
)
def test_long_conditions_are_read_once(condition: str) -> None:
    """Spaces, quotes without an end and many comparisons take no longer than their length."""
    with pytest.raises(answers.Refusal):
        filters.parse(condition)


def test_quotes_hide_what_is_in_them() -> None:
    """Doubled quotes belong to the text; an `and` needs space on both sides."""
    assert filters.conjuncts("a eq 'x and y' AND b eq '' and c eq 'it''s and' and d") == [
        "a eq 'x and y'",
        "b eq ''",
        "c eq 'it''s and'",
        "d",
    ]
    assert filters.conjuncts("brand eq 'x'and'y'") == ["brand eq 'x'and'y'"]
