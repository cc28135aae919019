"""A node that joins later: no pod starts there before interception stands, and then pods have their identities."""

import json

from cluster.harness import DEPLOY, Cluster, pod, until
from cluster.programs import KEEP_ASKING

NODE = "node-2"
TAINT = "podidentity.io/starting"


def test_a_startup_taint_goes_when_interception_stands(installed: Cluster) -> None:
    """A pod starts only after NMI has removed the taint, gets tokens alone, and no packet of it reaches IMDS."""
    identity = installed.identity("latecomer")
    installed.bind(identity)
    # As in docs/configure/startup-taint.md: the right with the policy that limits it, and the flag.
    installed.kubectl("apply", "--validate=strict", "-f", str(DEPLOY / "startup-taint.yaml"))
    flag = [{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": f"--startup-taint={TAINT}"}]
    installed.kubectl("patch", "daemonset", "nmi", "--type=json", "-p", json.dumps(flag))
    installed.roll_out("daemonset/nmi")
    late = pod("latecomer", KEEP_ASKING, binding=identity.name, nodeSelector={"kubernetes.io/hostname": NODE})
    installed.create(late)
    told = installed.lab.run("join", "--name", installed.lab.name, NODE, "--taint", f"{TAINT}=true:NoSchedule")
    assert told.returncode == 0, told.stderr
    until(lambda: NODE in installed.nodes(), f"{NODE} to register")
    try:
        own = f"200 {identity.client_id}"
        until(lambda: installed.counts("latecomer").get(own, 0) > 10, f"tokens on {NODE}")
        taints = installed.get("node", NODE)["spec"].get("taints") or ()
        assert TAINT not in {taint["key"] for taint in taints}
        assert _started(installed, "latecomer") >= _ready(installed)
        assert set(installed.counts("latecomer")) == {own}
        assert installed.imds_packets() == 0
    finally:
        installed.delete("pod/latecomer")
        installed.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(DEPLOY / "deployment-rbac.yaml"))


def _started(installed: Cluster, name: str) -> str:
    """Return when the pod was bound to its node.

    Times of one machine's clock, to the second, compare as text.
    """
    conditions = installed.get("pod", name)["status"]["conditions"]
    return str(next(one["lastTransitionTime"] for one in conditions if one["type"] == "PodScheduled"))


def _ready(installed: Cluster) -> str:
    """Return when NMI's container on the node began to run."""
    items = installed.get("pods", "-l", "component=nmi")["items"]
    states = [one["status"]["containerStatuses"][0]["state"] for one in items if one["spec"]["nodeName"] == NODE]
    return str(states[0]["running"]["startedAt"])
