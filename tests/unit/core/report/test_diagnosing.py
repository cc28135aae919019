"""What `doctor` says of an installation."""

from dataclasses import replace

import pytest

import make
from podidentity.core.model.identities import AssignedState, Condition, IdentityType, ObjectKey, SecretReference
from podidentity.core.model.snapshot import Node
from podidentity.core.report import diagnosing
from podidentity.core.report.diagnosing import KINDS, MIC_RIGHTS, TAINT_RIGHTS, Daemon, Facts, Right
from podidentity.core.report.findings import Verdict

MIC = Daemon(ObjectKey("default", "mic-1"), "n1", True, "podidentity/mic:2", "mic")
NMI = Daemon(ObjectKey("default", "nmi-1"), "n1", True, "podidentity/nmi:2", "nmi")
HEALTHY = Facts(
    server="https://there, v1.36",
    definitions=dict.fromkeys(KINDS, True),
    nodes=(make.node("n1"), Node("w1", labels={"kubernetes.io/os": "windows"})),
    mic=(MIC,),
    nmi=(NMI,),
    leader="mic-1",
    missing_rights={"MIC": (), "NMI": ()},
    identities=(make.identity(),),
    bindings=(make.binding(),),
    assigned_identities=(make.assigned(),),
)
FAILING = Condition("Assigned", "False", "LinkedAuthorizationFailed", "scale set ss: give MIC the role")


def test_all_is_well() -> None:
    """A healthy cluster has no finding but OK, although its Windows node has no NMI."""
    assert {item.verdict for item in diagnosing.diagnose(HEALTHY)} == {Verdict.OK}


CREATED = make.assigned(state=AssignedState.CREATED)
UNASSIGNED = replace(HEALTHY, assigned_identities=(CREATED,))
TAINTED = replace(HEALTHY, startup_taint="k", tainted_nodes=frozenset({"n1"}))


@pytest.mark.parametrize(
    ("facts", "check", "verdict", "words"),
    [
        (replace(HEALTHY, definitions={}), "definitions", Verdict.PROBLEM, "not installed: azureassignedidentities."),
        (replace(HEALTHY, definitions=dict.fromkeys(KINDS, False)), "definitions", Verdict.NOTE, "without conditions"),
        (replace(HEALTHY, mic=()), "mic", Verdict.PROBLEM, "no pod of MIC"),
        (replace(HEALTHY, mic=(replace(MIC, ready=False),)), "mic", Verdict.PROBLEM, "none of 1 pods"),
        (replace(HEALTHY, mic=(), managed_mode=True), "mic", Verdict.OK, "managed mode"),
        (
            replace(HEALTHY, definitions=dict.fromkeys(KINDS[1:], True), managed_mode=True),
            "definitions",
            Verdict.OK,
            "installed",
        ),
        (replace(HEALTHY, definitions={}, managed_mode=True), "definitions", Verdict.PROBLEM, "azureidentities."),
        (
            replace(HEALTHY, nmi=(replace(NMI, image="podidentity/nmi:3"),)),
            "versions",
            Verdict.NOTE,
            "more than one version runs: MIC 2, NMI 3",
        ),
        (replace(HEALTHY, leader=""), "leader", Verdict.WAIT, "nobody leads"),
        (replace(HEALTHY, nmi=()), "nmi", Verdict.PROBLEM, "no pod of NMI"),
        (replace(HEALTHY, nmi=(replace(NMI, ready=False),)), "nmi", Verdict.PROBLEM, "not ready on n1"),
        (replace(HEALTHY, nmi=(replace(NMI, node="n0"),)), "nmi", Verdict.PROBLEM, "not ready on n1"),
        (replace(HEALTHY, missing_rights={"MIC": MIC_RIGHTS[:1]}), "role", Verdict.PROBLEM, "MIC may not list pods"),
        (
            replace(HEALTHY, missing_rights={"MIC": (Right("create", "", "events", is_required=False),)}),
            "role",
            Verdict.NOTE,
            "works without: create events",
        ),
        (
            replace(UNASSIGNED, identities=(make.identity(conditions=(FAILING,)),)),
            "identities",
            Verdict.PROBLEM,
            "AzureIdentity default/reader: Assigned is False (LinkedAuthorizationFailed)",
        ),
        (
            replace(HEALTHY, assigned_identities=(CREATED,), created_seconds={CREATED.key: 400.0}),
            "assigned",
            Verdict.PROBLEM,
            "1 of 1 not yet Assigned",
        ),
        (replace(HEALTHY, assigned_identities=(CREATED,)), "assigned", Verdict.OK, "none stuck"),
        (
            replace(UNASSIGNED, identities=(make.identity(conditions=(replace(FAILING, reason="TooManyRequests"),)),)),
            "throttling",
            Verdict.PROBLEM,
            "Azure throttles the assignment of default/reader",
        ),
        (
            replace(HEALTHY, unreadable={ObjectKey("default", "odd"): "AzureAssignedIdentity default/odd: no"}),
            "assigned",
            Verdict.NOTE,
            "AzureAssignedIdentity default/odd: no",
        ),
        (TAINTED, "startup taint", Verdict.PROBLEM, "k is still on n1, though NMI is ready there: new pods stay away"),
        (
            replace(TAINTED, missing_rights={"NMI": TAINT_RIGHTS[1:]}),
            "startup taint",
            Verdict.PROBLEM,
            "its role does not allow it to take that away",
        ),
        (replace(TAINTED, nmi=(replace(NMI, ready_seconds=3.0),)), "startup taint", Verdict.WAIT, "still on n1"),
        (replace(TAINTED, nmi=(replace(NMI, ready=False),)), "startup taint", Verdict.OK, "no node where NMI is ready"),
        (replace(TAINTED, tainted_nodes=frozenset()), "startup taint", Verdict.OK, "no node where NMI is ready"),
        (replace(HEALTHY, unavailable=(("nodes", "forbidden"),)), "nodes", Verdict.UNKNOWN, "forbidden"),
    ],
)
def test_what_is_wrong_is_told(facts: Facts, check: str, verdict: Verdict, words: str) -> None:
    """Each fault is reported under its check, with its weight and what it is about."""
    result = [item for item in diagnosing.diagnose(facts) if item.check == check]
    assert (verdict, True) in [(item.verdict, words in item.message) for item in result]


def test_without_daemons_there_is_no_version() -> None:
    """Without MIC and NMI there is no finding about versions."""
    checks = {item.check for item in diagnosing.diagnose(replace(HEALTHY, mic=(), nmi=()))}
    assert "versions" not in checks
    assert {"mic", "nmi"} <= checks


def test_long_lists_are_cut() -> None:
    """Of thirty identities or nodes, ten are named and the others counted."""
    many = tuple(make.identity(f"i{number:02}", conditions=(FAILING,)) for number in range(30))
    nodes = tuple(make.node(f"n{number:02}") for number in range(30))
    told = [item.message for item in diagnosing.diagnose(replace(UNASSIGNED, identities=many, nodes=nodes))]
    assert "and 20 more" in told
    assert any(subject.endswith("n09 and 20 more: pods there get no tokens") for subject in told)


def test_what_passes_by_itself_is_no_problem() -> None:
    """The condition of an identity that nobody uses is no problem."""
    idle = make.identity(conditions=(replace(FAILING, reason="NotInUse"),))
    assert {item.verdict for item in diagnosing.diagnose(replace(HEALTHY, identities=(idle,)))} == {Verdict.OK}


NOT_APPLIED = Condition("Applied", "False", "LinkedAuthorizationFailed", "1 pod on 1 node, 0 assigned")


def verdicts(facts: Facts, check: str) -> list[Verdict]:
    """Return the verdicts of one check's findings."""
    return [item.verdict for item in diagnosing.diagnose(facts) if item.check == check]


def behind(reason: str = "LinkedAuthorizationFailed", **fields: object) -> Facts:
    """Return facts in which conditions say that an identity and its binding fail, although the pod has the identity."""
    identity = make.identity(conditions=(replace(FAILING, reason=reason),))
    binding = replace(make.binding(), conditions=(NOT_APPLIED,))
    return replace(HEALTHY, identities=(identity,), bindings=(binding,), **fields)  # type: ignore[arg-type]  # any field


def test_what_is_there_counts_more_than_older_conditions() -> None:
    """When every pod has the identity, conditions that say otherwise are only a note."""
    for check in ("identities", "bindings"):
        assert verdicts(behind(), check) == [Verdict.NOTE]
    assert verdicts(behind("TooManyRequests"), "throttling") == [Verdict.OK]


def test_as_long_as_one_pod_lacks_it_the_condition_counts() -> None:
    """When one of two pods, or the only one, lacks the identity, the condition is a problem."""
    other = replace(make.assigned(make.pod("other")), state=AssignedState.CREATED)
    for assigned in ((make.assigned(), other), (replace(make.assigned(), deleting=True),), ()):
        for check in ("identities", "bindings"):
            assert verdicts(behind(assigned_identities=assigned), check) == [Verdict.PROBLEM]


def test_a_condition_of_a_former_generation_is_shown_and_no_problem() -> None:
    """A condition of an older generation speaks of another spec, so it is only a note."""
    identity = make.identity(conditions=(replace(FAILING, generation=1),), generation=2)
    binding = replace(make.binding(), conditions=(replace(NOT_APPLIED, generation=1),), generation=2)
    facts = replace(UNASSIGNED, identities=(identity,), bindings=(binding,))
    assert [verdicts(facts, check) for check in ("identities", "bindings")] == [[Verdict.NOTE], [Verdict.NOTE]]


def test_where_no_pod_is_needed_pods_prove_nothing() -> None:
    """With --assign-on=binding the condition stays a problem.

    The identity may be refused on a scale set that has no pod for it yet.
    """
    assert verdicts(behind(assign_on_binding=True), "identities") == [Verdict.PROBLEM]


def test_a_wrong_client_id_counts_wherever_the_identity_is() -> None:
    """A wrong client ID is a problem, also when every pod has the identity."""
    wrong = Condition("ClientIDMatches", "False", "WrongClientID", "it is another")
    assert verdicts(replace(HEALTHY, identities=(make.identity(conditions=(wrong,)),)), "identities") == [
        Verdict.PROBLEM
    ]
    other = replace(NOT_APPLIED, type="SomebodyElses")
    assert verdicts(replace(HEALTHY, bindings=(replace(make.binding(), conditions=(other,)),)), "bindings") == [
        Verdict.PROBLEM
    ]


def test_in_managed_mode_no_condition_of_mics_counts() -> None:
    """In managed mode MIC's conditions are notes: without MIC nobody corrects them."""
    managed = behind(managed_mode=True, assigned_identities=(), mic=())
    assert [verdicts(managed, check) for check in ("identities", "bindings")] == [
        [Verdict.NOTE],
        [Verdict.NOTE],
    ]


def test_secrets_are_asked_for_one_by_one() -> None:
    """The right to read each service principal's Secret is checked in the namespace where the Secret is.

    A reference without a namespace means that of the AzureIdentity.
    """
    identities = [
        make.identity("web"),
        make.identity(
            "db", "team-a", type=IdentityType.SERVICE_PRINCIPAL, client_password=SecretReference("", "db-secret")
        ),
        make.identity(
            "db",
            "team-b",
            type=IdentityType.SERVICE_PRINCIPAL_CERTIFICATE,
            client_password=SecretReference("vault", "certificate"),
        ),
        make.identity("nothing", "team-c", type=IdentityType.SERVICE_PRINCIPAL),
    ]
    assert [(item.verb, item.resource, item.namespace, item.name) for item in diagnosing.secret_rights(identities)] == [
        ("get", "secrets", "team-a", "db-secret"),
        ("get", "secrets", "vault", "certificate"),
    ]
    facts = replace(HEALTHY, missing_rights={"NMI": diagnosing.secret_rights(identities)})
    (problem,) = [item for item in diagnosing.diagnose(facts) if item.check == "role"]
    assert "NMI may not get secrets team-a/db-secret, get secrets vault/certificate" in problem.message
