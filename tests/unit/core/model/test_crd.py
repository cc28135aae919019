"""Custom resources between their wire form and values."""

from dataclasses import replace
from typing import Any

import pytest

import make
from podidentity.core.model import crd, label_selector, matching
from podidentity.core.model.identities import AssignedState, AzureIdentity, ObjectKey, SecretReference
from podidentity.errors import MalformedObjectError


def stored(spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """Build the wire form of any kind."""
    return {"metadata": {"name": "reader", "namespace": "team-a"} | metadata, "spec": spec}


def test_the_walkthroughs_capitalised_spelling_is_read() -> None:
    """Manifests of 2018 say ResourceID and ClientID."""
    identity = crd.parse_identity(stored({"type": 0, "ResourceID": make.resource_id("reader"), "ClientID": "c"}))
    assert (identity.resource_id, identity.client_id) == (make.resource_id("reader"), "c")


def test_the_schemas_spelling_wins_when_both_are_set() -> None:
    """An object that two tools have edited may hold both spellings; the lower-case one counts."""
    assert crd.parse_identity(stored({"ClientID": "old", "clientID": "new"})).client_id == "new"


@pytest.mark.parametrize(
    "secret", [{"name": "s", "namespace": "n"}, {"Name": "s", "Namespace": "n"}, {"NAME": "s", "Namespace": "n"}]
)
def test_a_secret_reference_is_read_in_any_case(secret: dict[str, str]) -> None:
    """The fields of `clientPassword` occur in every mix of upper and lower case."""
    assert crd.parse_identity(stored({"type": 1, "clientPassword": secret})).client_password == SecretReference(
        "n", "s"
    )


def test_a_secret_without_namespace_is_the_identitys_own() -> None:
    """A Secret reference without namespace means the namespace of its AzureIdentity."""
    assert crd.parse_identity(stored({"type": 1, "clientPassword": {"name": "s"}})).client_password == SecretReference(
        "team-a", "s"
    )


def test_the_behavior_annotation_makes_an_identity_namespaced() -> None:
    """An AzureIdentity with upstream's annotation serves its own namespace only."""
    annotations = {"aadpodidentity.k8s.io/Behavior": "namespaced"}
    assert crd.parse_identity(stored({}, annotations=annotations)).namespaced
    assert not crd.parse_identity(stored({})).namespaced


@pytest.mark.parametrize("value", ["broker", "Broker"])
def test_the_source_annotation_moves_a_managed_identity_to_the_broker(value: str) -> None:
    """The stored object still has type 0, and the annotation is written again with it."""
    identity = crd.parse_identity(stored({"type": 0}, annotations={"podidentity.io/token-source": value}))
    assert (identity.type, identity.arm_id) == (3, None)
    obj = crd.render_identity(identity)
    assert obj["spec"]["type"] == 0
    assert obj["metadata"]["annotations"] == {"podidentity.io/token-source": "broker"}
    assert crd.parse_identity(obj).type == 3


def test_the_source_annotation_means_nothing_elsewhere() -> None:
    """The annotation has no effect on a service principal, nor with another value."""
    assert crd.parse_identity(stored({"type": 1}, annotations={"podidentity.io/token-source": "broker"})).type == 1
    assert crd.parse_identity(stored({"type": 0}, annotations={"podidentity.io/token-source": "machine"})).type == 0


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("type", "0", "type must be a whole number"),
        ("type", True, "type must be a whole number"),
        ("clientID", 7, "clientID must be a text"),
        ("auxiliaryTenantIDs", "t", "auxiliaryTenantIDs must be a list of texts"),
        ("clientPassword", "s", "clientPassword must be an object"),
    ],
)
def test_a_malformed_field_is_named(field: str, value: object, expected: str) -> None:
    """The error names the object and the field."""
    with pytest.raises(MalformedObjectError, match=f"AzureIdentity team-a/reader: {expected}"):
        crd.parse_identity(stored({field: value}))


def test_an_object_without_a_spec_is_empty() -> None:
    """Every field is optional on the wire."""
    assert crd.parse_identity({"metadata": {"name": "x"}}) == AzureIdentity(ObjectKey("", "x"))


FULL = AzureIdentity(
    ObjectKey("team-a", "app"),
    type=1,
    client_id="c",
    client_password=SecretReference("team-a", "s"),
    tenant_id="t",
    auxiliary_tenant_ids=("t2",),
    ad_resource_id="r",
    ad_endpoint="https://login.example",
    replicas=1,
    namespaced=True,
)


@pytest.mark.parametrize("identity", [make.identity(), FULL])
def test_an_identity_survives_being_written_and_read(identity: AzureIdentity) -> None:
    """Rendering loses nothing that decisions use."""
    assert crd.parse_identity(crd.render_identity(identity)) == identity


def test_a_binding_survives_being_written_and_read() -> None:
    """A binding is the same after it, and both spellings lead to one value."""
    binding = make.binding()
    assert crd.parse_binding(crd.render_binding(binding)) == binding
    spec = {"AzureIdentity": "reader", "Selector": "reader", "Weight": 3}
    heavy = crd.parse_binding({"metadata": {"name": "reader-binding", "namespace": "default"}, "spec": spec})
    assert (heavy.azure_identity, heavy.selector, heavy.weight) == ("reader", "reader", 3)
    assert crd.parse_binding(crd.render_binding(heavy)) == heavy


def test_an_assigned_identity_survives_being_written_and_read() -> None:
    """NMI reads what MIC writes, with upstream's label and finalizer."""
    item = make.assigned()
    obj = crd.render_assigned(item)
    assert crd.parse_assigned(obj) == item
    assert obj["metadata"]["labels"] == {"nodename": "n1"}
    assert obj["metadata"]["finalizers"] == [crd.FINALIZER]


def test_an_assigned_identity_carries_its_bindings_uid() -> None:
    """`kubectl describe` finds an event by the UID of the object that it is about."""
    item = make.assigned()
    obj = crd.render_assigned(replace(item, binding=replace(item.binding, uid="u")))
    assert crd.parse_assigned(obj).binding.uid == "u"
    assert "uid" not in crd.render_assigned(item)["spec"]["azureBindingRef"]["metadata"]


def test_the_resource_version_is_kept_for_conflict_detection() -> None:
    """An object that is written again has the resource version with which it was read."""
    obj = crd.render_assigned(make.assigned())
    obj["metadata"]["resourceVersion"] = "7"
    assert crd.render_assigned(crd.parse_assigned(obj))["metadata"]["resourceVersion"] == "7"


def test_an_assigned_identity_without_status_counts_as_assigned() -> None:
    """Objects from before there were states have none, and their identities were assigned."""
    obj = crd.render_assigned(make.assigned(state=AssignedState.CREATED))
    del obj["status"]
    assert crd.parse_assigned(obj).state == AssignedState.ASSIGNED
    assert crd.parse_assigned(obj | {"Status": {"Status": "created"}}).state == AssignedState.CREATED


def test_an_unknown_state_is_named() -> None:
    """An unknown state is an error that names it."""
    obj = crd.render_assigned(make.assigned()) | {"status": {"status": "Broken"}}
    with pytest.raises(MalformedObjectError, match='status "Broken" is unknown'):
        crd.parse_assigned(obj)


def test_an_exception_reads_both_spellings() -> None:
    """The old spelling `PodLabels` is read."""
    exception = crd.parse_exception(stored({"PodLabels": {"app": "mic"}}))
    assert exception.pod_labels == {"app": "mic"}


def test_conditions_are_read_and_written_alike() -> None:
    """Conditions are written as they were read; a malformed list of conditions is read as none."""
    stored = {
        "type": "Applied",
        "status": "True",
        "reason": "Applied",
        "message": "1 pod",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    dated = stored | {"type": "Other", "observedGeneration": 3}
    obj = {"metadata": {"name": "b", "generation": 4}, "spec": {}, "status": {"conditions": [stored, dated]}}
    assert crd.render_conditions(crd.parse_binding(obj).conditions) == [stored, dated]
    assert (crd.parse_identity(obj).generation, crd.parse_binding(obj).generation) == (4, 4)
    assert crd.parse_identity(obj).conditions == crd.parse_binding(obj).conditions
    assert crd.parse_binding({**obj, "status": {"conditions": "odd"}}).conditions == ()


def test_old_spelling_is_rewritten_and_nothing_else() -> None:
    """Names that differ only in case become those of the schema; of two values the one that counted stays."""
    old = {
        "apiVersion": "v1",
        "kind": "AzureIdentity",
        "metadata": {"name": "x", "annotations": {"a": "b"}},
        "spec": {"Type": 1, "ClientID": "old", "clientID": "new", "ClientPassword": {"Name": "n"}, "unknown": 1},
        "status": {"Status": "", "AvailableReplicas": 1},
    }
    fresh = crd.respelled(old)
    assert fresh is not None
    assert fresh["spec"] == {"type": 1, "clientID": "new", "clientPassword": {"name": "n"}, "unknown": 1}
    assert (fresh["metadata"], fresh["status"]["availableReplicas"]) == (old["metadata"], 1)
    assert crd.parse_identity(fresh) == crd.parse_identity(old)
    assert crd.respelled(fresh) is None


def test_what_is_embedded_is_rewritten_too() -> None:
    """The identity embedded in an old AzureAssignedIdentity is rewritten as well."""
    stored = crd.render_assigned(make.assigned())
    assert crd.respelled(stored) is None
    identity = {**stored["spec"]["azureIdentityRef"], "spec": {"ResourceID": "r"}}
    spec = {"AzureIdentityRef": identity, "azureBindingRef": {"metadata": {}}, "Pod": "web"}
    fresh = crd.respelled({**stored, "spec": spec, "status": {}})
    assert fresh is not None
    assert fresh["spec"]["azureIdentityRef"]["spec"] == {"resourceID": "r"}
    assert fresh["spec"]["pod"] == "web"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resourceID", "r" * 513),
        ("clientID", "c" * 1_000_000),
        ("auxiliaryTenantIDs", ["t" * 65]),
        ("auxiliaryTenantIDs", ["t"] * 9),
    ],
)
def test_a_text_that_is_no_name_is_refused(field: str, value: object) -> None:
    """A field that is too long is refused by an error that does not repeat it.

    A megabyte in one field would otherwise be repeated for each pod that it concerns.
    """
    with pytest.raises(MalformedObjectError, match=field) as caught:
        crd.parse_identity(stored({field: value}))
    assert len(str(caught.value)) < 200


def test_a_node_selector_without_an_end_is_cut() -> None:
    """A huge node selector is cut to a length that is still refused as too long."""
    annotated = stored({"azureIdentity": "a"}, annotations={crd.NODE_SELECTOR_ANNOTATION: "!a," * 80_000})
    selector = label_selector.parse_selector(crd.parse_binding(annotated).node_selector)
    assert isinstance(selector, label_selector.BadSelector)
    assert "longer than" in selector.message


def test_what_a_tenant_wrote_is_shown_on_one_line() -> None:
    """A tenant's text in a reason is shortened, without line ends or escape sequences.

    Logs and conditions show it.
    """
    identity = make.identity(resource_id="x\n2026-11-24T01:00:00.000Z INFO mic: all is well\x1b[2J" + "y" * 900)
    told = matching.identity_refusal(identity)
    assert told is not None
    assert told.isprintable()
    assert len(told) < 600


@pytest.mark.parametrize(("length", "labelled"), [(63, True), (64, False)])
def test_a_nodes_name_that_is_no_label_value_is_left_out(*, length: int, labelled: bool) -> None:
    """A node's name that is too long for a label is left out there, since the API server would refuse the object."""
    node = "n" * length
    obj = crd.render_assigned(make.assigned(make.pod(node=node)))
    assert obj["metadata"]["labels"] == ({"nodename": node} if labelled else {})
    assert obj["spec"]["nodename"] == node


def test_a_managed_identity_keeps_nothing_of_a_service_principals() -> None:
    """Fields of a service principal are dropped from a managed identity.

    Each assigned identity repeats its AzureIdentity, so that they would be multiplied by the pods.
    """
    spec = {"tenantID": "t", "adEndpoint": "https://a", "adResourceID": "r", "auxiliaryTenantIDs": ["t"]}
    assert crd.parse_identity(stored({**spec, "clientPassword": {"name": "s"}})) == crd.parse_identity(stored({}))
    assert crd.parse_identity(stored({**spec, "type": 1})).auxiliary_tenant_ids == ("t",)


def test_of_conditions_without_an_end_a_few_are_read() -> None:
    """Number and length of conditions are bounded, since a tenant who writes a status must not fill MIC's memory."""
    conditions = [{"type": f"T{number}", "message": "m" * 100_000} for number in range(1000)]
    identity = crd.parse_identity({**stored({}), "status": {"conditions": conditions}})
    assert len(identity.conditions) == crd.MOST_CONDITIONS
    assert {len(condition.message) for condition in identity.conditions} == {crd.LONGEST_TEXT}
