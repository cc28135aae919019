"""The record of what MIC assigned, as text: readable while small, within a ConfigMap's limit when large."""

import json

import pytest

import make
from podidentity.mic.adapters.records import parse_record, render_in_steps, render_record
from podidentity.mic.ports import AssignedByMic  # noqa: TC001  # one style of import for values

POLICY = make.policy()


def test_a_small_record_is_for_people() -> None:
    """A small record has paths and resource IDs as Azure writes them."""
    assigned_by_mic: AssignedByMic = {make.target(): frozenset({make.identity_id("reader")})}
    assert json.loads(render_record(assigned_by_mic)) == {make.target().path: [make.resource_id("reader")]}
    assert parse_record(render_record(assigned_by_mic), POLICY) == assigned_by_mic


def test_a_large_record_fits_a_configmap() -> None:
    """A record of 20 scale sets with 400 identities each takes half of a ConfigMap's 1 MiB."""
    identities = [
        make.identity_id(f"identity-of-application-{number:04}", "a-resource-group") for number in range(1000)
    ]
    assigned_by_mic: AssignedByMic = {
        make.target(f"ss-{number}"): frozenset(identities[number::2][:400]) for number in range(20)
    }
    text = render_record(assigned_by_mic)
    assert len(text) < 512 * 1024
    assert parse_record(text, POLICY) == assigned_by_mic


def test_a_large_record_is_made_in_steps() -> None:
    """It is made in at least a step for each target: writes and probes have their turn in between."""
    assigned_by_mic: AssignedByMic = {
        make.target(f"ss-{number}"): frozenset(make.identity_id(f"identity-{serial}") for serial in range(400))
        for number in range(20)
    }
    assert sum(1 for _ in render_in_steps(assigned_by_mic)) >= len(assigned_by_mic)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"/x": 3}', '{"identities": [], "targets": {"/x": [7]}}'])
def test_what_is_no_record_is_never_guessed(text: str) -> None:
    """Any other text raises an error: a guess could remove identities that pods use."""
    with pytest.raises((ValueError, LookupError, AttributeError, TypeError)):
        parse_record(text, POLICY)
