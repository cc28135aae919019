"""The record of what MIC put where, as text: readable while it is small, within a ConfigMap when it is large."""

import json

import pytest

import make
from podidentity.mic.ports import Put  # noqa: TC001  # one style of import for values
from podidentity.mic.records import read_record, render_record

POLICY = make.policy()


def test_a_small_record_is_for_people() -> None:
    """Paths and resource IDs, as Azure writes them."""
    put: Put = {make.target(): frozenset({make.identity_id("reader")})}
    assert json.loads(render_record(put)) == {make.target().path: [make.resource_id("reader")]}
    assert read_record(render_record(put), POLICY) == put


def test_a_large_record_fits_a_configmap() -> None:
    """20 scale sets with 400 of a thousand identities each; a ConfigMap holds 1 MiB."""
    every = [make.identity_id(f"identity-of-application-{number:04}", "a-resource-group") for number in range(1000)]
    put: Put = {make.target(f"ss-{number}"): frozenset(every[number::2][:400]) for number in range(20)}
    text = render_record(put)
    assert len(text) < 512 * 1024
    assert read_record(text, POLICY) == put


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"/x": 3}', '{"identities": [], "targets": {"/x": [7]}}'])
def test_what_is_no_record_is_never_guessed(text: str) -> None:
    """A guess could take identities from pods."""
    with pytest.raises((ValueError, LookupError, AttributeError, TypeError)):
        read_record(text, POLICY)
