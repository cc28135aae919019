"""What the demo proves of podidentity's own promises: rights, deletions, restarts of NMI, and who takes what away."""

import json
import time

from podidentity.lab.demo.asking import ASK_AGAIN, answers_of, start_asking
from podidentity.lab.demo.proofs import OTHER
from podidentity.lab.demo.stage import Stage, expect
from podidentity.lab.demo.story import APP, GROUP, IDENTITY, LOCATION
from podidentity.lab.nodes import SCALE_SET

ROLE = "Managed Identity Operator"
FORGOTTEN = "forgotten-identity"
FOREIGN = "foreign-identity"
WATCHER = "watcher"
HAMMERS = ("hammer-0", "hammer-1")
PROMISED_SECONDS = 2.0
_MORE_ANSWERS = 5  # so many show that a state lasts


def without_the_role(stage: Stage) -> None:
    """An identity that the cluster may not use: the event names the missing right, and nothing is assigned."""
    made = stage.admin.create_identity(GROUP, FORGOTTEN, LOCATION)
    stage.az(f"identity create -n {FORGOTTEN} -g {GROUP}", made, "clientId")
    stage.bind(FORGOTTEN, made)
    start_asking(stage, FORGOTTEN, {"aadpodidbinding": FORGOTTEN})
    told: list[str] = []

    def is_told() -> bool:
        told[:] = [one for one in stage.events("AzureIdentityBinding", FORGOTTEN) if ROLE in one]
        return bool(told)

    stage.until(f"an event on the binding {FORGOTTEN} that names the missing role", is_told)
    stage.narrator.asked(f"kubectl get events   # of the binding {FORGOTTEN}")
    stage.narrator.answered(told[-1])
    expect("state of the assignment", expected="Created", got=stage.assigned_states().get(FORGOTTEN))
    expect("whether the scale set carries it", expected=False, got=carries(stage, FORGOTTEN))
    stage.until(
        f"the condition of AzureIdentity {FORGOTTEN} to name the missing role",
        lambda: ROLE in json.dumps(stage.get("azureidentity", FORGOTTEN).get("status")),
    )
    why = stage.explain(FORGOTTEN, outcome=1)
    expect("whether explain names the missing role", expected=True, got=ROLE in why)
    stage.quietly("delete", "pod", FORGOTTEN, "--wait=false")
    stage.quietly("delete", "azureidentitybinding", FORGOTTEN)
    stage.narrator.proved("the event says which role is missing and where; nothing was assigned")


def binding_deleted(stage: Stage) -> None:
    """No further token, cached or not, once the binding is gone; who starts again is refused, too."""
    start_asking(stage, WATCHER, {"aadpodidbinding": OTHER}, ASK_AGAIN)
    stage.until(f"tokens for {WATCHER}", lambda: len(answers_of(stage, WATCHER, status=200)) >= _MORE_ANSWERS)
    stage.kubectl("delete", "azureidentitybinding", OTHER)
    deleted = time.time()
    stage.until(
        f"refusals to {WATCHER}, started afresh",
        lambda: sum(one.restarted and one.status >= 400 for one in answers_of(stage, WATCHER)) >= _MORE_ANSWERS,
    )
    answers = answers_of(stage, WATCHER)
    issued = [one for one in answers if one.status == 200]
    refused = next(one for one in answers if one.status >= 400)
    stage.narrator.asked(f"kubectl logs {WATCHER}   # asks ten times a second; started again at the first refusal")
    stage.narrator.answered(f"{len(issued)} tokens, then: {refused.text}")
    expect("tokens after the first refusal", expected=0, got=sum(one.time > refused.time for one in issued))
    stage.explain(WATCHER, outcome=1)
    late = max(0.0, issued[-1].time - deleted)
    stage.quietly("delete", "pod", WATCHER, "--wait=false")
    stage.narrator.proved(
        f"the last token came {late:.1f} s after the binding was gone (promised: {PROMISED_SECONDS:g} s); whoever "
        "starts again is refused. A token that was issued before lives until its `exp`, as in Azure"
    )


def nmi_comes_and_goes(stage: Stage) -> None:
    """Killed, restarted and rolled, NMI lets no packet through to the metadata service."""
    nodes = sorted(stage.packets())
    for name, node in zip(HAMMERS, nodes, strict=False):
        start_asking(stage, name, {}, ASK_AGAIN, node=node)
    hammers = HAMMERS[: len(nodes)]
    for name in hammers:
        stage.until(f"answers to {name}", lambda name=name: answers_of(stage, name))  # type: ignore[misc]
    before = stage.packets()
    stage.kubectl("delete", "pod", "-l", "component=nmi", "--force", "--grace-period=0", show=_KILL)
    stage.rollout("daemonset/nmi")
    stage.kubectl("rollout", "restart", "daemonset/nmi")
    stage.rollout("daemonset/nmi")
    rolled = time.time()
    for name in hammers:
        stage.until(f"an answer to {name} from the new NMI", lambda name=name: _answered(stage, name, rolled))  # type: ignore[misc]
    answers = [one for name in hammers for one in answers_of(stage, name)]
    counts = {
        status: sum(one.status == status for one in answers) for status in sorted({one.status for one in answers})
    }
    stage.narrator.asked(f"kubectl logs {' '.join(hammers)}   # pods without an identity that ask all the time")
    stage.narrator.answered(f"answers by status, 0: none came: {json.dumps(counts)}")
    expect("tokens for pods without an identity", expected=0, got=counts.get(200, 0))
    expect("packets of pods at the metadata service", expected=before, got=stage.packets())
    stage.explain(hammers[0], outcome=1)
    for name in hammers:
        stage.quietly("delete", "pod", name, "--wait=false")
    stage.narrator.proved("while NMI was killed, restarted and rolled, pods were held or refused, and none got past it")


def last_pod_gone(stage: Stage) -> None:
    """The identity leaves the scale set with its last pod; what somebody else put there stays."""
    made = stage.admin.create_identity(GROUP, FOREIGN, LOCATION)
    group = stage.environment["LAB_NODE_RESOURCE_GROUP"]
    stage.admin.assign_to_scale_set(group, SCALE_SET, made["id"])
    stage.narrator.asked(f"az vmss identity assign -n {SCALE_SET} -g {group} --identities {made['id']}")
    for name in (IDENTITY, FOREIGN):
        stage.until(f"{name} on the scale set", lambda name=name: carries(stage, name))  # type: ignore[misc]
    stage.narrator.answered(json.dumps(_names(stage)))
    stage.kubectl("scale", f"deployment/{APP}", "--replicas=0")
    stage.until(f"{IDENTITY} to leave the scale set", lambda: not carries(stage, IDENTITY))
    stage.narrator.asked(f"az vmss identity show -n {SCALE_SET} -g {group}")
    stage.narrator.answered(json.dumps(_names(stage)))
    expect("whether the foreign identity is still there", expected=True, got=carries(stage, FOREIGN))
    stage.narrator.proved(f"{IDENTITY} left with its last pod; {FOREIGN}, which podidentity did not bring, stayed")


_KILL = "kubectl delete pod -l component=nmi --force --grace-period=0   # SIGKILL to every NMI"


def _names(stage: Stage) -> list[str]:
    found = stage.admin.scale_set_identities(stage.environment["LAB_NODE_RESOURCE_GROUP"], SCALE_SET)
    return sorted(one.rsplit("/", 1)[1] for one in found)


def carries(stage: Stage, name: str) -> bool:
    """Whether the scale set carries an identity of this name."""
    return name in _names(stage)


def _answered(stage: Stage, pod: str, since: float) -> bool:
    return any(one.time > since and one.status for one in answers_of(stage, pod))
