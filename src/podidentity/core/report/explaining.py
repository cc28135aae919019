"""What a pod would get when it asks for a token, and why: the daemons' own decisions, retold step by step.

Decides nothing by itself: who is exempt is `rules`, which bindings fit is `matching`, what MIC would write is
`assigning`, who answers is `choosing`. The last finding is the outcome.
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from podidentity.core.assignment import assigning, conditions
from podidentity.core.assignment.assigning import Offers
from podidentity.core.assignment.pod_assignments import pod_assignments
from podidentity.core.model import matching
from podidentity.core.model.identities import (
    POD_LABEL,
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzurePodIdentityException,
    IdentityType,
)
from podidentity.core.model.machine_state import MachineState
from podidentity.core.model.matching import IneffectiveBinding, Match
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Node, Pod, Snapshot
from podidentity.core.report.findings import Finding, Verdict, note, ok, problem, unknown, wait
from podidentity.core.tokens import choosing, exemptions
from podidentity.core.tokens.choosing import IdentityChoice, NoIdentity
from podidentity.core.tokens.imds import TokenRequest

_TYPES = {
    IdentityType.USER_ASSIGNED: "managed identity",
    IdentityType.FEDERATED: "managed identity whose tokens come from the broker",
    IdentityType.SERVICE_PRINCIPAL: "service principal with a secret",
    IdentityType.SERVICE_PRINCIPAL_CERTIFICATE: "service principal with a certificate",
}
_ANY = TokenRequest("https://management.azure.com/")


@dataclass(frozen=True, slots=True)
class Case:
    """A pod and everything that its token depends on. `snapshot.pods` is that pod alone.

    `nmi_ready` and `mic_ready` are None when that could not be seen.
    """

    pod: Pod
    snapshot: Snapshot
    policy: Policy = field(default_factory=Policy)
    exceptions: tuple[AzurePodIdentityException, ...] = ()
    managed_mode: bool = False
    mic_namespace: str = "default"
    nmi_ready: bool | None = None
    mic_ready: bool | None = None
    machine: MachineState | None = None
    """What MIC says of the pod's machine, where it says it: then NMI decides by itself what MIC assigns."""


def explain(case: Case) -> tuple[Finding, ...]:
    """Yield the findings on a token request of this pod, up to the point where it ends."""
    return tuple(_story(case))


def _story(case: Case) -> Iterator[Finding]:
    pod = case.pod
    if not pod.live:
        yield problem("pod", f"pod {pod.key} has ended ({pod.phase})", "ask for a pod that runs")
        return
    if not pod.node:
        yield wait("pod", f"pod {pod.key} has no node yet", f"see kubectl -n {pod.key.namespace} describe pod")
        return
    if pod.host_network:
        message = (
            f"pod {pod.key} uses its node's network: it reaches the metadata service itself, with the node's identity"
        )
        yield problem("pod", message, "take hostNetwork out of the pod")
        return
    yield ok("pod", f"pod {pod.key} is {pod.phase} on node {pod.node}")
    yield _nmi(case)
    if exemptions.is_excepted(pod, case.exceptions) or exemptions.is_mic(pod, case.mic_namespace):
        subject = (
            "MIC itself" if exemptions.is_mic(pod, case.mic_namespace) else "named by an AzurePodIdentityException"
        )
        yield note("exception", f"the pod is {subject}: it is answered as the node is, without any binding")
        return
    if not pod.selector:
        message = f"the pod has no label {POD_LABEL}"
        yield problem("label", message, f"label it, and the template it comes from: {POD_LABEL}=SELECTOR")
        return
    yield ok("label", f"{POD_LABEL}={pod.selector}")
    yield from (_as_delivered(binding, case) for binding in _bindings(case))


def _nmi(case: Case) -> Finding:
    if case.nmi_ready is None:
        return unknown("nmi", f"whether NMI is ready on node {case.pod.node} could not be seen")
    if case.nmi_ready:
        return ok("nmi", f"NMI is ready on node {case.pod.node}")
    message = f"no pod of NMI is ready on node {case.pod.node}: the pod's requests are refused or time out"
    return problem("nmi", message, "see the DaemonSet nmi, and the log of its pod on that node")


def _as_delivered(finding: Finding, case: Case) -> Finding:
    """Return a finding as it stands; a token that nobody is there to hand out is a problem."""
    if case.nmi_ready is not False or (finding.check, finding.verdict) != ("token", Verdict.OK):
        return finding
    return problem("token", f"the pod gets no token until NMI is ready on node {case.pod.node}; then {finding.message}")


def _as_decided(case: Case) -> Case:
    """Return the case with what NMI decides by itself in place of MIC's assigned identities, where it does so."""
    if case.machine is None or case.managed_mode:
        return case
    node, offers = Node(case.pod.node), Offers(case.snapshot, case.policy)
    assignments = pod_assignments(case.pod, node, case.machine.arm_state, offers, case.policy)
    return replace(case, snapshot=replace(case.snapshot, assigned_identities=assignments))


def _bindings(case: Case) -> Iterator[Finding]:
    case = _as_decided(case)
    results = tuple(_results(case))
    if not results:
        yield _no_binding(case)
        return
    matches = [match for match in results if isinstance(match, Match)]
    for result in results:
        if isinstance(result, IneffectiveBinding):
            tell = note if matches else problem
            yield tell("binding", f"binding {result.binding} has no effect: {result.message}")
        else:
            yield ok("binding", f"binding {result.binding.key} gives AzureIdentity {result.identity.key}")
            yield from _identity(result.identity, case)
    if not matches:
        return
    if case.managed_mode:
        yield _outcome(choosing.choose_bound(case.pod, _ANY, matches), [match.identity for match in matches])
        return
    for match in matches:
        yield _assignment(match, case)
    answer = choosing.choose(
        case.pod, _ANY, case.snapshot.assigned_identities, force_namespaced=case.policy.force_namespaced
    )
    ready = [match.identity for match in case.snapshot.assigned_identities if match.state == AssignedState.ASSIGNED]
    yield _outcome(answer, ready)


def _results(case: Case) -> Iterable[Match | IneffectiveBinding]:
    """Return the result of each binding; in managed mode, as in NMI, only of those in the pod's own namespace."""
    bindings = [
        binding
        for binding in case.snapshot.bindings
        if not case.managed_mode or binding.key.namespace == case.pod.key.namespace
    ]
    selections = matching.Selections(
        bindings,
        case.snapshot.identities,
        force_namespaced=case.policy.force_namespaced or case.managed_mode,
        permissions=case.snapshot.allow_list if case.policy.allow_list else None,
    )
    return selections.results_for(case.pod)


def _no_binding(case: Case) -> Finding:
    selectors = sorted({binding.selector for binding in case.snapshot.bindings if binding.selector})
    similar = difflib.get_close_matches(case.pod.selector, selectors, 1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    scope = f" in namespace {case.pod.key.namespace}" if case.managed_mode or case.policy.force_namespaced else ""
    message = f"no AzureIdentityBinding{scope} has the selector {case.pod.selector}"
    return problem("binding", message, f"create one, or correct the label{hint}")


def _identity(identity: AzureIdentity, case: Case) -> Iterator[Finding]:
    kind = _TYPES.get(IdentityType(identity.type)) if identity.type in _TYPES else None
    if kind is None:
        yield problem("identity", f"AzureIdentity {identity.key}: type {identity.type} is unknown", "use 0, 1 or 2")
        return
    message = matching.identity_refusal(identity)
    if message is not None:
        yield problem("identity", message, "correct resourceID")
        return
    yield ok("identity", f"AzureIdentity {identity.key} is a {kind}")
    if identity.type == IdentityType.FEDERATED:
        return
    if identity.type != IdentityType.USER_ASSIGNED:
        refusal = exemptions.secret_refusal(identity, ())
        if refusal is not None:
            yield note("secret", refusal)
        return
    yield from _conditions(identity, case)


def _conditions(identity: AzureIdentity, case: Case) -> Iterator[Finding]:
    """Report the identity's conditions. MIC wrote them seconds ago: the present state counts more where they differ."""
    is_assigned = case.managed_mode or _is_assigned(identity, case)
    for condition in identity.conditions:
        if condition.status != "False" or condition.reason == "NotInUse" or condition.type not in _SHOWN_TYPES:
            continue
        message = f"{condition.type} is False ({condition.reason}): {condition.message}"
        if condition.type == conditions.ASSIGNED_TYPE and is_assigned:
            yield note("azure", f"{message}; that is older, or of another machine than this pod's")
        elif conditions.is_older(condition, identity.generation):
            yield note("azure", f"{message}; that is older: the AzureIdentity was changed since")
        elif condition.reason == "Assigning":
            yield wait("azure", condition.message)
        else:
            yield problem("azure", message)


_SHOWN_TYPES = frozenset({conditions.ASSIGNED_TYPE, conditions.CLIENT_ID_MATCHES})


def _is_assigned(identity: AzureIdentity, case: Case) -> bool:
    """Whether the pod's own assigned identity is on the pod's node."""
    item = _assignment_of(identity, case)
    return (
        item is not None and item.node == case.pod.node and item.state == AssignedState.ASSIGNED and not item.deleting
    )


def _assignment_of(identity: AzureIdentity, case: Case) -> AzureAssignedIdentity | None:
    subject = (case.pod.key, identity.key)
    return next((item for item in case.snapshot.assigned_identities if tuple(item.assignment_key) == subject), None)


def _assignment(match: Match, case: Case) -> Finding:
    """The assigned identity of one binding."""
    item = _assignment_of(match.identity, case)
    name = f"AzureAssignedIdentity for {match.identity.key}"
    if item is None:
        return _missing(match, case)
    if item.node != case.pod.node:
        return wait("assigned", f"{name} still names node {item.node}; MIC corrects it", "see MIC's log if that lasts")
    if item.state == AssignedState.ASSIGNED:
        place = f"AzureIdentity {match.identity.key} is on the machine of {item.node}"
        return ok("assigned", f"{item.key} is Assigned" if case.machine is None else place)
    todo = f"see kubectl -n {match.binding.key.namespace} describe azureidentitybinding {match.binding.key.name}"
    place = f"the identity is not yet on the machine of {item.node}"
    return wait("assigned", f"{item.key} is {item.state}: {place}" if case.machine is None else place, todo)


def _missing(match: Match, case: Case) -> Finding:
    shadowed = [
        entry
        for entry in assigning.desired_assignments(case.snapshot, case.policy).ineffective
        if entry.binding == match.binding.key
        and entry.code in ("NameTaken", "MalformedResourceID", "TooManyIdentities", "NamespaceFull")
    ]
    if shadowed:
        return problem("assigned", shadowed[0].message)
    if case.mic_ready is False:
        return problem("assigned", "MIC is not ready: nobody assigns identities", "see the log of the pods mic")
    message = f"MIC has not written the assigned identity for {match.identity.key} yet"
    return wait("assigned", message, "it takes well under a second; see MIC's log if that lasts")


def _outcome(
    answer: choosing.IdentityChoice | choosing.NotReady | NoIdentity, ready: Iterable[AzureIdentity]
) -> Finding:
    if isinstance(answer, IdentityChoice):
        client_ids = sorted({identity.client_id for identity in ready if identity.client_id})
        suffix = f"; by client ID it may ask for: {', '.join(client_ids)}" if client_ids else ""
        return ok("token", f"the pod gets a token of AzureIdentity {answer.identity.key}{suffix}")
    tell, word = (problem, "is refused") if isinstance(answer, NoIdentity) else (wait, "waits")
    return tell("token", f"the pod's request {word}: {answer.message}")
