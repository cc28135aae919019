"""What `kubectl describe` tells of identities and bindings."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

import make
from podidentity.core import assigning, conditions, planning
from podidentity.core.arm import Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.cluster import Snapshot
from podidentity.core.failing import Failing
from podidentity.core.identities import AssignedState, Condition, ObjectKey

ONE = make.snapshot([make.pod()], [make.identity()], [make.binding()])
THERE: Mapping[Target, TargetState] = {make.target(): make.state("reader")}
READER = ObjectKey("default", "reader")
BOUND = ObjectKey("default", "reader-binding")
REFUSED = Failing(make.identity_id("reader"), make.target(), "LinkedAuthorizationFailed", "give MIC the role")


def told(snapshot: Snapshot, policy: Policy | None = None) -> dict[str, Condition]:
    """The conditions of the one identity and the one binding, by type."""
    given = policy or make.policy()
    wanted = assigning.wanted(snapshot, given)
    identities, bindings = conditions.of_plan(planning.plan(wanted, snapshot, given), wanted, snapshot, given)
    every = (*identities.get(READER, ()), *bindings.get(BOUND, ()))
    return {one.type: one for one in every}


def shown(snapshot: Snapshot, kind: str, policy: Policy | None = None) -> tuple[str, str, str]:
    """Status, reason and message of one condition."""
    found = told(snapshot, policy)[kind]
    return found.status, found.reason, found.message


def test_while_azure_is_at_work_both_say_so() -> None:
    """With the target, and with how many pods wait."""
    assert shown(ONE, "Assigned") == ("False", "Assigning", "not yet on scale set ss")
    assert shown(ONE, "Applied") == ("False", "Assigning", "1 pod on 1 node, 0 assigned")


def test_when_all_is_done_both_hold() -> None:
    """And say what they count."""
    done = replace(ONE, targets=THERE, assigned=(make.assigned(),))
    assert shown(done, "Assigned") == ("True", "Assigned", "on scale set ss")
    assert shown(done, "Applied") == ("True", "Applied", "1 pod on 1 node, 1 assigned")


def test_what_azure_refuses_is_told_on_both() -> None:
    """ARM's code is the reason; the sentence names the target."""
    failing = replace(ONE, failing=(REFUSED,), assigned=(make.assigned(state=AssignedState.CREATED),))
    assert shown(failing, "Assigned") == ("False", REFUSED.code, "scale set ss: give MIC the role")
    status, reason, message = shown(failing, "Applied")
    assert (status, reason) == ("False", REFUSED.code)
    assert message == "1 pod on 1 node, 0 assigned; scale set ss: give MIC the role"


def test_a_code_that_is_no_reason_is_replaced() -> None:
    """Kubernetes takes CamelCase words only."""
    odd = replace(ONE, failing=(replace(REFUSED, code="not a reason"),))
    assert shown(odd, "Assigned")[1] == "AssignmentFailed"


def test_what_nobody_uses_says_so() -> None:
    """A label that was mistyped shows here first."""
    idle = replace(ONE, pods=())
    assert shown(idle, "Assigned") == ("False", "NotInUse", "no pod uses it")
    assert shown(idle, "Applied") == ("False", "NoPods", "no pod with a node has the label aadpodidbinding=reader")


@pytest.mark.parametrize(
    ("snapshot", "policy", "reason"),
    [
        (replace(ONE, identities={}), {}, "IdentityNotFound"),
        (ONE, {"allow_list": True}, "NotAllowed"),
        (replace(ONE, bindings=(make.binding(selector=""),)), {}, "NoSelector"),
        (make.snapshot([], [make.identity(resource_id="x")], [make.binding()]), {}, "MalformedResourceID"),
        (replace(ONE, pods=(make.pod(namespace="team-a"),)), {"force_namespaced": True}, "OtherNamespace"),
        (
            replace(ONE, bindings=(replace(make.binding(), node_selector="a b"),)),
            {"assign_on_binding": True},
            "BadNodeSelector",
        ),
    ],
)
def test_a_binding_without_effect_says_why(snapshot: Snapshot, policy: dict[str, object], reason: str) -> None:
    """Whether or not a pod is there."""
    status, found, message = shown(snapshot, "Applied", make.policy(**policy))
    assert (status, found) == ("False", reason)
    assert message


def test_a_malformed_resource_id_is_told_on_the_identity() -> None:
    """It can go nowhere."""
    assert shown(make.snapshot([], [make.identity(resource_id="x")]), "Assigned")[1] == "MalformedResourceID"


def test_a_service_principal_has_no_azure_side() -> None:
    """So nothing is said of it; its binding counts its pods."""
    snapshot = make.snapshot([make.pod()], [make.identity(type=1, resource_id="")], [make.binding()])
    assert set(told(snapshot)) == {"Applied"}


def test_a_wrong_client_id_is_told_with_both() -> None:
    """And once it is right, that is told too; without a word from Azure, or without a clientID, nothing is."""
    wrong = replace(ONE, identities={READER: make.identity(client_id="wrong")}, targets=THERE)
    status, reason, message = shown(wrong, "ClientIDMatches")
    assert (status, reason) == ("False", "WrongClientID")
    assert "clientID is wrong, but Azure says client-of-reader" in message
    assert "ClientIDMatches" not in told(replace(wrong, targets={}))
    assert "ClientIDMatches" not in told(replace(wrong, identities={READER: make.identity(client_id="")}))
    assert "ClientIDMatches" not in told(replace(ONE, targets=THERE))
    was_wrong = make.identity(conditions=(told(wrong)["ClientIDMatches"],))
    assert shown(replace(wrong, identities={READER: was_wrong}), "ClientIDMatches")[0] == "True"


def test_many_targets_are_counted() -> None:
    """A message stays readable, and below what Kubernetes takes."""
    names = [f"n{number}" for number in range(9)]
    many = make.snapshot(
        [make.pod(name, node=name) for name in names],
        [make.identity()],
        [make.binding()],
        nodes={name: make.node(name, f"ss-{name}") for name in names},
    )
    assert shown(many, "Assigned")[2].endswith("scale set ss-n4 and 4 more")
    long = replace(ONE, failing=(replace(REFUSED, why="x" * 5000),))
    assert len(shown(long, "Assigned")[2]) == conditions.MESSAGE_LIMIT


OTHERS = Condition("SomebodyElses", "True", "R", "m", "2020-01-01T00:00:00Z")
HELD = Condition("Applied", "False", "NoPods", "none", "2020-01-01T00:00:00Z")


def test_only_differences_are_written() -> None:
    """The time of the last transition moves with the status alone; other parties' conditions stay."""
    assert conditions.changed((OTHERS, HELD), [replace(HELD, since="")], "now") is None
    more = conditions.changed((OTHERS, HELD), [replace(HELD, message="still none")], "now")
    assert more == (OTHERS, replace(HELD, message="still none"))
    assert more[1].since == HELD.since
    turned = conditions.changed((OTHERS, HELD), [replace(HELD, status="True")], "now")
    assert turned is not None
    assert [one.since for one in turned] == [OTHERS.since, "now"]
    first = conditions.changed((), [HELD], "now")
    assert first is not None
    assert first[0].since == "now"


def test_a_condition_says_of_which_generation_it_speaks() -> None:
    """A write makes the next generation, so that one is named; others' conditions keep theirs, and 0 counts nothing."""
    told = conditions.changed((OTHERS, HELD), [HELD], "now", generation=4)
    assert told is not None
    assert [one.generation for one in told] == [0, 5]
    assert conditions.changed(told, [HELD], "now", generation=5) is None
    assert conditions.changed(told, [HELD], "now") is None
    assert conditions.changed(told, [HELD], "now", generation=6) is not None
    assert [conditions.is_older(told[1], generation) for generation in (0, 5, 6)] == [False, False, True]
    assert not conditions.is_older(HELD, 6)


def test_a_target_without_the_identity_is_not_yet_there() -> None:
    """Azure was asked and does not have it."""
    assert shown(replace(ONE, targets={make.target(): TargetState()}), "Assigned")[1] == "Assigning"
