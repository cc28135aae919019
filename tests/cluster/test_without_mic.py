"""Without MIC, a new pod whose identity is on its machine gets its token as before.

One whose identity is not there waits.
"""

import json
from collections.abc import Iterator
from functools import partial

import pytest

from cluster.harness import Cluster, Identity, custom, pod, until
from cluster.programs import KEEP_ASKING, ONCE
from system.lab.running import Json

NODES = ("node-0", "node-1")


@pytest.fixture(scope="module")
def standing(installed: Cluster) -> Iterator[Identity]:
    """An identity on the machines of both nodes, each with a pod that keeps it there; then MIC is stopped."""
    made = installed.identity("standing")
    installed.bind(made)
    for node in NODES:
        installed.create(pod(f"standing-{node}", KEEP_ASKING, binding=made.name, node=node))
    own = f"200 {made.client_id}"
    for node in NODES:
        until(partial(_has_tokens, installed, f"standing-{node}", own), f"tokens on {node}")
    replicas = installed.get("deployment", "mic")["spec"]["replicas"]
    installed.kubectl("scale", "deployment", "mic", "--replicas=0")
    until(lambda: not installed.get("pods", "-l", "component=mic")["items"], "the end of MIC")
    yield made
    installed.kubectl("scale", "deployment", "mic", f"--replicas={replicas}")
    installed.roll_out("deployment/mic")
    installed.delete(*(f"pod/standing-{node}" for node in NODES))
    until(lambda: made.name not in json.dumps(_told_of_machines(installed)), "MIC's work is done again")


def test_a_new_pod_has_its_token_without_any_write_of_mics(installed: Cluster, standing: Identity) -> None:
    """A new pod on each node gets its token, and no AzureAssignedIdentity names that pod."""
    for node in NODES:
        name = f"late-{node}"
        installed.create(pod(name, ONCE, binding=standing.name, node=node))
        assert json.loads(installed.finished(name)) == ["200", standing.client_id]
        assert name not in _pods_with_objects(installed)
        installed.delete(f"pod/{name}")


def test_bindings_made_and_removed_without_mic_count(installed: Cluster, standing: Identity) -> None:
    """A new binding gives a pod the token; after its deletion the pod gets refusals alone."""
    spec = {"azureIdentity": standing.name, "selector": "unmanned"}
    installed.create(custom("AzureIdentityBinding", "unmanned", spec))
    installed.create(pod("unmanned", KEEP_ASKING, binding="unmanned", node="node-0"))
    own = f"200 {standing.client_id}"
    until(lambda: installed.counts("unmanned").get(own), "a token by the new binding")
    installed.delete("azureidentitybinding/unmanned")
    until(lambda: installed.counts("unmanned").get("400"), "the end of the tokens")
    tokens = installed.counts("unmanned")[own]
    refusals = installed.counts("unmanned")["400"]
    until(lambda: installed.counts("unmanned")["400"] > refusals + 20, "more refusals")
    assert installed.counts("unmanned")[own] == tokens
    installed.delete("pod/unmanned")


def test_each_machine_has_one_object(installed: Cluster, standing: Identity) -> None:
    """Each machine has one Lease, held by nobody, that names the identities on the machine."""
    leases = _told_of_machines(installed)
    assert len(leases) in {1, len(NODES)}
    for lease in leases:
        assert standing.name in lease["metadata"]["annotations"]["podidentity.io/identities"]
        assert "holderIdentity" not in lease.get("spec", {})


def _told_of_machines(installed: Cluster) -> list[Json]:
    leases: list[Json] = installed.get("leases", "-l", "podidentity.io/machine-state=true")["items"]
    return leases


def _has_tokens(installed: Cluster, name: str, own: str) -> bool:
    return installed.counts(name).get(own, 0) > 0


def _pods_with_objects(installed: Cluster) -> set[str]:
    items = installed.get("azureassignedidentities", "-A")["items"]
    return {str(item["spec"]["pod"]) for item in items}
