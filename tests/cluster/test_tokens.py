"""Tokens on a real cluster, the daemons in pods: each kind of pod gets its own tokens, and nobody else's."""

import json
from functools import partial
from typing import Any

import pytest

from cluster.harness import Cluster, Identity, custom, pod, until
from cluster.programs import KEEP_ASKING, ONCE, OWN

TOOLS = "podidentity/lab-tools:1"
CHURN = 100
"""Short pods on each node."""
CHURN_SECONDS = 600.0  # three minutes were measured on a machine that had much else to do


@pytest.fixture(scope="module")
def reader(installed: Cluster) -> Identity:
    """An identity with its binding."""
    made = installed.identity("reader")
    installed.bind(made)
    return made


@pytest.fixture(scope="module")
def writer(installed: Cluster) -> Identity:
    """Another identity with its binding."""
    made = installed.identity("writer")
    installed.bind(made)
    return made


def test_every_pod_gets_its_own_on_every_node(installed: Cluster, reader: Identity, writer: Identity) -> None:
    """Pods of two identities on two nodes ask at the same time, and each gets its own identity's token."""
    asked = {}
    for node in ("node-0", "node-1"):
        for identity in (reader, writer):
            name = f"{identity.name}-{node}"
            installed.create(pod(name, ONCE, binding=identity.name, node=node))
            asked[name] = identity.client_id
    got = {name: json.loads(installed.result(name)) for name in asked}
    assert got == {name: ["200", owner] for name, owner in asked.items()}


def test_a_pod_without_the_label_gets_nothing(installed: Cluster) -> None:
    """A pod without the label gets neither the node's token nor a neighbour's."""
    installed.create(pod("unlabelled", ONCE, node="node-0"))
    assert json.loads(installed.result("unlabelled")) == ["400", ""]


def test_an_init_container_has_the_identity_already(installed: Cluster, reader: Identity) -> None:
    """A pod that is still Pending gets its token: its init container must succeed before its containers start."""
    obj = pod("initialised", ONCE, binding=reader.name)
    obj["spec"]["initContainers"] = [_container(OWN, reader)]
    installed.create(obj)
    assert json.loads(installed.result("initialised")) == ["200", reader.client_id]


def test_jobs_and_cron_jobs_are_pods_like_others(installed: Cluster, reader: Identity, writer: Identity) -> None:
    """The pods of a Job and of a Job made from a CronJob get their tokens."""
    installed.create(_job("job", reader), {**_cron_job(writer)})
    installed.kubectl("create", "job", "from-cron", "--from=cronjob/cron")
    for name in ("job", "from-cron"):
        installed.kubectl("wait", f"job/{name}", "--for=condition=complete", "--timeout=180s")
        installed.delete(f"job/{name}")


def test_a_recreated_pod_of_a_stateful_set_does_not_inherit(
    installed: Cluster, reader: Identity, writer: Identity
) -> None:
    """`web-0` is created again under its name with another label, and has the other identity from its first token on.

    It is then created once more with the same label, and has the same identity.
    """
    stateful = _stateful_set("web", reader)
    installed.create(stateful)
    installed.roll_out("statefulset/web")
    assert _asks_as(installed, "web-0", reader)
    stateful["spec"]["template"] = _template("web", writer)
    installed.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(stateful))
    installed.roll_out("statefulset/web")
    assert _asks_as(installed, "web-0", writer)
    installed.delete("pod/web-0")
    until(lambda: installed.try_kubectl("exec", "web-0", "--", "true").returncode == 0, "web-0 to be back")
    assert _asks_as(installed, "web-0", writer)
    installed.delete("statefulset/web")


def test_a_service_principal_with_a_secret(installed: Cluster) -> None:
    """NMI reads the Secret beside the AzureIdentity, and signs in at Entra ID with what is in it."""
    owner = {key: installed.lab.variables[f"LAB_OWNER_{key}"] for key in ("CLIENT_ID", "CLIENT_SECRET")}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "principal"}}
    spec = {
        "type": 1,
        "tenantID": installed.lab.variables["LAB_TENANT_ID"],
        "clientID": owner["CLIENT_ID"],
        "clientPassword": {"name": "principal", "namespace": "default"},
    }
    installed.create(
        secret | {"stringData": {"password": owner["CLIENT_SECRET"]}},
        custom("AzureIdentity", "principal", spec),
        custom("AzureIdentityBinding", "principal", {"azureIdentity": "principal", "selector": "principal"}),
        pod("principal", ONCE, binding="principal"),
    )
    assert json.loads(installed.result("principal")) == ["200", owner["CLIENT_ID"]]


def test_an_exception_leads_to_the_nodes_own_service(installed: Cluster, reader: Identity) -> None:
    """NMI answers an excepted pod with the token of the node's only identity.

    The pod's own packets still do not reach IMDS.
    """
    before = installed.imds_packets()
    installed.create(custom("AzurePodIdentityException", "excepted", {"podLabels": {"app": "excepted"}}))
    installed.create(pod("holder", KEEP_ASKING, binding=reader.name, node="node-0"))
    installed.create(pod("excepted", KEEP_ASKING, node="node-0"))
    try:
        until(lambda: installed.counts("excepted").get(f"200 {reader.client_id}"), "the node's only identity")
        assert installed.imds_packets() == before
    finally:
        installed.delete("azurepodidentityexception/excepted")
        installed.delete("pod/excepted", "pod/holder")


def test_many_pods_that_come_and_go_on_every_node(installed: Cluster, reader: Identity, writer: Identity) -> None:
    """A hundred short pods on each node, a dozen at a time: each has its own identity's token at its first request."""
    owners = {"node-0": reader, "node-1": writer}
    for node, identity in owners.items():
        job = _job(f"churn-{node}", identity, nodeName=node)
        job["spec"] |= {"completions": CHURN, "parallelism": 12}
        installed.create(job)
    for node in owners:
        until(partial(_job_is_over, installed, f"churn-{node}"), f"{CHURN} pods on {node}", CHURN_SECONDS)
        status = installed.get("job", f"churn-{node}")["status"]
        answers = installed.kubectl("logs", "-l", f"app=churn-{node}", "--tail=1", "--prefix")
        assert (status.get("succeeded"), status.get("failed", 0)) == (CHURN, 0), answers
    installed.delete("job/churn-node-0", "job/churn-node-1")


def test_an_identity_that_is_edited_while_it_is_in_use(installed: Cluster) -> None:
    """When an AzureIdentity is changed to name another identity, its pods get tokens of the other one."""
    before, after = installed.identity("edited-before"), installed.identity("edited-after")
    installed.bind(before)
    installed.create(pod("edited", KEEP_ASKING, binding=before.name, node="node-1"))
    until(lambda: installed.counts("edited").get(f"200 {before.client_id}"), "a token of the one")
    spec = {"resourceID": after.resource_id, "clientID": after.client_id}
    installed.kubectl("patch", "azureidentity", before.name, "--type=merge", "-p", json.dumps({"spec": spec}))
    until(lambda: installed.counts("edited").get(f"200 {after.client_id}"), "a token of the other")
    installed.delete("pod/edited", f"azureidentitybinding/{before.name}", f"azureidentity/{before.name}")


def test_nobody_inherits_an_address(installed: Cluster, reader: Identity, writer: Identity) -> None:
    """Pods with another identity or none follow each other on one address, and none gets its predecessor's token."""
    addresses, answers = [], []
    chosen = [reader, None, writer, None, reader, writer]
    for number, identity in enumerate(chosen):
        installed.forget_last_address("node-0")
        name = f"successor-{number}"
        installed.create(pod(name, ONCE, binding=identity.name if identity else None, node="node-0"))
        answers.append(json.loads(installed.finished(name)))
        addresses.append(installed.pod_ip(name))
        installed.delete(f"pod/{name}")
    assert len(set(addresses)) < len(addresses), f"no address came twice: {addresses}"
    assert answers == [["200", one.client_id] if one else ["400", ""] for one in chosen]


def test_no_packet_of_a_pod_reached_the_metadata_service(installed: Cluster) -> None:
    """After everything that the tests above did, the counter of each node is 0."""
    assert installed.imds_packets() == 0


def _asks_as(installed: Cluster, name: str, identity: Identity) -> bool:
    said = installed.kubectl("exec", name, "--", "python3", "-c", ONCE)
    assert json.loads(said) == ["200", identity.client_id]
    return True


def _container(script: str, identity: Identity) -> dict[str, Any]:
    own = [{"name": "OWN", "value": identity.client_id}]
    return {"name": "ask", "image": TOOLS, "command": ["python3", "-u", "-c", script], "env": own}


def _template(name: str, identity: Identity, command: list[str] | None = None, **spec: Any) -> dict[str, Any]:
    labels = {"app": name, "aadpodidbinding": identity.name}
    container = _container(OWN, identity) | {"command": command or ["sleep", "infinity"]}
    grace = {"terminationGracePeriodSeconds": 0}
    return {"metadata": {"labels": labels}, "spec": {"containers": [container], **grace, **spec}}


def _job(name: str, identity: Identity, **spec: Any) -> dict[str, Any]:
    template = _template(name, identity, ["python3", "-u", "-c", OWN], restartPolicy="Never", **spec)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": template, "backoffLimit": 0},
    }


def _cron_job(identity: Identity) -> dict[str, Any]:
    spec = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": _job("cron", identity)["spec"]}}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "cron"}, "spec": spec}


def _stateful_set(name: str, identity: Identity) -> dict[str, Any]:
    selector = {"matchLabels": {"app": name}}
    template = _template(name, identity, nodeName="node-0")
    spec = {"serviceName": name, "replicas": 1, "selector": selector, "template": template}
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}, "spec": spec}


def _job_is_over(installed: Cluster, name: str) -> bool:
    conditions = installed.get("job", name)["status"].get("conditions") or ()
    return any(one["type"] in {"Complete", "Failed"} and one["status"] == "True" for one in conditions)
