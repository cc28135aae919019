"""What `explain` says of a running pod with workload identity."""

from dataclasses import replace
from typing import Any

import pytest

from podidentity.core.injection import mutation
from podidentity.core.injection.rules import CLIENT_ID, USE_LABEL, Door, Rules, TokenFileDoor, TokenProxy, TrustBundle
from podidentity.core.injection.wishes import Wish
from podidentity.core.report import workloads
from podidentity.core.report.findings import Finding, Verdict
from podidentity.core.report.workloads import WorkloadCase

READER = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
RULES = Rules(
    "tenant", proxy=TokenProxy("https://broker.example", TrustBundle(config_map="ca")), token_file=TokenFileDoor(2580)
)


def bare(**labels: str) -> dict[str, Any]:
    """Return a pod that no webhook has changed."""
    spec = {"serviceAccountName": "app", "containers": [{"name": "app"}]}
    return {"metadata": {"namespace": "team-a", "name": "web", "labels": labels}, "spec": spec}


def injected(door: Door, client_id: str = READER, rules: Rules = RULES) -> dict[str, Any]:
    """Return a pod as the webhook leaves it."""
    pod = bare(**{USE_LABEL: "true"})
    for operation in mutation.patch(pod, Wish(door, client_id, "tenant", 3600), rules):
        pod["spec"][operation["path"].removeprefix("/spec/")] = operation["value"]
    return pod


def case(pod: dict[str, Any], **fields: Any) -> WorkloadCase:
    """Return the pod of a service account that may use the reader."""
    good: dict[str, Any] = {"account": {CLIENT_ID: READER}, "is_granted": True, "issuer": "https://issuer.example"}
    return WorkloadCase(pod, **good | fields)


def last(told: WorkloadCase) -> Finding:
    """Return the last finding, which is the outcome."""
    return workloads.explain(told)[-1]


def problems(told: WorkloadCase) -> list[Finding]:
    """Return the problems; hold that each says what to do, except the outcome."""
    faults = [finding for finding in workloads.explain(told) if finding.verdict == Verdict.PROBLEM]
    assert all(finding.todo for finding in faults if finding.check != "token")
    return faults


@pytest.mark.parametrize(
    ("door", "checks"),
    [
        (Door.PROXY, ["door", "identity", "grant", "token"]),
        (Door.TOKEN_FILE, ["door", "identity", "grant", "token"]),
        (Door.DIRECT, ["door", "identity", "token"]),
    ],
)
def test_what_the_webhook_injects_is_well(door: Door, checks: list[str]) -> None:
    """Each door has its steps, and none is a problem for a pod that the webhook injected."""
    told = case(injected(door))
    assert workloads.door_of(told.pod) is door
    assert [finding.check for finding in workloads.explain(told)] == checks
    assert problems(told) == []
    assert READER in last(told).message


@pytest.mark.parametrize(("port", "faults"), [(2580, []), (None, []), (0, ["nmi"]), (2581, ["nmi"])])
def test_nmi_serves_the_token_file_door_where_the_pod_asks(port: int | None, faults: list[str]) -> None:
    """NMI must serve the port that the pod asks; where NMI could not be seen, nothing is said of it."""
    told = case(injected(Door.TOKEN_FILE), token_file_port=port)
    assert [finding.check for finding in problems(told)] == [*faults, *(["token"] if faults else [])]
    assert all("--token-file-port=2580" in finding.todo for finding in problems(told)[:1])


def test_a_client_id_beside_the_token_file_is_named() -> None:
    """AZURE_CLIENT_ID beside the token-file door is a problem, since some releases of SDKs refuse it."""
    pod = injected(Door.TOKEN_FILE)
    pod["spec"]["containers"][0]["env"].append({"name": "AZURE_CLIENT_ID", "value": READER})
    assert [finding.check for finding in problems(case(pod))] == ["selector", "token"]


def test_the_direct_door_needs_a_credential_of_its_own() -> None:
    """Only Entra ID knows whether the federated credential exists, so a note has the command that creates it."""
    outcome = last(case(injected(Door.DIRECT)))
    assert outcome.verdict == Verdict.NOTE
    assert "trusts system:serviceaccount:team-a:app" in outcome.message
    assert "--issuer https://issuer.example" in outcome.todo
    assert "--audiences api://AzureADTokenExchange" in outcome.todo


def test_the_credentials_audience_is_that_of_the_pods_token() -> None:
    """The command has the audience of the pod's token, which differs between clouds."""
    china = replace(RULES, audience="api://AzureADTokenExchangeChina")
    assert "--audiences api://AzureADTokenExchangeChina" in last(case(injected(Door.DIRECT, rules=china))).todo


def test_pods_without_workload_identity_are_none_of_its_business() -> None:
    """A pod without the label, or with another value than "true", is not explained."""
    assert not workloads.concerns(bare())
    assert not workloads.concerns(bare(**{USE_LABEL: "false"}))
    assert workloads.concerns(injected(Door.PROXY))
    assert not workloads.concerns({})


def test_a_pod_that_slipped_past_the_webhook() -> None:
    """A pod with the label and without injected variables is a problem: delete it, so that it is created anew."""
    told = case(bare(**{USE_LABEL: "true"}))
    assert workloads.concerns(told.pod)
    (finding,) = workloads.explain(told)
    assert finding.verdict == Verdict.PROBLEM
    assert "slipped past the webhook" in finding.message
    assert "delete pod web" in finding.todo


def test_without_a_grant() -> None:
    """Without a grant the outcome has the ClusterRoleBinding to create, and its ClusterRole where that is missing."""
    told = case(injected(Door.PROXY), is_granted=False)
    outcome = last(told)
    assert outcome.verdict == Verdict.PROBLEM
    assert "service account team-a/app may not use identity" in outcome.message
    assert '"ClusterRoleBinding"' in outcome.todo
    assert '"use-managed-identity"' in outcome.todo
    todo = last(replace(told, roles=("readers",))).todo
    assert todo.endswith("--clusterrole=readers --serviceaccount=team-a:app")


def test_a_grant_that_could_not_be_seen() -> None:
    """When the user may not ask for reviews, the verdict on the grant is unknown."""
    checks = {
        finding.check: finding.verdict for finding in workloads.explain(case(injected(Door.PROXY), is_granted=None))
    }
    assert checks["grant"] == Verdict.UNKNOWN
    assert checks["token"] == Verdict.OK


def test_no_such_service_account() -> None:
    """A service account that was deleted since the pod's creation is reported."""
    assert "service account team-a/app does not exist" in last(case(injected(Door.PROXY), account=None)).message


def test_no_client_id() -> None:
    """Without a client ID in its variables the program must know the client ID itself."""
    outcome = last(case(injected(Door.PROXY, client_id=""), account={}))
    assert outcome.verdict == Verdict.NOTE
    assert f"annotate serviceaccount app {CLIENT_ID}=CLIENT_ID" in outcome.todo


def change_variable(pod: dict[str, Any], name: str, value: str | None) -> dict[str, Any]:
    """Set a variable of the container, or remove it."""
    (container,) = pod["spec"]["containers"]
    container["env"] = [item for item in container["env"] if item["name"] != name]
    if value is not None:
        container["env"].append({"name": name, "value": value})
    return pod


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AZURE_KUBERNETES_CA_DATA", "pem", "are both set"),
        ("AZURE_KUBERNETES_CA_FILE", None, "neither AZURE_KUBERNETES_CA_FILE nor"),
        ("AZURE_KUBERNETES_CA_FILE", "/elsewhere/ca.crt", "nothing is mounted there"),
        ("AZURE_FEDERATED_TOKEN_FILE", "/elsewhere/token", "no service account token is mounted at /elsewhere/token"),
        ("AZURE_FEDERATED_TOKEN_FILE", None, "which is not set"),
    ],
)
def test_a_variable_that_sdks_refuse(name: str, value: str | None, words: str) -> None:
    """A variable that is doubled, missing, or names a file that is not mounted is a problem, and so is the outcome."""
    faults = problems(case(change_variable(injected(Door.PROXY), name, value)))
    assert words in faults[0].message
    assert faults[-1].message.startswith("mend that first; then the pod gets a token")


def test_a_ca_in_the_variable_itself() -> None:
    """A CA in the variable itself needs no mounted file."""
    rules = replace(RULES, proxy=TokenProxy("https://broker.example", TrustBundle("pem")))
    assert problems(case(injected(Door.PROXY, rules=rules))) == []


@pytest.mark.parametrize(
    ("door", "audience", "reader"),
    [
        (Door.PROXY, "api://AzureADTokenExchange", "the broker takes api://AKSIdentityBinding"),
        (Door.TOKEN_FILE, "", "is for audience of the API server, and the broker takes"),
        (Door.DIRECT, "api://AKSIdentityBinding", "Entra ID takes api://AzureADTokenExchange"),
    ],
)
def test_the_token_of_another_door(door: Door, audience: str, reader: str) -> None:
    """A token whose audience is that of another door would be refused with 401."""
    pod = injected(door)
    pod["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["audience"] = audience
    faults = problems(case(pod))
    assert faults[0].check == "audience"
    assert reader in faults[0].message
