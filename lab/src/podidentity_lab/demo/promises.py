"""Proofs of podidentity's own promises: missing rights, deleted bindings, restarts of NMI, whose identities stay."""

import functools
import json
import time

from podidentity_lab.demo.asking import ASK_AGAIN, answers_of, start_asking
from podidentity_lab.demo.proofs import OTHER
from podidentity_lab.demo.stage import Stage, expect
from podidentity_lab.demo.story import APP, GROUP, IDENTITY, LOCATION
from podidentity_lab.nodes import SCALE_SET

ROLE = "Managed Identity Operator"
FORGOTTEN = "forgotten-identity"
FOREIGN = "foreign-identity"
WATCHER = "watcher"
HAMMERS = ("hammer-0", "hammer-1")
PROMISED_SECONDS = 2.0
_MORE_ANSWERS = 5  # enough to show that a state lasts


def without_the_role(stage: Stage) -> None:
    """Bind an identity that the cluster may not use: an event names the missing right, and nothing is assigned."""
    identity = stage.admin.create_identity(GROUP, FORGOTTEN, LOCATION)
    stage.az(f"identity create -n {FORGOTTEN} -g {GROUP}", identity, "clientId")
    stage.bind(FORGOTTEN, identity)
    start_asking(stage, FORGOTTEN, {"aadpodidbinding": FORGOTTEN})
    messages: list[str] = []

    def has_message() -> bool:
        messages[:] = [message for message in stage.events("AzureIdentityBinding", FORGOTTEN) if ROLE in message]
        return bool(messages)

    stage.until(f"an event on the binding {FORGOTTEN} that names the missing role", has_message)
    stage.narrator.show_command(f"kubectl get events   # of the binding {FORGOTTEN}")
    stage.narrator.show_answer(messages[-1])
    expect("state of the assignment", right="Created", actual=stage.assigned_states().get(FORGOTTEN))
    expect("whether the scale set carries it", right=False, actual=carries(stage, FORGOTTEN))
    stage.until(
        f"the condition of AzureIdentity {FORGOTTEN} to name the missing role",
        lambda: ROLE in json.dumps(stage.get("azureidentity", FORGOTTEN).get("status")),
    )
    explanation = stage.explain(FORGOTTEN, outcome=1)
    expect("whether explain names the missing role", right=True, actual=ROLE in explanation)
    stage.quietly("delete", "pod", FORGOTTEN, "--wait=false")
    stage.quietly("delete", "azureidentitybinding", FORGOTTEN)
    stage.narrator.show_proof("the event says which role is missing and where; nothing was assigned")


def binding_deleted(stage: Stage) -> None:
    """Delete a binding: no further token, cached or not, for the running program or for one that starts again."""
    start_asking(stage, WATCHER, {"aadpodidbinding": OTHER}, ASK_AGAIN)
    stage.until(f"tokens for {WATCHER}", lambda: len(answers_of(stage, WATCHER, status=200)) >= _MORE_ANSWERS)
    stage.kubectl("delete", "azureidentitybinding", OTHER)
    deleted_at = time.time()
    stage.until(
        f"refusals to {WATCHER}, started afresh",
        lambda: (
            sum(answer.restarted and answer.status >= 400 for answer in answers_of(stage, WATCHER)) >= _MORE_ANSWERS
        ),
    )
    answers = answers_of(stage, WATCHER)
    issued = [answer for answer in answers if answer.status == 200]
    refusal = next(answer for answer in answers if answer.status >= 400)
    stage.narrator.show_command(
        f"kubectl logs {WATCHER}   # asks ten times a second; started again at the first refusal"
    )
    stage.narrator.show_answer(f"{len(issued)} tokens, then: {refusal.text}")
    expect("tokens after the first refusal", right=0, actual=sum(answer.time > refusal.time for answer in issued))
    stage.explain(WATCHER, outcome=1)
    late = max(0.0, issued[-1].time - deleted_at)
    stage.quietly("delete", "pod", WATCHER, "--wait=false")
    stage.narrator.show_proof(
        f"the last token came {late:.1f} s after the binding was gone (promised: {PROMISED_SECONDS:g} s); whoever "
        "starts again is refused. A token that was issued before lives until its `exp`, as in Azure"
    )


def nmi_comes_and_goes(stage: Stage) -> None:
    """Kill, restart and roll out NMI: no packet gets through to the metadata service meanwhile."""
    nodes = sorted(stage.packets())
    for name, node in zip(HAMMERS, nodes, strict=False):
        start_asking(stage, name, {}, ASK_AGAIN, node=node)
    hammers = HAMMERS[: len(nodes)]
    for name in hammers:
        stage.until(f"answers to {name}", functools.partial(answers_of, stage, name))
    packets_before = stage.packets()
    stage.kubectl("delete", "pod", "-l", "component=nmi", "--force", "--grace-period=0", show=_KILL)
    stage.rollout("daemonset/nmi")
    stage.kubectl("rollout", "restart", "daemonset/nmi")
    stage.rollout("daemonset/nmi")
    rolled = time.time()
    for name in hammers:
        stage.until(f"an answer to {name} from the new NMI", functools.partial(_has_answered, stage, name, rolled))
    answers = [answer for name in hammers for answer in answers_of(stage, name)]
    counts = {
        status: sum(answer.status == status for answer in answers)
        for status in sorted({answer.status for answer in answers})
    }
    stage.narrator.show_command(f"kubectl logs {' '.join(hammers)}   # pods without an identity that ask all the time")
    stage.narrator.show_answer(f"answers by status, 0: none came: {json.dumps(counts)}")
    expect("tokens for pods without an identity", right=0, actual=counts.get(200, 0))
    expect("packets of pods at the metadata service", right=packets_before, actual=stage.packets())
    stage.explain(hammers[0], outcome=1)
    for name in hammers:
        stage.quietly("delete", "pod", name, "--wait=false")
    stage.narrator.show_proof(
        "while NMI was killed, restarted and rolled, pods were held or refused, and none got past it"
    )


def last_pod_gone(stage: Stage) -> None:
    """Delete the last pod: its identity leaves the scale set; what somebody else put there stays."""
    identity = stage.admin.create_identity(GROUP, FOREIGN, LOCATION)
    group = stage.environment["LAB_NODE_RESOURCE_GROUP"]
    stage.admin.assign_to_scale_set(group, SCALE_SET, identity["id"])
    stage.narrator.show_command(f"az vmss identity assign -n {SCALE_SET} -g {group} --identities {identity['id']}")
    for name in (IDENTITY, FOREIGN):
        stage.until(f"{name} on the scale set", functools.partial(carries, stage, name))
    stage.narrator.show_answer(json.dumps(_names(stage)))
    stage.kubectl("scale", f"deployment/{APP}", "--replicas=0")
    stage.until(f"{IDENTITY} to leave the scale set", lambda: not carries(stage, IDENTITY))
    stage.narrator.show_command(f"az vmss identity show -n {SCALE_SET} -g {group}")
    stage.narrator.show_answer(json.dumps(_names(stage)))
    expect("whether the foreign identity is still there", right=True, actual=carries(stage, FOREIGN))
    stage.narrator.show_proof(f"{IDENTITY} left with its last pod; {FOREIGN}, which podidentity did not bring, stayed")


_KILL = "kubectl delete pod -l component=nmi --force --grace-period=0   # SIGKILL to every NMI"


def _names(stage: Stage) -> list[str]:
    identities = stage.admin.scale_set_identities(stage.environment["LAB_NODE_RESOURCE_GROUP"], SCALE_SET)
    return sorted(identity.rsplit("/", 1)[1] for identity in identities)


def carries(stage: Stage, name: str) -> bool:
    """Whether the scale set carries an identity of this name."""
    return name in _names(stage)


def _has_answered(stage: Stage, pod: str, since: float) -> bool:
    return any(answer.time > since and answer.status for answer in answers_of(stage, pod))
