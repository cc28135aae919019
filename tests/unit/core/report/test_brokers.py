"""What `doctor` says of brokers: replicas, CA, grants, and whether identities trust them."""

from dataclasses import replace
from typing import Any

import pytest

import make
from podidentity.core.certificates.replacement import Validity
from podidentity.core.model.federation import FederatedCredential
from podidentity.core.model.identities import ObjectKey
from podidentity.core.report import brokers, trusts
from podidentity.core.report.brokers import Authority, Broker, BrokerFacts, MissingCredential
from podidentity.core.report.diagnosing import Facts
from podidentity.core.report.findings import Finding, Verdict, ok
from podidentity.core.report.trusts import Trust

READER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
ISSUER = "https://issuer.example/"
DAY = 86_400.0
KEY = ObjectKey("podidentity-broker", "podidentity-broker")
BROKER = Broker(KEY, "podidentity-broker", "podidentity-broker", 2, 2, "api://AzureADTokenExchange")
GOOD = BROKER.credential(ISSUER)
HEALTHY_CA = Authority(Validity(0.0, 365 * DAY))


def trust(*credentials: FederatedCredential, **fields: Any) -> Trust:
    """Return the reader with these credentials."""
    return Trust(READER, **{"identity": make.identity_id("reader"), "credentials": credentials} | fields)  # type: ignore[arg-type]  # tests name any field


def others(count: int) -> tuple[FederatedCredential, ...]:
    """Return credentials of other service accounts."""
    return tuple(replace(GOOD, name=f"fic-{number}", subject=f"subject-{number}") for number in range(count))


def facts(**fields: Any) -> BrokerFacts:
    """Return a healthy broker with one granted identity that trusts it."""
    healthy: dict[str, Any] = {
        "brokers": (BROKER,),
        "issuer": ISSUER,
        "issuer_findings": (ok("issuer", "public"),),
        "authorities": {KEY: HEALTHY_CA},
        "grants": {READER: True},
        "trusts": {READER: trust(GOOD)},
        "now": 30 * DAY,
    }
    return BrokerFacts(**healthy | fields)


def bad(findings: tuple[Finding, ...]) -> list[Finding]:
    """Return the findings that are not OK; hold that each says what to do."""
    faults = [finding for finding in findings if finding.verdict != Verdict.OK]
    assert all(finding.todo for finding in faults)
    return faults


def test_a_healthy_broker() -> None:
    """Every check is made, and none finds anything."""
    findings = brokers.diagnose(facts())
    assert bad(findings) == []
    assert [finding.check for finding in findings] == ["broker", "ca", "issuer", "grants", "credential"]


def test_a_cluster_without_a_broker_hears_nothing_of_it() -> None:
    """Without a broker there is no finding, unless something could not be read."""
    assert brokers.diagnose(BrokerFacts()) == ()
    unseen = brokers.diagnose(BrokerFacts(unavailable=(("broker", "may not list deployments"),)))
    assert [finding.verdict for finding in unseen] == [Verdict.UNKNOWN]


def test_a_broker_needs_no_machines() -> None:
    """With a broker alone, missing MIC, NMI and definitions are no finding; with any of those, all are checked."""
    alone = brokers.diagnose_all(
        Facts("server", unavailable=(("nodes", "no right"), ("identities", "no kind"))), facts()
    )
    assert [finding.check for finding in alone][:3] == ["api server", "nodes", "broker"]
    both = brokers.diagnose_all(Facts("server", definitions={"azureidentities": True}), facts())
    assert {"mic", "nmi", "broker"} <= {finding.check for finding in both}


@pytest.mark.parametrize(
    ("changes", "verdict", "message", "todo"),
    [
        ({"ready": 1}, Verdict.NOTE, "1 of 2 replicas are ready", "kubectl -n podidentity-broker describe"),
        ({"ready": 0}, Verdict.PROBLEM, "none of 2 replicas is ready", "logs deployment/podidentity-broker"),
        ({"ready": 0, "replicas": 0}, Verdict.PROBLEM, "none of 0 replicas", "--replicas=2"),
        ({"audience": ""}, Verdict.PROBLEM, "no projected token for Entra ID", "api://AzureADTokenExchange"),
        (
            {"identities": frozenset({"other"})},
            Verdict.PROBLEM,
            "no broker's allowedIdentities",
            "--allowed-identities",
        ),
    ],
)
def test_a_deployment_that_is_not_well(changes: dict[str, Any], verdict: Verdict, message: str, todo: str) -> None:
    """The finding is one sentence, with the command that mends it."""
    (finding,) = bad(brokers.diagnose(facts(brokers=(replace(BROKER, **changes),))))
    assert finding.verdict == verdict
    assert message in finding.message
    assert todo in finding.todo


@pytest.mark.parametrize(
    ("authority", "message", "todo"),
    [
        (Authority(), "Secret podidentity-broker/podidentity-broker-ca has no CA", "rollout restart"),
        (Authority(Validity(0.0, 37 * DAY)), "its CA ends in 7 days", "podidentity.io/replace-ca=now"),
        (replace(HEALTHY_CA, missing_bundles=(KEY,)), "is missing or empty", "deploy/broker/bundle.yaml"),
        (replace(HEALTHY_CA, outdated_bundles=(KEY,)), "lacks the CA in use", "rollout restart"),
    ],
)
def test_a_ca_that_is_not_well(authority: Authority, message: str, todo: str) -> None:
    """A CA or bundle is a problem when clients cannot verify the broker, now or soon."""
    (finding,) = bad(brokers.diagnose(facts(authorities={KEY: authority}, now=30 * DAY)))
    assert finding.verdict == Verdict.PROBLEM
    assert message in finding.message
    assert todo in finding.todo


@pytest.mark.parametrize(
    ("grants", "words"), [({}, "no ClusterRole grants an identity"), ({READER: False}, "that nobody is bound to")]
)
def test_grants_that_give_nothing(grants: dict[str, bool], words: str) -> None:
    """Missing or unused grants may be intended, so they are a note."""
    (finding,) = bad(brokers.diagnose(facts(grants=grants)))
    assert finding.verdict == Verdict.NOTE
    assert words in finding.message


@pytest.mark.parametrize(
    ("identity", "message", "todo"),
    [
        (trust(), "has no federated credential for system:serviceaccount:podidentity-broker", "az identity federated-"),
        (trust(identity=None, is_application=True), "application", "az ad app federated-credential create --id"),
        (trust(*others(20)), "has no room for it", "delete a credential first"),
        (trust(replace(GOOD, subject=GOOD.subject.upper())), "has subject SYSTEM", "letters count"),
        (trust(replace(GOOD, issuer=ISSUER.rstrip("/"))), "has issuer https://issuer.example, and", "letters count"),
        (trust(replace(GOOD, audience="api://other")), "for audience api://other", "podidentity credential delete"),
    ],
)
def test_an_identity_that_does_not_trust_the_broker(identity: Trust, message: str, todo: str) -> None:
    """The problem names what differs in the federated credential, and the exact command."""
    finding = bad(brokers.diagnose(facts(trusts={READER: identity})))[0]
    assert finding.verdict == Verdict.PROBLEM
    assert message in finding.message
    assert todo in f"{finding.message} {finding.todo}"
    assert f"--issuer {ISSUER}" in finding.todo or '"issuer"' in finding.todo


def test_nineteen_of_twenty_is_said() -> None:
    """An identity with 19 of its 20 federated credentials is a note, before there is no room left."""
    (finding,) = bad(brokers.diagnose(facts(trusts={READER: trust(GOOD, *others(18))})))
    assert finding.verdict == Verdict.NOTE
    assert "uses 19 of its 20 federated credentials" in finding.message
    assert finding.todo.endswith(f"podidentity credential list --identity {make.resource_id('reader')}")


def test_an_identity_that_could_not_be_seen() -> None:
    """An identity that Azure does not have, or that may not be read, has the verdict unknown."""
    (finding,) = bad(brokers.diagnose(facts(trusts={READER: Trust(READER, failure="not found")})))
    assert finding.verdict == Verdict.UNKNOWN
    assert f"identity {READER}: not found" in finding.message


def test_one_broker_that_is_trusted_is_enough() -> None:
    """With two brokers that have no list of identities, an identity need trust only one."""
    other = replace(BROKER, key=ObjectKey("team-a", "broker"))
    findings = brokers.diagnose(facts(brokers=(BROKER, other), authorities={}))
    assert bad(findings) == []


def test_what_entra_said_to_the_broker_counts_until_azure_was_asked() -> None:
    """An event of the last hour is a finding when Azure was not asked; otherwise Azure's newer answer counts."""
    event = MissingCredential(ObjectKey("podidentity-broker", "podidentity-broker"), READER, 60.0)
    (finding,) = bad(brokers.diagnose(facts(trusts=None, events=(event,))))
    assert "Entra ID found no federated credential" in finding.message
    assert "az identity federated-credential create --resource-group GROUP" in finding.todo
    assert bad(brokers.diagnose(facts(events=(event,)))) == []
    assert bad(brokers.diagnose(facts(trusts=None, events=(replace(event, age_seconds=4000.0),)))) == []


def test_owners_are_named_as_commands_take_them() -> None:
    """An application is named by its client ID, as commands take it."""
    assert trusts.owner_words(Trust(READER, is_application=True)) == f"--application {READER}"
