"""What `doctor` checks of a role is what the manifests grant: two tables, made for two readers, that must not drift."""

from collections.abc import Iterable
from typing import Any

import pytest
from deployment import rights

from podidentity.core import diagnosing
from podidentity.core.diagnosing import Right

Granted = set[tuple[str, str, str]]


def granted(rules: Iterable[dict[str, Any]]) -> Granted:
    """Verb, group and resource of each right in a role."""
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def checked(asked: Iterable[Right], *, home: bool) -> Granted:
    """The same of what `doctor` asks about, everywhere or in the daemon's own namespace."""
    return {(one.verb, one.group, one.resource) for one in asked if one.home == home}


@pytest.mark.parametrize("allow_list", [False, True])
def test_of_mic(allow_list: bool) -> None:  # noqa: FBT001  pytest passes it by name
    """Everywhere, and where MIC runs."""
    asked = diagnosing.mic_rights(allow_list=allow_list)
    listed = rights.namespace_rules() if allow_list else []
    assert checked(asked, home=False) == granted([*rights.mic_rules(), *listed])
    assert checked(asked, home=True) == granted([*rights.record_rules(), *rights.lock_rules()])


@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize("allow_list", [False, True])
@pytest.mark.parametrize("taint", ["", "podidentity.io/starting"])
def test_of_nmi(managed: bool, allow_list: bool, taint: str) -> None:  # noqa: FBT001  pytest passes them by name
    """In either mode; the allow-list is NMI's in managed mode only."""
    asked = diagnosing.nmi_rights(managed=managed, allow_list=allow_list, startup_taint=taint)
    listed = rights.namespace_rules() if managed and allow_list else []
    listed += rights.startup_taint_rules() if taint else []
    assert checked(asked, home=False) == granted([*rights.nmi_rules(managed=managed), *listed])
    assert checked(asked, home=True) == set()
