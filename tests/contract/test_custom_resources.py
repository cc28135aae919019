"""What a Kubernetes API must do with our custom resources."""

import json
from typing import Any

import pytest

from contract.conftest import Kubectl

Json = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
ID = "/subscriptions/S/resourcegroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader"


def identity(name: str = "reader", **spec: Any) -> Json:
    """Return an AzureIdentity."""
    meta = {"name": name}
    return {"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": meta, "spec": spec}


def binding(**spec: Any) -> Json:
    """Return an AzureIdentityBinding."""
    meta = {"name": "reader"}
    return {"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": meta, "spec": spec}


def test_both_spellings_are_kept(kubectl: Kubectl) -> None:
    """Manifests in the spelling of 2018 and in today's are stored as they were written."""
    kubectl("apply", "-f", "-", stdin=identity("old", type=0, ResourceID=ID, ClientID="c"))
    kubectl("apply", "-f", "-", stdin=identity("new", type=0, resourceID=ID, clientID="c"))
    assert kubectl.get("azureidentity", "old")["spec"] == {"type": 0, "ResourceID": ID, "ClientID": "c"}
    assert kubectl.get("azureidentity", "new")["spec"] == {"type": 0, "resourceID": ID, "clientID": "c"}


def test_an_unknown_field_is_named_or_pruned(kubectl: Kubectl) -> None:
    """With strict validation, kubectl's default, it is refused by name; without, it is dropped."""
    told = kubectl.refused("create", "-f", "-", stdin=identity(CLIENTID="c"))
    assert 'unknown field "spec.CLIENTID"' in told
    kubectl("create", "--validate=ignore", "-f", "-", stdin=identity(clientID="c", CLIENTID="c"))
    assert kubectl.get("azureidentity", "reader")["spec"] == {"clientID": "c"}


@pytest.mark.parametrize(
    ("made", "field"),
    [(identity(type="zero"), "spec.type"), (identity(clientID=7), "spec.clientID"), (binding(weight="1"), "weight")],
)
def test_a_value_of_another_type_is_refused_by_name(kubectl: Kubectl, made: Json, field: str) -> None:
    """The refusal names the field whose value has the wrong type."""
    assert field in kubectl.refused("create", "-f", "-", stdin=made)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (identity(type=7), "spec.type must be 0"),
        (identity(type=0, resourceID="reader"), "must have the form /subscriptions/"),
        (identity(type=0, ResourceID="reader"), "must have the form /subscriptions/"),
        (binding(azureIdentity="", selector="s"), "name an AzureIdentity"),
        (binding(azureIdentity="a", selector=""), "aadpodidbinding"),
    ],
)
def test_a_rule_is_refused_in_its_own_words(kubectl: Kubectl, made: Json, told: str) -> None:
    """The definitions' rules are evaluated, and their messages reach the user."""
    assert told in kubectl.refused("create", "-f", "-", stdin=made)


def test_a_rule_holds_when_an_object_is_changed_too(kubectl: Kubectl) -> None:
    """A patch that breaks a rule is refused in the rule's own words."""
    kubectl("create", "-f", "-", stdin=identity(type=0, clientID="c"))
    told = kubectl.refused("patch", "azureidentity", "reader", "--type=merge", "-p", '{"spec":{"type":7}}')
    assert "spec.type must be 0" in told


def test_a_service_principal_may_have_any_resource_id(kubectl: Kubectl) -> None:
    """The rule for the form of resource IDs applies to managed identities only."""
    kubectl("create", "-f", "-", stdin=identity(type=1, resourceID="anything", clientID="c"))


def test_printer_columns_are_shown(kubectl: Kubectl) -> None:
    """`kubectl get` shows the columns of the definitions in their order, conditions included."""
    kubectl("create", "-f", "-", stdin=identity(type=0, clientID="c-1"))
    condition = {
        "type": "Assigned",
        "status": "False",
        "reason": "NoRole",
        "message": "grant it",
        "lastTransitionTime": NOW,
    }
    change = json.dumps({"status": {"conditions": [condition]}})
    kubectl("patch", "azureidentity", "reader", "--type=merge", "-p", change)
    head, row = (line.split() for line in kubectl("get", "azureidentity").splitlines())
    assert head == ["NAME", "TYPE", "CLIENTID", "ASSIGNED", "REASON", "AGE"]
    assert row[:5] == ["reader", "0", "c-1", "False", "NoRole"]


def test_the_status_is_part_of_the_object(kubectl: Kubectl) -> None:
    """Without a status subresource a status is written on the object, as upstream does, and makes a new generation."""
    kubectl("create", "-f", "-", stdin=identity(clientID="c"))
    before = kubectl.get("azureidentity", "reader")["metadata"]["generation"]
    change = json.dumps({"status": {"availableReplicas": 1}})
    kubectl("patch", "azureidentity", "reader", "--type=merge", "-p", change)
    kubectl("label", "azureidentity", "reader", "a=b")
    stored = kubectl.get("azureidentity", "reader")
    assert stored["status"] == {"availableReplicas": 1}
    assert stored["metadata"]["generation"] == before + 1


def test_an_embedded_object_keeps_what_it_has(kubectl: Kubectl) -> None:
    """The copies in an assigned identity are not pruned; a copy without kind and metadata is refused."""
    whole = {
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureAssignedIdentity",
        "metadata": {"name": "a"},
        "spec": {
            "pod": "p",
            "azureIdentityRef": {**identity("reader", ClientID="c", odd=1), "metadata": {"name": "reader"}},
        },
    }
    kubectl("create", "-f", "-", stdin=whole)
    assert kubectl.get("azureassignedidentity", "a")["spec"]["azureIdentityRef"]["spec"] == {"ClientID": "c", "odd": 1}
    bare = {**whole, "metadata": {"name": "b"}, "spec": {"azureIdentityRef": {"spec": {}}}}
    assert "azureIdentityRef" in kubectl.refused("create", "-f", "-", stdin=bare)


def test_describe_tells_the_object(kubectl: Kubectl) -> None:
    """`kubectl describe` shows the kind and the client ID of an AzureIdentity."""
    kubectl("create", "-f", "-", stdin=identity(type=0, clientID="c-1"))
    told = kubectl("describe", "azureidentity", "reader")
    assert "c-1" in told
    assert "AzureIdentity" in told
