"""The rights that `doctor` checks are those that the manifests grant: two tables that must agree."""

from collections.abc import Iterable
from typing import Any

import pytest
from deployment import rights, settings

from podidentity.core.report import diagnosing
from podidentity.core.report.diagnosing import Right

Granted = set[tuple[str, str, str]]


def granted(rules: Iterable[dict[str, Any]]) -> Granted:
    """Return verb, group and resource of each right in a role."""
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def checked(asked: Iterable[Right], *, home: bool) -> Granted:
    """Return the same of what `doctor` asks about, everywhere or in the daemon's own namespace."""
    return {(one.verb, one.group, one.resource) for one in asked if one.home == home and not one.namespace}


@pytest.mark.parametrize("allow_list", [False, True])
def test_of_mic(*, allow_list: bool) -> None:
    """MIC's rights hold everywhere, or in the namespace where MIC runs."""
    asked = diagnosing.mic_rights(allow_list=allow_list)
    listed = rights.namespace_rules() if allow_list else []
    assert checked(asked, home=False) == granted([*rights.mic_rules(), *listed])
    assert checked(asked, home=True) == granted(rights.record_rules())
    assert {(one.verb, one.group, one.resource) for one in asked if one.namespace} == granted(rights.lock_rules())
    assert {one.namespace for one in asked if one.namespace} == {settings.LOCK_NAMESPACE}
    assert {one.name for one in asked if one.resource == "configmaps"} == {settings.RECORD, ""}
    assert {one.name for one in asked if one.namespace} == {settings.LOCK, ""}


@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize("allow_list", [False, True])
@pytest.mark.parametrize("taint", ["", "podidentity.io/starting"])
def test_of_nmi(*, managed: bool, allow_list: bool, taint: str) -> None:
    """NMI's rights agree in both modes; in standard mode NMI also reads what MIC publishes of machines."""
    asked = diagnosing.nmi_rights(managed=managed, allow_list=allow_list, startup_taint=taint)
    listed = rights.namespace_rules() if allow_list else []
    listed += rights.startup_taint_rules() if taint else []
    assert checked(asked, home=False) == granted([*rights.nmi_rules(managed=managed), *listed])
    assert checked(asked, home=True) == (set() if managed else granted(rights.machine_rules()))
