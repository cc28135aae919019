"""What a pod would get when it asks for a token, and why: the daemons' own decisions, retold step by step.

Decides nothing by itself: who is exempt is `rules`, which bindings fit is `matching`, what MIC would write is
`assigning`, who answers is `choosing`. The last finding is the outcome. Called by `cli.explain`.
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from podidentity.core import assigning, choosing, conditions, matching, rules
from podidentity.core.assigning import Policy
from podidentity.core.choosing import Chosen, Refused
from podidentity.core.cluster import Pod, Snapshot
from podidentity.core.findings import Finding, note, ok, problem, unknown, wait
from podidentity.core.identities import (
    POD_LABEL,
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzurePodIdentityException,
    IdentityType,
)
from podidentity.core.imds import TokenRequest
from podidentity.core.matching import Match, Skipped

_TYPES = {
    IdentityType.USER_ASSIGNED: "managed identity",
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


def explain(case: Case) -> tuple[Finding, ...]:
    """Tell the story of a token request of this pod, up to where it ends."""
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
        told = (
            f"pod {pod.key} uses its node's network: it reaches the metadata service itself, with the node's identity"
        )
        yield problem("pod", told, "take hostNetwork out of the pod")
        return
    yield ok("pod", f"pod {pod.key} is {pod.phase} on node {pod.node}")
    yield _nmi(case)
    if rules.is_excepted(pod, case.exceptions) or rules.is_mic(pod, case.mic_namespace):
        who = "MIC itself" if rules.is_mic(pod, case.mic_namespace) else "named by an AzurePodIdentityException"
        yield note("exception", f"the pod is {who}: it is answered as the node is, without any binding")
        return
    if not pod.selector:
        told = f"the pod has no label {POD_LABEL}"
        yield problem("label", told, f"label it, and the template it comes from: {POD_LABEL}=SELECTOR")
        return
    yield ok("label", f"{POD_LABEL}={pod.selector}")
    yield from _bindings(case)


def _nmi(case: Case) -> Finding:
    if case.nmi_ready is None:
        return unknown("nmi", f"whether NMI is ready on node {case.pod.node} could not be seen")
    if case.nmi_ready:
        return ok("nmi", f"NMI is ready on node {case.pod.node}")
    told = f"NMI is not ready on node {case.pod.node}: what the pod asks is refused"
    return problem("nmi", told, "see the log of the pod nmi on that node")


def _bindings(case: Case) -> Iterator[Finding]:
    results = tuple(_results(case))
    if not results:
        yield _no_binding(case)
        return
    matches = [one for one in results if isinstance(one, Match)]
    for result in results:
        if isinstance(result, Skipped):
            tell = note if matches else problem
            yield tell("binding", f"binding {result.binding} has no effect: {result.why}")
        else:
            yield ok("binding", f"binding {result.binding.key} gives AzureIdentity {result.identity.key}")
            yield from _identity(result.identity, case)
    if not matches:
        return
    if case.managed_mode:
        yield _outcome(choosing.choose_bound(case.pod, _ANY, matches), [one.identity for one in matches])
        return
    for match in matches:
        yield _assigned(match, case)
    answer = choosing.choose(case.pod, _ANY, case.snapshot.assigned, force_namespaced=case.policy.force_namespaced)
    ready = [one.identity for one in case.snapshot.assigned if one.state == AssignedState.ASSIGNED]
    yield _outcome(answer, ready)


def _results(case: Case) -> Iterable[Match | Skipped]:
    """What each binding comes to. In managed mode only those of the pod's own namespace are looked at, as NMI does."""
    bindings = [
        one for one in case.snapshot.bindings if not case.managed_mode or one.key.namespace == case.pod.key.namespace
    ]
    selections = matching.Selections(
        bindings,
        case.snapshot.identities,
        force_namespaced=case.policy.force_namespaced or case.managed_mode,
        allowed=case.snapshot.allowed if case.policy.allow_list else None,
    )
    return selections.of(case.pod)


def _no_binding(case: Case) -> Finding:
    selectors = sorted({one.selector for one in case.snapshot.bindings if one.selector})
    near = difflib.get_close_matches(case.pod.selector, selectors, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    where = f" in namespace {case.pod.key.namespace}" if case.managed_mode or case.policy.force_namespaced else ""
    told = f"no AzureIdentityBinding{where} has the selector {case.pod.selector}"
    return problem("binding", told, f"create one, or correct the label{hint}")


def _identity(identity: AzureIdentity, case: Case) -> Iterator[Finding]:
    kind = _TYPES.get(IdentityType(identity.type)) if identity.type in _TYPES else None
    if kind is None:
        yield problem("identity", f"AzureIdentity {identity.key}: type {identity.type} is unknown", "use 0, 1 or 2")
        return
    why = matching.identity_refusal(identity)
    if why is not None:
        yield problem("identity", why, "correct resourceID")
        return
    yield ok("identity", f"AzureIdentity {identity.key} is a {kind}")
    if identity.type != IdentityType.USER_ASSIGNED:
        refusal = rules.secret_refusal(identity, ())
        if refusal is not None:
            yield note("secret", refusal)
        return
    yield from _conditions(identity, case)


def _conditions(identity: AzureIdentity, case: Case) -> Iterator[Finding]:
    """What MIC wrote on the identity some seconds ago. What is there now counts more, where it says otherwise."""
    there = case.managed_mode or _is_assigned(identity, case)
    for one in identity.conditions:
        if one.status != "False" or one.reason == "NotInUse" or one.type not in _TOLD:
            continue
        told = f"{one.type} is False ({one.reason}): {one.message}"
        if one.type == conditions.ASSIGNED and there:
            yield note("azure", f"{told}; that is older, or of another machine than this pod's")
        elif conditions.is_older(one, identity.generation):
            yield note("azure", f"{told}; that is older: the AzureIdentity was changed since")
        elif one.reason == "Assigning":
            yield wait("azure", one.message)
        else:
            yield problem("azure", told)


_TOLD = frozenset({conditions.ASSIGNED, conditions.CLIENT_ID_MATCHES})


def _is_assigned(identity: AzureIdentity, case: Case) -> bool:
    """Whether the pod's own assigned identity is on the pod's node."""
    found = _of(identity, case)
    return (
        found is not None
        and found.node == case.pod.node
        and found.state == AssignedState.ASSIGNED
        and not found.deleting
    )


def _of(identity: AzureIdentity, case: Case) -> AzureAssignedIdentity | None:
    about = (case.pod.key, identity.key)
    return next((one for one in case.snapshot.assigned if tuple(one.about) == about), None)


def _assigned(match: Match, case: Case) -> Finding:
    """The assigned identity of one binding."""
    found = _of(match.identity, case)
    name = f"AzureAssignedIdentity for {match.identity.key}"
    if found is None:
        return _missing(match, case)
    if found.node != case.pod.node:
        return wait("assigned", f"{name} still names node {found.node}; MIC corrects it", "see MIC's log if that lasts")
    if found.state == AssignedState.ASSIGNED:
        return ok("assigned", f"{found.key} is Assigned")
    todo = f"see kubectl -n {match.binding.key.namespace} describe azureidentitybinding {match.binding.key.name}"
    return wait(
        "assigned", f"{found.key} is {found.state}: the identity is not yet on the machine of {found.node}", todo
    )


def _missing(match: Match, case: Case) -> Finding:
    if case.mic_ready is False:
        return problem("assigned", "MIC is not ready: nobody assigns identities", "see the log of the pods mic")
    shadowed = [
        one
        for one in assigning.wanted(case.snapshot, case.policy).skipped
        if one.binding == match.binding.key and one.code in ("NameTaken", "MalformedResourceID")
    ]
    if shadowed:
        return problem("assigned", shadowed[0].why)
    told = f"MIC has not written the assigned identity for {match.identity.key} yet"
    return wait("assigned", told, "it takes well under a second; see MIC's log if that lasts")


def _outcome(answer: choosing.Chosen | choosing.Wait | Refused, ready: Iterable[AzureIdentity]) -> Finding:
    if isinstance(answer, Chosen):
        others = sorted({one.client_id for one in ready if one.client_id})
        more = f"; by client ID it may ask for: {', '.join(others)}" if others else ""
        return ok("token", f"the pod gets a token of AzureIdentity {answer.identity.key}{more}")
    tell, word = (problem, "is refused") if isinstance(answer, Refused) else (wait, "waits")
    return tell("token", f"the pod's request {word}: {answer.why}")
