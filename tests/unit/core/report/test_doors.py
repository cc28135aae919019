"""What `doctor` says of NMI's doors through the broker, on which NMI, webhook and broker must agree."""

from dataclasses import replace

import pytest

from podidentity.core.model.identities import ObjectKey
from podidentity.core.report import doors
from podidentity.core.report.brokers import Broker
from podidentity.core.report.diagnosing import Daemon
from podidentity.core.report.doors import DoorFacts, NodeDoor, Webhook
from podidentity.core.report.findings import Verdict

AUDIENCE = "api://AKSIdentityBinding"
ACCOUNT = "podidentity/nmi"
BROKER = Broker(ObjectKey("b", "broker"), "broker", "broker", 2, 2, "a", AUDIENCE, node_daemons=frozenset({ACCOUNT}))
WEBHOOK = Webhook(ObjectKey("w", "webhook"), 2580, AUDIENCE)


def node(name: str, port: int = 2580, *, ready: bool = True, broker: str = "https://broker") -> NodeDoor:
    """Return a pod of NMI on a node."""
    return NodeDoor(
        Daemon(ObjectKey("podidentity", f"nmi-{name}"), name, ready, "podidentity/nmi:2", "nmi"), port, broker
    )


HEALTHY = DoorFacts((node("n1"), node("n2")), (WEBHOOK,), (BROKER,))


def test_all_is_well() -> None:
    """Both doors have the verdict OK, also without a webhook, when pods have their variables from elsewhere."""
    for facts in (HEALTHY, replace(HEALTHY, webhooks=())):
        findings = doors.diagnose(facts)
        assert {finding.verdict for finding in findings} == {Verdict.OK}
        assert [finding.message for finding in findings if finding.check == doors.CHECK] == [
            "NMI serves it on port 2580 of 2 nodes"
        ]


@pytest.mark.parametrize(
    ("replicas", "ready", "verdict", "words"),
    [
        (2, 2, Verdict.OK, "2 of 2 replicas are ready"),
        (2, 1, Verdict.NOTE, "1 of 2 replicas are ready"),
        (2, 0, Verdict.PROBLEM, "pods with the label azure.workload.identity/use are refused"),
        (0, 0, Verdict.PROBLEM, "0 of 0 replicas"),
    ],
)
def test_a_webhook_that_does_not_answer(replicas: int, ready: int, verdict: Verdict, words: str) -> None:
    """While no replica is ready, labelled pods cannot be created, whatever door they want."""
    webhook = replace(WEBHOOK, port=0, replicas=replicas, ready=ready)
    (finding,) = doors.diagnose(DoorFacts(webhooks=(webhook,)))
    assert (finding.check, finding.verdict, words in finding.message) == ("webhook", verdict, True)
    assert verdict is Verdict.OK or finding.todo == "kubectl -n w describe deployment/webhook"


@pytest.mark.parametrize(
    "facts",
    [
        DoorFacts(),
        DoorFacts((node("n1", 0, broker=""),), (), (BROKER,)),
        DoorFacts(brokers=(BROKER,)),
    ],
)
def test_who_has_no_such_door_hears_nothing_of_it(facts: DoorFacts) -> None:
    """There is no finding for NMI alone, or a broker alone."""
    assert doors.diagnose(facts) == ()


@pytest.mark.parametrize(
    ("facts", "verdict", "message", "todo"),
    [
        (
            replace(HEALTHY, nodes=(node("n1", 0),)),
            Verdict.PROBLEM,
            "the webhook w/webhook sends pods to port 2580 of their node, where NMI serves no door",
            "--token-file-port=2580",
        ),
        (replace(HEALTHY, nodes=()), Verdict.PROBLEM, "where NMI serves no door", "--broker"),
        (
            replace(HEALTHY, nodes=(node("n1", 2590), node("n2", 2590))),
            Verdict.PROBLEM,
            "port 2580 of their node, and NMI serves the door on port 2590",
            "the same --token-file-port",
        ),
        (
            replace(HEALTHY, nodes=(node("n1"), node("n2"), node("n3", 0))),
            Verdict.NOTE,
            "does not serve it on port 2580 of n3",
            "OnDelete",
        ),
        (
            replace(HEALTHY, nodes=(node("n1"), node("n2", ready=False))),
            Verdict.PROBLEM,
            "not ready on n2: nothing may listen on port 2580 there",
            "kubectl -n podidentity logs nmi-n2",
        ),
        (
            replace(HEALTHY, webhooks=(replace(WEBHOOK, port=0),)),
            Verdict.NOTE,
            "the webhook w/webhook offers it to no pod",
            "--token-file-port=2580",
        ),
        (
            replace(HEALTHY, webhooks=(replace(WEBHOOK, audience="api://Mine"),)),
            Verdict.PROBLEM,
            "tokens of the audience api://Mine, and no broker takes it",
            f"--custom-token-endpoint-audience={AUDIENCE}",
        ),
        (
            replace(HEALTHY, brokers=(replace(BROKER, node_daemons=frozenset()),)),
            Verdict.PROBLEM,
            "no broker takes the word of NMI's service account podidentity/nmi",
            "--nmi-service-accounts=podidentity/nmi",
        ),
    ],
)
def test_what_does_not_agree_is_told_with_what_to_do(
    facts: DoorFacts, verdict: Verdict, message: str, todo: str
) -> None:
    """One finding says what differs, and which setting of which component to change."""
    (finding,) = [finding for finding in doors.diagnose(facts) if finding.verdict != Verdict.OK]
    assert finding.verdict == verdict
    assert message in finding.message
    assert todo in finding.todo
