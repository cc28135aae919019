"""What `migrate` writes for workloads of both predecessors, for each way to get tokens."""

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

import make
from podidentity.core.injection import wishes
from podidentity.core.injection.rules import CLIENT_ID, USE_LABEL, Door, Rules, TokenFileDoor
from podidentity.core.injection.wishes import Wish
from podidentity.core.model.identities import IdentityType, ObjectKey
from podidentity.core.model.snapshot import Owner, Pod
from podidentity.core.report import migrating
from podidentity.core.report.findings import Verdict
from podidentity.core.report.migrating import Migration, MigrationFacts, Way

APP, MODERN = ObjectKey("default", "app"), ObjectKey("team-a", "modern")
WRITER = "bbbbbbbb-bbbb-cccc-dddd-eeeeeeeeeeee"


def bound(**fields: Any) -> Pod:
    """Return a pod of aad-pod-identity, of a Deployment."""
    return replace(make.pod(), service_account="app", owner=Owner("ReplicaSet", "web-7d4b9c"), **fields)


def facts(**fields: Any) -> MigrationFacts:
    """Return a cluster with a pod of each predecessor."""
    modern = replace(
        make.pod("modern", "team-a", selector=""), service_account="modern", owner=Owner("StatefulSet", "m")
    )
    both: dict[str, Any] = {
        "identities": (make.identity(),),
        "bindings": (make.binding(),),
        "pods": (bound(), modern),
        "workload_pods": frozenset({modern.key}),
        "accounts": {MODERN: {CLIENT_ID: WRITER.upper()}},
        "issuer": "https://issuer.example",
    }
    return MigrationFacts(**both | fields)


def names(migration: Migration) -> list[str]:
    """Return the manifests, by kind and name."""
    return [f"{item['kind']} {item['metadata']['name']}" for item in migration.manifests]


def todos(migration: Migration, check: str) -> list[str]:
    """Return the commands of one check's findings."""
    return [finding.todo for finding in migration.findings if finding.check == check]


def test_to_the_broker() -> None:
    """One annotation moves the AzureIdentity, and both service accounts are granted.

    Only the pod without a binding changes.
    """
    migration = migrating.plan(facts(), Way.BROKER)
    assert names(migration) == [
        "AzureIdentity reader",
        "ClusterRole identity-client-of-reader",
        "ClusterRoleBinding identity-client-of-reader-default-app",
        f"ClusterRole identity-{WRITER}",
        f"ClusterRoleBinding identity-{WRITER}-team-a-modern",
    ]
    assert migration.manifests[0]["metadata"]["annotations"] == {"podidentity.io/token-source": "broker"}
    (todo,) = todos(migration, "template")
    assert todo.startswith("kubectl -n team-a patch statefulset m --type=merge -p '")
    assert "use-identity-binding" in todo


def test_to_the_token_file() -> None:
    """The service account names the identity, and the template of each workload asks for the door."""
    migration = migrating.plan(facts(), Way.TOKEN_FILE)
    assert "ServiceAccount app" in names(migration)
    assert "ServiceAccount modern" not in names(migration)
    assert [todo.split(" ")[4:6] for todo in todos(migration, "template")] == [
        ["deployment", "web"],
        ["statefulset", "m"],
    ]
    assert all("podidentity.io/door" in todo for todo in todos(migration, "template"))
    (todo,) = todos(migration, "nmi")
    assert "--token-file-port" in todo


def test_the_webhook_takes_a_migrated_pod_to_the_door() -> None:
    """With the template after its patch and the service account of the manifest, the webhook decides for the door."""
    migration = migrating.plan(facts(accounts={}), Way.TOKEN_FILE)
    (todo,) = todos(migration, "template")
    template = json.loads(shlex.split(todo)[-1])["spec"]["template"]["metadata"]
    assert template["labels"] == {USE_LABEL: "true"}
    (account,) = (item["metadata"] for item in migration.manifests if item["kind"] == "ServiceAccount")
    settings = Rules("tenant", token_file=TokenFileDoor(2580))
    wish = wishes.read_wish(template["annotations"], account["annotations"], account["name"], settings)
    assert isinstance(wish, Wish)
    assert (wish.door, wish.client_id) == (Door.TOKEN_FILE, "client-of-reader")


def test_to_entra_itself() -> None:
    """There is a command for a federated credential of each service account, and no grant."""
    migration = migrating.plan(facts(), Way.DIRECT)
    assert names(migration) == ["ServiceAccount app"]
    assert [todo.split(" ")[4:6] for todo in todos(migration, "template")] == [["deployment", "web"]]
    issuer = "--issuer https://issuer.example"
    assert todos(migration, "credential") == [
        f"podidentity credential create --identity client-of-reader --service-account default/app {issuer}",
        f"podidentity credential create --identity {WRITER} --service-account team-a/modern {issuer}",
    ]
    assert not todos(migrating.plan(facts(issuer=""), Way.DIRECT), "credential")[0].endswith("example")


def test_an_issuer_that_entra_cannot_reach() -> None:
    """To Entra ID directly goes only who has a public issuer; the broker's and the machine's ways say nothing of it."""
    plans = {way: migrating.plan(facts(issuer="https://kubernetes.default.svc"), way) for way in Way}
    assert "publish it first" in todos(plans[Way.DIRECT], "issuer")[0]
    assert [way for way in Way if todos(plans[way], "issuer")] == [Way.DIRECT]


def test_back_to_the_machine() -> None:
    """An AzureIdentity of the broker loses its annotation.

    A workload that never had an AzureIdentity is a problem that a person must solve.
    """
    federated = make.identity(type=IdentityType.FEDERATED)
    migration = migrating.plan(facts(identities=(federated,)), Way.MACHINE)
    assert names(migration) == ["AzureIdentity reader"]
    assert "annotations" not in migration.manifests[0]["metadata"]
    verdicts = [finding.verdict for finding in migration.findings]
    assert verdicts == [Verdict.OK, Verdict.PROBLEM]
    assert names(migrating.plan(facts(), Way.MACHINE)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identities": (make.identity(type=IdentityType.SERVICE_PRINCIPAL),)}, "is a service principal with a Secret"),
        ({"identities": (make.identity(client_id=""),)}, "has no clientID"),
        ({"pods": ()}, "selects no pod now"),
        ({"pods": (replace(make.pod(), owner=Owner("Job", "j")),)}, "service account default/default is that of every"),
        ({"accounts": {APP: {CLIENT_ID: WRITER}}}, "uses 2 identities, and its annotation names one"),
        ({"pods": (bound(), replace(bound(), key=ObjectKey("default", "bare"), owner=None))}, "Pod default/bare"),
        ({"identities": (), "bindings": (), "accounts": {}}, "no pod is bound to an identity"),
    ],
)
def test_what_nobody_but_a_person_can_decide(changes: dict[str, Any], words: str) -> None:
    """Each case that `migrate` cannot decide has a message of its own."""
    migration = migrating.plan(facts(**changes), Way.TOKEN_FILE)
    assert words in " ".join(finding.message for finding in migration.findings)


def test_what_cannot_be_patched_is_said() -> None:
    """The template of a Job cannot be patched, and the advice says so."""
    pods = (replace(bound(), owner=Owner("Job", "j")),)
    migration = migrating.plan(facts(pods=pods, accounts={}), Way.DIRECT)
    assert todos(migration, "template") == ["change its template where it is written; this cannot be patched in place"]
