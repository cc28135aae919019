"""The conditions that MIC writes into AzureIdentities and AzureIdentityBindings, for `kubectl describe`."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

import make
from podidentity.core.assignment import assigning, conditions, planning
from podidentity.core.model.arm import ArmState, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.identities import AssignedState, Condition, ObjectKey
from podidentity.core.model.policy import ConditionLevel, Policy
from podidentity.core.model.snapshot import Snapshot

SINGLE_POD = make.snapshot([make.pod()], [make.identity()], [make.binding()])
PRESENT: Mapping[Target, ArmState] = {make.target(): make.state("reader")}
READER = ObjectKey("default", "reader")
BOUND = ObjectKey("default", "reader-binding")
FAILURE = AssignmentFailure(make.identity_id("reader"), make.target(), "LinkedAuthorizationFailed", "give MIC the role")


def told(snapshot: Snapshot, policy: Policy | None = None) -> dict[str, Condition]:
    """Return the conditions of the one identity and the one binding, by type."""
    given = policy or make.policy()
    desired = assigning.desired_assignments(snapshot, given)
    identities, bindings = conditions.of_plan(planning.plan(desired, snapshot, given), desired, snapshot, given)
    items = (*identities.get(READER, ()), *bindings.get(BOUND, ()))
    return {item.type: item for item in items}


def shown(snapshot: Snapshot, kind: str, policy: Policy | None = None) -> tuple[str, str, str]:
    """Status, reason and message of one condition."""
    result = told(snapshot, policy)[kind]
    return result.status, result.reason, result.message


def test_while_azure_is_at_work_both_say_so() -> None:
    """While Azure is at work, both conditions name the target and say how many pods wait."""
    assert shown(SINGLE_POD, "Assigned") == ("False", "Assigning", "not yet on scale set ss")
    assert shown(SINGLE_POD, "Applied") == ("False", "Assigning", "pods that it selects wait for the identity")


def test_when_all_is_done_both_hold() -> None:
    """Both conditions are True: one names the target, the other says that every pod has the identity."""
    finished = replace(SINGLE_POD, targets=PRESENT, assigned_identities=(make.assigned(),))
    assert shown(finished, "Assigned") == ("True", "Assigned", "on scale set ss")
    assert shown(finished, "Applied") == ("True", "Applied", "every pod that it selects has the identity")


def test_what_azure_refuses_is_told_on_both() -> None:
    """Both conditions have ARM's error code as their reason and a message that names the target."""
    failing = replace(SINGLE_POD, failing=(FAILURE,), assigned_identities=(make.assigned(state=AssignedState.CREATED),))
    assert shown(failing, "Assigned") == ("False", FAILURE.code, "scale set ss: give MIC the role")
    status, reason, message = shown(failing, "Applied")
    assert (status, reason) == ("False", FAILURE.code)
    assert message == "scale set ss: give MIC the role"


def test_a_code_that_is_no_reason_is_replaced() -> None:
    """A reason must be a CamelCase word in Kubernetes; any other error code becomes AssignmentFailed."""
    odd = replace(SINGLE_POD, failing=(replace(FAILURE, code="not a reason"),))
    assert shown(odd, "Assigned")[1] == "AssignmentFailed"


def test_what_nobody_uses_says_so() -> None:
    """An identity or binding that no pod uses says so: a mistyped label shows here first."""
    idle = replace(SINGLE_POD, pods=())
    assert shown(idle, "Assigned") == ("False", "NotInUse", "no pod uses it")
    assert shown(idle, "Applied") == ("False", "NoPods", "no pod with a node has the label aadpodidbinding=reader")


@pytest.mark.parametrize(
    ("snapshot", "policy", "reason"),
    [
        (replace(SINGLE_POD, identities={}), {}, "IdentityNotFound"),
        (SINGLE_POD, {"allow_list": True}, "NotAllowed"),
        (replace(SINGLE_POD, bindings=(make.binding(selector=""),)), {}, "NoSelector"),
        (make.snapshot([], [make.identity(resource_id="x")], [make.binding()]), {}, "MalformedResourceID"),
        (replace(SINGLE_POD, pods=(make.pod(namespace="team-a"),)), {"force_namespaced": True}, "OtherNamespace"),
        (
            replace(SINGLE_POD, bindings=(replace(make.binding(), node_selector="a b"),)),
            {"assign_on_binding": True},
            "BadNodeSelector",
        ),
    ],
)
def test_a_binding_without_effect_says_why(snapshot: Snapshot, policy: dict[str, object], reason: str) -> None:
    """A binding without effect says why, whether or not a pod has its label."""
    status, result, message = shown(snapshot, "Applied", make.policy(**policy))
    assert (status, result) == ("False", reason)
    assert message


def test_a_malformed_resource_id_is_told_on_the_identity() -> None:
    """The condition Assigned of an identity with a malformed resource ID has the reason MalformedResourceID."""
    assert shown(make.snapshot([], [make.identity(resource_id="x")]), "Assigned")[1] == "MalformedResourceID"


def test_a_service_principal_has_no_azure_side() -> None:
    """A service principal is put on no machine, so only its binding has a condition."""
    snapshot = make.snapshot([make.pod()], [make.identity(type=1, resource_id="")], [make.binding()])
    assert set(told(snapshot)) == {"Applied"}


def test_a_wrong_client_id_is_told_with_both() -> None:
    """The condition names the AzureIdentity's client ID and Azure's, and becomes True once they agree.

    There is no such condition before Azure has answered, without a clientID, or for one that was always right.
    """
    wrong = replace(SINGLE_POD, identities={READER: make.identity(client_id="wrong")}, targets=PRESENT)
    status, reason, message = shown(wrong, "ClientIDMatches")
    assert (status, reason) == ("False", "WrongClientID")
    assert "clientID is wrong, but Azure says client-of-reader" in message
    assert "ClientIDMatches" not in told(replace(wrong, targets={}))
    assert "ClientIDMatches" not in told(replace(wrong, identities={READER: make.identity(client_id="")}))
    assert "ClientIDMatches" not in told(replace(SINGLE_POD, targets=PRESENT))
    was_wrong = make.identity(conditions=(told(wrong)["ClientIDMatches"],))
    assert shown(replace(wrong, identities={READER: was_wrong}), "ClientIDMatches")[0] == "True"


def test_many_targets_are_counted() -> None:
    """A message lists five targets and counts the others, and it is cut at Kubernetes' limit."""
    names = [f"n{number}" for number in range(9)]
    many = make.snapshot(
        [make.pod(name, node=name) for name in names],
        [make.identity()],
        [make.binding()],
        nodes={name: make.node(name, f"ss-{name}") for name in names},
    )
    assert shown(many, "Assigned")[2].endswith("scale set ss-n4 and 4 more")
    long = replace(SINGLE_POD, failing=(replace(FAILURE, message="x" * 5000),))
    assert len(shown(long, "Assigned")[2]) == conditions.MESSAGE_LIMIT


OTHER_TENANTS = Condition("SomebodyElses", "True", "R", "m", "2020-01-01T00:00:00Z")
WITH_FINALIZER = Condition("Applied", "False", "NoPods", "none", "2020-01-01T00:00:00Z")


def test_only_differences_are_written() -> None:
    """Equal conditions need no write.

    The time of the last transition changes only with the status, and conditions of other writers stay as they are.
    """
    assert conditions.merge((OTHER_TENANTS, WITH_FINALIZER), [replace(WITH_FINALIZER, since="")], "now") is None
    extra = conditions.merge((OTHER_TENANTS, WITH_FINALIZER), [replace(WITH_FINALIZER, message="still none")], "now")
    assert extra == (OTHER_TENANTS, replace(WITH_FINALIZER, message="still none"))
    assert extra[1].since == WITH_FINALIZER.since
    turned = conditions.merge((OTHER_TENANTS, WITH_FINALIZER), [replace(WITH_FINALIZER, status="True")], "now")
    assert turned is not None
    assert [item.since for item in turned] == [OTHER_TENANTS.since, "now"]
    first = conditions.merge((), [WITH_FINALIZER], "now")
    assert first is not None
    assert first[0].since == "now"


def test_a_condition_says_of_which_generation_it_speaks() -> None:
    """A condition names the object's generation after the write that contains it, since a write makes the next one.

    Conditions of other writers keep their generation; a generation of 0 is unknown and makes nothing older.
    """
    told = conditions.merge((OTHER_TENANTS, WITH_FINALIZER), [WITH_FINALIZER], "now", generation=4)
    assert told is not None
    assert [item.generation for item in told] == [0, 5]
    assert conditions.merge(told, [WITH_FINALIZER], "now", generation=5) is None
    assert conditions.merge(told, [WITH_FINALIZER], "now") is None
    assert conditions.merge(told, [WITH_FINALIZER], "now", generation=6) is not None
    assert [conditions.is_older(told[1], generation) for generation in (0, 5, 6)] == [False, False, True]
    assert not conditions.is_older(WITH_FINALIZER, 6)


def test_a_target_without_the_identity_is_not_yet_there() -> None:
    """When Azure has answered and the identity is not on the target, the reason is Assigning."""
    assert shown(replace(SINGLE_POD, targets={make.target(): ArmState()}), "Assigned")[1] == "Assigning"


def test_what_stays_the_same_is_stamped_with_what_changes() -> None:
    """A write makes a new generation, so that it renews the generation of every condition of ours.

    A fault that kept its old generation would look older than the object, and so outdated.
    """
    fault = Condition("ClientIDMatches", "False", "WrongClientID", "m", "then", 5)
    by_type = conditions.merge((HELD_AT_5, fault), [replace(HELD_AT_5, status="True"), fault], "now", generation=5)
    assert by_type is not None
    assert [(condition.since, condition.generation) for condition in by_type] == [("now", 6), ("then", 6)]


HELD_AT_5 = replace(WITH_FINALIZER, generation=5)


@pytest.mark.parametrize(
    ("level", "types"),
    [(ConditionLevel.ALL, ["A", "B", "C"]), (ConditionLevel.PROBLEMS, ["B", "C"]), (ConditionLevel.OFF, [])],
)
def test_of_problems_those_are_written_and_what_takes_their_place(level: ConditionLevel, types: list[str]) -> None:
    """With `problems`, a condition is written if it is a problem or replaces one; with `off`, none is."""
    current = (Condition("C", "False", "AuthorizationFailed", "m"),)
    fresh = (
        Condition("A", "False", "NoPods", "m"),
        Condition("B", "False", "IdentityNotFound", "m"),
        Condition("C", "True", "Assigned", "m"),
    )
    assert [condition.type for condition in conditions.selected(current, fresh, level)] == types
