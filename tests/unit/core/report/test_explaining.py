"""What `explain` says of a pod: the daemons' own reasons, in the order in which a token is made."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

import make
from podidentity.core.model import machine_state
from podidentity.core.model.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzurePodIdentityException,
    Condition,
    ObjectKey,
    SecretReference,
)
from podidentity.core.model.snapshot import Pod, Snapshot
from podidentity.core.report import explaining
from podidentity.core.report.explaining import Case
from podidentity.core.report.findings import Finding, Verdict

FAILING = Condition("Assigned", "False", "LinkedAuthorizationFailed", "scale set ss: give MIC the role")


def case(pod: Pod | None = None, *, snapshot: Snapshot | None = None, **fields: object) -> Case:
    """Return a pod of a healthy cluster with one identity, assigned to it."""
    given = pod or make.pod()
    cluster_snapshot = snapshot or make.snapshot([given], [make.identity()], [make.binding()], [make.assigned(given)])
    healthy: dict[str, object] = {"nmi_ready": True, "mic_ready": True} | fields
    return Case(given, cluster_snapshot, **healthy)  # type: ignore[arg-type]  # tests name any field


def with_identity(*identities: AzureIdentity, assigned_identities: Iterable[AzureAssignedIdentity] = ()) -> Snapshot:
    """Return the one pod and its binding, with other identities."""
    return make.snapshot([make.pod()], identities, [make.binding()], assigned_identities)


def test_no_token_is_promised_where_nmi_is_gone() -> None:
    """When only NMI is missing on the node, the outcome is a problem: nobody answers the pod."""
    outcome = explaining.explain(case(nmi_ready=False))[-1]
    assert (outcome.check, outcome.verdict) == ("token", Verdict.PROBLEM)
    assert outcome.message == (
        "the pod gets no token until NMI is ready on node n1; then the pod gets a token of AzureIdentity "
        "default/reader; by client ID it may ask for: client-of-reader"
    )


def last(told: Case) -> Finding:
    """Return the last finding, which is the outcome."""
    return explaining.explain(told)[-1]


def test_a_pod_that_gets_its_token_is_told_step_by_step() -> None:
    """There is a finding for each step from the pod to the token, and all are OK."""
    findings = explaining.explain(case())
    assert [item.check for item in findings] == ["pod", "nmi", "label", "binding", "identity", "assigned", "token"]
    assert {item.verdict for item in findings} == {Verdict.OK}
    assert findings[-1].message == (
        "the pod gets a token of AzureIdentity default/reader; by client ID it may ask for: client-of-reader"
    )


@pytest.mark.parametrize(
    ("told", "verdict", "words"),
    [
        (case(replace(make.pod(), phase="Succeeded")), Verdict.PROBLEM, "has ended (Succeeded)"),
        (case(make.pod(node="")), Verdict.WAIT, "has no node yet"),
        (case(replace(make.pod(), host_network=True)), Verdict.PROBLEM, "uses its node's network"),
        (case(make.pod(selector="")), Verdict.PROBLEM, "has no label aadpodidbinding"),
        (case(make.pod(selector="raeder")), Verdict.PROBLEM, "no AzureIdentityBinding has the selector raeder"),
        (case(snapshot=with_identity()), Verdict.PROBLEM, 'AzureIdentity "reader" not found'),
        (
            case(snapshot=with_identity(make.identity()), mic_ready=False),
            Verdict.WAIT,
            "no assigned identity for pod default/web",
        ),
    ],
)
def test_the_story_ends_where_something_is_missing(told: Case, verdict: Verdict, words: str) -> None:
    """The last finding says what is missing."""
    assert last(told).verdict == verdict
    assert words in last(told).message


def found(told: Case, check: str) -> list[tuple[Verdict, str]]:
    """Return verdict and message of one check's findings."""
    return [(item.verdict, item.message) for item in explaining.explain(told) if item.check == check]


def test_a_mistyped_label_is_guessed() -> None:
    """The advice names the selector that is most similar to the label."""
    assert last(case(make.pod(selector="raeder"))).todo.endswith("did you mean reader?")


def test_an_excepted_pod_and_mic_are_answered_as_the_node() -> None:
    """For a pod with an exception, and for MIC itself, bindings do not count."""
    exception = AzurePodIdentityException(ObjectKey("default", "x"), {"aadpodidbinding": "READER"})
    assert "named by an AzurePodIdentityException" in last(case(exceptions=(exception,))).message
    assert "MIC itself" in last(case(make.mic_pod())).message


def test_nmi_on_the_node_counts() -> None:
    """An NMI that is not ready is a problem; when NMI could not be seen, the verdict is unknown."""
    assert found(case(nmi_ready=False), "nmi")[0][0] == Verdict.PROBLEM
    assert found(case(nmi_ready=None), "nmi")[0][0] == Verdict.UNKNOWN


def test_one_binding_of_two_may_have_no_effect() -> None:
    """A second binding without effect is a note, and the outcome is OK."""
    two = [make.binding(), make.binding("second", azure_identity="gone")]
    snapshot = make.snapshot([make.pod()], [make.identity()], two, [make.assigned()])
    assert [verdict for verdict, _ in found(case(snapshot=snapshot), "binding")] == [Verdict.OK, Verdict.NOTE]
    assert last(case(snapshot=snapshot)).verdict == Verdict.OK


def test_what_is_wrong_with_an_identity_is_told() -> None:
    """An unknown type, a malformed resource ID and a Secret in another namespace are reported."""
    assert "type 7 is unknown" in found(case(snapshot=with_identity(make.identity(type=7))), "identity")[0][1]
    malformed = case(snapshot=with_identity(make.identity(resource_id="x")))
    assert "is malformed" in found(malformed, "identity")[0][1]
    assert found(malformed, "assigned")[0][0] == Verdict.PROBLEM
    foreign = make.identity(type=1, client_password=SecretReference("other", "s"))
    assert found(case(snapshot=with_identity(foreign)), "secret")[0][0] == Verdict.NOTE
    own_identity = make.identity(type=1, client_password=SecretReference("default", "s"))
    assert found(case(snapshot=with_identity(own_identity)), "secret") == []
    federated = make.identity(type=3, client_id="aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
    assert found(case(snapshot=with_identity(federated)), "secret") == [], "the broker needs no password"


def test_the_conditions_of_the_identity_are_part_of_the_story() -> None:
    """A refusal by Azure is a problem, an assignment under way a wait; conditions of other writers are left out."""
    failing = make.identity(conditions=(FAILING, replace(FAILING, type="SomebodyElses")))
    assert found(case(snapshot=with_identity(failing)), "azure") == [
        (Verdict.PROBLEM, "Assigned is False (LinkedAuthorizationFailed): scale set ss: give MIC the role")
    ]
    assigning = make.identity(conditions=(replace(FAILING, reason="Assigning"),))
    assert found(case(snapshot=with_identity(assigning)), "azure")[0][0] == Verdict.WAIT
    idle = make.identity(conditions=(replace(FAILING, reason="NotInUse"),))
    assert found(case(snapshot=with_identity(idle)), "azure") == []


def test_the_assigned_identity_is_looked_at() -> None:
    """An assigned identity that is missing, of another node or not yet Assigned is reported."""
    assert found(case(snapshot=with_identity(make.identity())), "assigned")[0][0] == Verdict.WAIT
    no_mic = case(snapshot=with_identity(make.identity()), mic_ready=False)
    assert found(no_mic, "assigned") == [(Verdict.PROBLEM, "MIC is not ready: nobody assigns identities")]
    moved = replace(make.assigned(), node="n0")
    told = found(case(snapshot=with_identity(make.identity(), assigned_identities=[moved])), "assigned")
    assert "still names node n0" in told[0][1]
    fresh_object = make.assigned(state=AssignedState.CREATED)
    told = found(case(snapshot=with_identity(make.identity(), assigned_identities=[fresh_object])), "assigned")
    assert "is Created" in told[0][1]


def test_in_managed_mode_the_binding_of_the_namespace_decides() -> None:
    """In managed mode a binding of the pod's namespace suffices, and bindings of other namespaces do not count."""
    managed = case(snapshot=with_identity(make.identity(client_id="")), managed_mode=True, mic_ready=None)
    assert last(managed).message == "the pod gets a token of AzureIdentity default/reader"
    away = case(make.pod(namespace="team-a"), managed_mode=True)
    assert "no AzureIdentityBinding in namespace team-a" in last(away).message


def test_the_allow_list_is_part_of_the_story() -> None:
    """An identity that the allow list refuses is explained with MIC's own sentence."""
    told = case(policy=make.policy(allow_list=True))
    assert "is not allowed the identity" in last(told).message


def test_a_pod_whose_label_changed_is_refused_or_waits() -> None:
    """A pod whose assigned identity is being deleted waits."""
    other = replace(make.assigned(), deleting=True)
    assert last(case(snapshot=with_identity(make.identity(), assigned_identities=[other]))).verdict == Verdict.WAIT


def test_what_is_there_counts_more_than_an_older_condition() -> None:
    """When the pod has its identity, a condition that says otherwise is a note, and the pod gets its token."""
    for reason in ("Assigning", "LinkedAuthorizationFailed"):
        outdated = make.identity(conditions=(replace(FAILING, reason=reason),))
        there = case(snapshot=with_identity(outdated, assigned_identities=[make.assigned()]))
        ((verdict, subject),) = found(there, "azure")
        assert verdict == Verdict.NOTE
        assert subject.startswith(f"Assigned is False ({reason}): scale set ss")
        assert {item.verdict for item in explaining.explain(there)} == {Verdict.OK, Verdict.NOTE}


@pytest.mark.parametrize(
    "assigned",
    [
        make.assigned(state=AssignedState.CREATED),
        replace(make.assigned(), node="n0"),
        replace(make.assigned(), deleting=True),
    ],
)
def test_what_is_not_there_is_as_the_condition_says(assigned: AzureAssignedIdentity) -> None:
    """When the pod's assigned identity is Created, of another node or being deleted, the condition is a problem."""
    failing = case(snapshot=with_identity(make.identity(conditions=(FAILING,)), assigned_identities=[assigned]))
    assert found(failing, "azure")[0][0] == Verdict.PROBLEM


def test_a_condition_of_a_former_generation_is_no_problem() -> None:
    """A condition of an older generation speaks of another spec, so it is a note."""
    edited = make.identity(conditions=(replace(FAILING, generation=1),), generation=2)
    ((verdict, subject),) = found(case(snapshot=with_identity(edited)), "azure")
    assert (verdict, "the AzureIdentity was changed since" in subject) == (Verdict.NOTE, True)


def test_a_wrong_client_id_is_a_problem_wherever_the_identity_is() -> None:
    """A wrong client ID is a problem, although the identity is on the machine."""
    wrong = make.identity(conditions=(Condition("ClientIDMatches", "False", "WrongClientID", "it is another"),))
    assert (
        found(case(snapshot=with_identity(wrong, assigned_identities=[make.assigned()])), "azure")[0][0]
        == Verdict.PROBLEM
    )


def test_in_managed_mode_no_condition_of_mics_counts() -> None:
    """In managed mode MIC does not run, so that its conditions are notes."""
    managed = case(snapshot=with_identity(make.identity(conditions=(FAILING,))), managed_mode=True, mic_ready=None)
    assert found(managed, "azure")[0][0] == Verdict.NOTE
    assert last(managed).verdict == Verdict.OK


def test_where_mic_says_what_is_on_the_machine_its_objects_do_not_count() -> None:
    """Where MIC publishes what is on the machine, NMI decides by itself.

    A pod without an AzureAssignedIdentity then gets its token, or waits until the identity is on the machine.
    """
    machine = machine_state.machine_state(make.state("reader"), make.policy())
    without_object = with_identity(make.identity())
    findings = explaining.explain(case(snapshot=without_object, machine=machine, mic_ready=False))
    assert findings[-1].verdict == Verdict.OK
    assert "is on the machine of n1" in " ".join(finding.message for finding in findings)
    *_, last = explaining.explain(case(snapshot=without_object, machine=machine_state.MachineState()))
    assert last.verdict == Verdict.WAIT
    *_, by_object = explaining.explain(case(snapshot=without_object, mic_ready=True))
    assert by_object.verdict == Verdict.WAIT
