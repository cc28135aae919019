"""From aad-pod-identity to podidentity and back, on a cluster with the objects that aad-pod-identity leaves.

The tests build on each other, in this order: its objects; our images under its manifests; our manifests; back again;
our manifests at once. They run last: they remove podidentity from the cluster, and what upstream's roles refuse would
spoil what `test_rights` counts.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import yaml

import upstreams
from cluster.harness import DEPLOY, REPOSITORY, Cluster, Identity, pod, until
from cluster.programs import KEEP_ASKING, ONCE

PAGE = REPOSITORY / "docs/migrate/from-aad-pod-identity.md"
TOOLS = "podidentity/lab-tools:1"
KINDS = ("azureassignedidentities", "azureidentities", "azureidentitybindings", "azurepodidentityexceptions")
STATES = {"kept": "Assigned", "ancient": None, "fresh": "Created", "dropped": "Unassigned"}
"""Pod (and identity, and selector) to the state that aad-pod-identity left its assigned identity in."""
SLEEP = ["sh", "-c", "trap 'exit 0' TERM; sleep infinity & wait"]
PROBLEM = "without-a-resource-id"
"""An AzureIdentity, and its binding, about which somebody has to act: of such alone conditions are written."""
IDLE = "import signal; signal.pause()"
CHAIN = """\
-N aad-metadata
-A aad-metadata ! -s 127.0.0.1/32 -d 169.254.169.254/32 -p tcp --dport 80 -j DNAT --to-destination 127.0.0.1:2579
-A aad-metadata -j RETURN
-I PREROUTING 1 -j aad-metadata"""


@dataclass
class Story:
    """The cluster, and what was there at the beginning."""

    cluster: Cluster
    identities: dict[str, Identity]
    began: str
    """When aad-pod-identity's installation was made: audit records before it are other tests'."""
    tables: dict[str, set[str]] = field(default_factory=dict)
    """Node to the netfilter tables and routing rules that it had without any of the two."""

    def answer(self, name: str) -> list[str]:
        """Return what a pod gets that asks now: the status, and the client ID of the token."""
        told: list[str] = json.loads(self.cluster.kubectl("exec", name, "--", "python3", "-c", ONCE))
        return told

    def own(self, name: str) -> list[str]:
        """Return what a pod should get."""
        return ["200", self.identities[name].client_id]

    def served(self, name: str) -> bool:
        """Whether a pod gets what it should."""
        return self.answer(name) == self.own(name)

    def states(self) -> dict[str, str]:
        """Return the assigned identities: their name and state."""
        items = self.cluster.get("azureassignedidentities", "-A")["items"]
        return {one["metadata"]["name"]: one.get("status", {}).get("status", "") for one in items}

    def on_node(self, node: str, *command: str) -> str:
        """Run a command in a node's network namespace; return what it printed."""
        pid = self.cluster.inside()
        net = f"--net=/proc/{pid}/root/run/netns/{node}"
        entered = ["nsenter", f"--target={pid}", "--mount", net, "--", *command]
        done = subprocess.run(entered, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{node}: {' '.join(command)}: {done.stderr}"
        return done.stdout

    def rules(self, node: str) -> set[str]:
        """Return a node's tables and routing rules, but for the tables that kube-proxy and iptables keep."""
        tables = self.on_node(node, "nft", "list", "tables").splitlines()
        foreign = {"table ip nat", "table ip kube-proxy", "table ip6 kube-proxy"}
        return {*tables, *self.on_node(node, "ip", "-4", "rule").splitlines()} - foreign

    def chains(self) -> set[str]:
        """Return the nodes that have aad-pod-identity's chain."""
        return {one for one in self.cluster.nodes() if "aad-metadata" in self.on_node(one, "nft", "list", "ruleset")}

    def logs(self, component: str) -> str:
        """Return what all pods of a daemon say."""
        return self.cluster.kubectl("logs", "-l", f"component={component}", "--tail=-1", "--max-log-requests=10")

    def refused(self) -> Counter[tuple[str, str, str]]:
        """Return how often the daemons were refused something since the story began: pod, verb, resource."""
        found: Counter[tuple[str, str, str]] = Counter()
        for one in self.cluster.requests():
            name = one["user"]["username"].rpartition(":")[2]
            late = one["requestReceivedTimestamp"] >= self.began
            if late and name in upstreams.ACCOUNTS.values() and one.get("responseStatus", {}).get("code") == 403:
                who = one["user"].get("extra", {}).get("authentication.kubernetes.io/pod-name", [name])[0]
                found[who, one["verb"], one["objectRef"]["resource"]] += 1
        return found


@pytest.fixture(scope="module")
def story(cluster: Cluster) -> Iterator[Story]:
    """A cluster with aad-pod-identity's objects, pods in each state, and its chain on the nodes; nothing of ours."""
    cluster.uninstall()
    identities = {name: cluster.identity(f"{name}-id") for name in (*STATES, "late")}
    made = Story(cluster, identities, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    made.tables = {node: made.rules(node) for node in cluster.nodes()}
    assert not [rule for rules in made.tables.values() for rule in rules if "podidentity" in rule or "169.254" in rule]
    cluster.create(*upstreams.definitions())
    cluster.kubectl("wait", "--for=condition=Established", "crd", *(f"{one}.{upstreams.GROUP}" for one in KINDS))
    cluster.create(*upstreams.roles(), *_asleep())
    _leave_objects(made)
    _put_its_chain(made)
    for name in STATES:
        cluster.pod_ip(name)
    cluster.roll_out("daemonset/nmi")
    yield made
    cluster.uninstall()


def test_our_images_under_its_manifests(story: Story) -> None:
    """With only the images changed, NMI alone serves pods that are assigned already.

    MIC then takes over everything else.
    """
    cluster, packets = story.cluster, story.cluster.imds_packets()
    right = _versions(story, "kept")
    _change_image(cluster, "daemonset", "nmi")
    for name in ("kept", "ancient"):
        # Upstream's manifest has no readiness probe, so that a rollout ends before NMI answers.
        until(partial(story.served, name), f"a token of pod {name}")
    _change_image(cluster, "deployment", "mic")
    for name in STATES:
        assert story.answer(name) == story.own(name)
    until(lambda: set(story.states()) == {f"{name}-default-{name}-id" for name in STATES}, "objects of pods long gone")
    assert set(story.states().values()) <= {"Assigned", ""}
    cluster.create(pod("late", IDLE, binding="late", node="node-0"))
    until(lambda: story.states().get("late-default-late-id") == "Assigned", "a new pod's identity")
    assert story.answer("late") == story.own("late")
    assert _versions(story, "kept") == right
    until(lambda: not story.chains(), "the chain's end")
    assert cluster.imds_packets() == packets


def test_each_missing_right_is_said_once(story: Story) -> None:
    """Each process tries a right that upstream's role lacks only once or a few times, says so, and works without it."""
    missing = {
        ("create", "events"),
        ("get", "leases"),
        ("patch", "azureidentities"),
        ("patch", "azureidentitybindings"),
    }
    until(lambda: missing <= {(verb, resource) for _, verb, resource in story.refused()}, "each right to be tried")
    until(lambda: "conditions are not written on azureidentitybindings" in story.logs("mic"), "MIC's warnings")
    until(lambda: "events are not written" in story.logs("nmi"), "NMI's warning")
    logs, refused = {part: story.logs(part) for part in upstreams.ACCOUNTS}, story.refused()
    assert " ERROR " not in logs["nmi"] + logs["mic"]
    assert "Traceback" not in logs["nmi"] + logs["mic"]
    tried = {(verb, resource) for _, verb, resource in refused}
    own_decision = {("get", "nodes"), ("list", "leases")}  # NMI stops at the first of these that it lacks
    assert tried & own_decision
    assert tried - own_decision == missing
    restarts = {one["metadata"]["name"]: _restarts(one) for one in story.cluster.get("pods")["items"]}
    # Once for each process; on a busy machine one may restart, or a leader begin a second term. NMI checks its role
    # again after pauses that double: within these minutes a few times.
    assert all(
        count <= (6 if (verb, resource) in own_decision else 2) * (1 + restarts.get(who, 0))
        for (who, verb, resource), count in refused.items()
    ), refused
    assert "election without a Lease" in logs["mic"]


def test_our_manifests_over_it(story: Story) -> None:
    """After `kubectl apply` of our manifests pods still get their own tokens.

    Objects that are right are not written again.
    """
    cluster = story.cluster
    names = (*STATES, "late")
    before, uids = [_versions(story, name) for name in names], _uids(cluster)
    cluster.create(pod("asking", KEEP_ASKING, binding="kept", node="node-1"))
    own = f"200 {story.identities['kept'].client_id}"
    until(lambda: cluster.counts("asking").get(own, 0) > 5, "tokens before")
    cluster.kubectl("apply", "-f", str(DEPLOY / "deployment-rbac.yaml"))
    for workload in ("daemonset/nmi", "deployment/mic"):
        assert _container(cluster, workload)["resources"]["limits"]["cpu"] == "200m"  # no manager owns it: it stays
        cluster.kubectl("patch", *workload.split("/"), "--type=json", "-p", _limit_patch())
        assert "cpu" not in _container(cluster, workload)["resources"]["limits"]
    cluster.roll_out("daemonset/nmi")
    cluster.roll_out("deployment/mic")
    until(lambda: _conditions(cluster, PROBLEM), "conditions, which need our definitions and our roles")
    asked = cluster.counts("asking").get(own, 0)
    until(lambda: cluster.counts("asking").get(own, 0) > asked + 5, "tokens afterwards")
    assert set(cluster.counts("asking")) == {own}
    assert [_versions(story, name) for name in names] == before
    assert _uids(cluster) == uids
    assert {name: story.answer(name) for name in names} == {name: story.own(name) for name in names}


def test_back_to_it(story: Story) -> None:
    """After the recipe of docs/migrate nothing of ours is left on the nodes.

    The objects are such as aad-pod-identity writes them.
    """
    cluster = story.cluster
    before = {name: _stored(story, name)["spec"] for name in STATES}
    assert all(story.rules(node) > story.tables[node] for node in cluster.nodes())
    cluster.take_interception_away()
    extra = ("poddisruptionbudget/mic-pdb", "role/aad-pod-id-mic-role", "rolebinding/aad-pod-id-mic-binding")
    cluster.kubectl("delete", "deployment/mic", "--cascade=foreground")
    cluster.kubectl("delete", *extra)
    assert {node: story.rules(node) for node in cluster.nodes()} == story.tables
    packets = cluster.imds_packets()
    assert story.answer("kept") != story.own("kept")
    assert cluster.imds_packets() > packets, "a pod is still cut off, and would be from an aad-pod-identity too"
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*upstreams.definitions(), *upstreams.roles()]})
    cluster.kubectl("apply", "-f", "-", stdin=text)
    cluster.create(*_asleep("args"))
    for name in STATES:
        stored = _stored(story, name)
        assert stored["spec"] == before[name]
        assert not _conditions(cluster, f"{name}-id")
        _reads_as_upstream_writes(story, name, stored)
    config = cluster.get("configmap", "aad-pod-identity-config")["data"]
    assert config["type-upgrade-status"] == "completed"
    lock = cluster.get("endpoints", upstreams.LOCK)["metadata"]["annotations"][upstreams.LEADER_ANNOTATION]
    assert json.loads(lock)["leaderTransitions"] > 7
    told = f"its MIC would have to wait for ours; {lock} after {_writes_of_the_lock(cluster)}"
    assert json.loads(lock)["holderIdentity"] == "", told


def test_our_manifests_straight_over_it(story: Story) -> None:
    """Our manifests are applied at once over its workloads, its chain on the nodes, and objects in each state."""
    cluster = story.cluster
    for name, state in STATES.items():
        status = json.dumps({"status": {"status": state}})
        cluster.kubectl("patch", "azureassignedidentity", f"{name}-default-{name}-id", "--type=merge", "-p", status)
    _put_its_chain(story)
    packets, uids = cluster.imds_packets(), _uids(cluster)
    cluster.kubectl("apply", "-f", str(DEPLOY / "deployment-rbac.yaml"))
    cluster.roll_out("daemonset/nmi")
    cluster.roll_out("deployment/mic")
    for name in STATES:
        assert story.answer(name) == story.own(name)
    until(lambda: {story.states()[f"{name}-default-{name}-id"] for name in STATES} <= {"Assigned", ""}, "each state")
    until(lambda: not story.chains(), "the chain's end")
    assert _uids(cluster) == uids
    assert cluster.imds_packets() == packets


def _writes_of_the_lock(cluster: Cluster) -> list[str]:
    """Return the last requests about the lock: time, pod, verb and answer."""
    return [
        f"{one['requestReceivedTimestamp']} {one['user'].get('extra', {})} {one['verb']} {one.get('responseStatus')}"
        for one in cluster.requests()
        if one.get("objectRef", {}).get("resource") == "endpoints" and one["objectRef"].get("name") == upstreams.LOCK
    ][-12:]


def _put_its_chain(story: Story) -> None:
    """Put the iptables chain of aad-pod-identity's NMI on every node."""
    for node in story.cluster.nodes():
        for line in CHAIN.splitlines():
            story.on_node(node, "iptables-nft", "-w", "-t", "nat", *line.split())
    assert story.chains() == set(story.cluster.nodes())


def _asleep(instead_of: str = "command") -> list[dict[str, Any]]:
    """Return its workloads with a command that does nothing.

    Its binaries are not here, so that the command takes their place or that of their flags (`instead_of`).
    """
    made = [upstreams.daemon_set(TOOLS), upstreams.deployment(TOOLS)]
    for one in made:
        one["spec"]["template"]["spec"]["containers"][0][instead_of] = SLEEP
    return made


def _change_image(cluster: Cluster, kind: str, name: str) -> None:
    """Do what `kubectl set image` does, and remove the stand-in's command, so that the image's entry point runs."""
    at = "/spec/template/spec/containers/0"
    change = [
        {"op": "replace", "path": f"{at}/image", "value": _image(name)},
        {"op": "remove", "path": f"{at}/command"},
    ]
    cluster.kubectl("patch", kind, name, "--type=json", "-p", json.dumps(change))
    cluster.roll_out(f"{kind}/{name}")


def _image(name: str) -> str:
    for obj in yaml.safe_load_all((DEPLOY / "deployment-rbac.yaml").read_text()):
        if obj["kind"] in {"DaemonSet", "Deployment"} and obj["metadata"]["name"] == name:
            return str(obj["spec"]["template"]["spec"]["containers"][0]["image"])
    raise AssertionError(f"no image of {name}")


def _leave_objects(story: Story) -> None:
    """Create what aad-pod-identity's last leader left.

    There are objects in each state, of pods that exist and of pods that are gone.
    """
    cluster, nodes = story.cluster, ("node-0", "node-1")
    for name, identity in story.identities.items():
        cluster.bind(identity, selector=name)
    cluster.bind(Identity(PROBLEM, "nobodys", "no resource ID"))
    for number, (name, state) in enumerate(STATES.items()):
        node = nodes[number % 2]
        cluster.create(pod(name, IDLE, binding=name, node=node), _assigned(story, name, name, node, state))
        if state != "Created":
            group, scale_set = _scale_set(cluster, node)
            cluster.admin.assign_to_scale_set(group, scale_set, story.identities[name].resource_id)
    cluster.create(
        _assigned(story, "gone", "kept", "node-1", "Assigned"),
        _assigned(story, "went", "dropped", "node-0", "Unassigned"),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "aad-pod-identity-config"},
            "data": {"type-upgrade-status": "completed"},
        },
        _lock(),
    )


def _assigned(story: Story, name: str, of: str, node: str, state: str | None) -> dict[str, Any]:
    identity = story.identities[of].name
    whole = {kind: story.cluster.get(kind, identity) for kind in ("azureidentity", "azureidentitybinding")}
    return upstreams.assigned(name, node, whole["azureidentity"], whole["azureidentitybinding"], state)


def _lock() -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    record = {
        "holderIdentity": "mic-5d8f9c7b6-dead",
        "leaseDurationSeconds": 15,
        "acquireTime": now,
        "renewTime": now,
        "leaderTransitions": 7,
    }
    annotations = {upstreams.LEADER_ANNOTATION: json.dumps(record)}
    metadata = {"name": upstreams.LOCK, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata}


def _scale_set(cluster: Cluster, node: str) -> tuple[str, str]:
    words = cluster.get("node", node)["spec"]["providerID"].split("/")
    return words[words.index("resourceGroups") + 1], words[words.index("virtualMachineScaleSets") + 1]


def _stored(story: Story, name: str) -> dict[str, Any]:
    return story.cluster.get("azureassignedidentity", f"{name}-default-{name}-id")


def _versions(story: Story, name: str) -> str:
    return str(_stored(story, name)["metadata"]["resourceVersion"])


def _uids(cluster: Cluster) -> set[str]:
    definitions = (f"crd/{one}.{upstreams.GROUP}" for one in KINDS)
    kept = cluster.get("daemonset/nmi", "deployment/mic", *definitions)["items"]
    return {one["metadata"]["uid"] for one in kept}


def _container(cluster: Cluster, workload: str) -> dict[str, Any]:
    container: dict[str, Any] = cluster.get(workload)["spec"]["template"]["spec"]["containers"][0]
    return container


def _restarts(obj: dict[str, Any]) -> int:
    return sum(one["restartCount"] for one in obj["status"].get("containerStatuses") or ())


def _limit_patch() -> str:
    """Return the patch of docs/migrate that removes the CPU limits of upstream's manifest."""
    text = PAGE.read_text()
    return text[text.index("-p '") + 4 : text.index("]'") + 1]


def _conditions(cluster: Cluster, name: str) -> bool:
    return bool(cluster.get("azureidentity", name).get("status", {}).get("conditions"))


def _reads_as_upstream_writes(story: Story, name: str, stored: dict[str, Any]) -> None:
    """Hold that names, label, finalizer and fields are those that aad-pod-identity's code reads."""
    spec, identity = stored["spec"], story.identities[name]
    assert stored["metadata"]["labels"] == {"nodename": spec["nodename"]}
    assert stored["metadata"]["finalizers"] == [f"azureassignedidentity.finalizers.{upstreams.GROUP}"]
    assert (spec["pod"], spec["podNamespace"]) == (name, "default")
    assert spec["azureIdentityRef"]["metadata"]["name"] == identity.name
    wanted = {"type": 0, "resourceID": identity.resource_id, "clientID": identity.client_id}
    assert spec["azureIdentityRef"]["spec"] == wanted
    assert spec["azureBindingRef"]["spec"] == {"azureIdentity": identity.name, "selector": name}
    assert stored.get("status", {}).get("status", "Assigned") == "Assigned"
