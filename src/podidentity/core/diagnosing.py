"""The health of an installation, as a platform engineer would check it: facts in, findings out.

Called by `cli.doctor`, which gathers the facts. What a role must allow stands here, as a table that a test holds
against the roles of `deploy/infra`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from podidentity.core import conditions
from podidentity.core.cluster import Node
from podidentity.core.crd import GROUP
from podidentity.core.findings import Finding, note, ok, problem, unknown, wait
from podidentity.core.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    Condition,
    ObjectKey,
)

KINDS = ("azureassignedidentities", "azureidentities", "azureidentitybindings", "azurepodidentityexceptions")
TAINTED_SECONDS = 60.0
"""How long a node may keep its start-up taint after NMI is ready there, which takes it away within some seconds."""
STUCK_SECONDS = 300.0
"""How long an assigned identity may be Created before it counts as stuck: a scale set takes about a minute."""
SHOWN = 10
T = TypeVar("T")
_PASSING = frozenset({"NotInUse", "Assigning", "NoPods"})


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one resource. `home`: in the daemon's own namespace only; `needed` False: nice to have."""

    verb: str
    group: str
    resource: str
    home: bool = False
    needed: bool = True


def _rights(verbs: str, group: str, resources: str, *, home: bool = False, needed: bool = True) -> tuple[Right, ...]:
    return tuple(Right(verb, group, one, home, needed) for one in resources.split() for verb in verbs.split())


MIC_RIGHTS = (
    *_rights("list watch", "", "pods nodes"),
    *_rights("create patch", "", "events", needed=False),
    *_rights("list watch", GROUP, "azureidentities azureidentitybindings"),
    *_rights("list watch create update patch delete", GROUP, "azureassignedidentities"),
    *_rights("get create update", "", "configmaps endpoints", home=True),
    *_rights("get create update", "coordination.k8s.io", "leases", home=True, needed=False),
    *_rights("patch", GROUP, "azureidentities azureidentitybindings", needed=False),
)
_NMI_ALWAYS = (
    *_rights("list watch", "", "pods"),
    *_rights("get", "", "secrets", needed=False),
    *_rights("create patch", "", "events", needed=False),
)
NMI_RIGHTS = (
    *_NMI_ALWAYS,
    *_rights("list watch", GROUP, "azurepodidentityexceptions azureassignedidentities"),
)
NMI_MANAGED_RIGHTS = (
    *_NMI_ALWAYS,
    *_rights("list watch", GROUP, "azurepodidentityexceptions azureidentities azureidentitybindings"),
)
NAMESPACE_RIGHTS = _rights("list watch", "", "namespaces")
"""What --namespace-allow-list needs: MIC reads it, and NMI in managed mode."""
TAINT_RIGHTS = _rights("get patch", "", "nodes")
"""What --startup-taint needs."""


def mic_rights(*, allow_list: bool) -> tuple[Right, ...]:
    """Say what MIC's account must be allowed."""
    return (*MIC_RIGHTS, *(NAMESPACE_RIGHTS if allow_list else ()))


def nmi_rights(*, managed: bool, allow_list: bool, startup_taint: str = "") -> tuple[Right, ...]:
    """Say what NMI's account must be allowed."""
    taint = TAINT_RIGHTS if startup_taint else ()
    if not managed:
        return (*NMI_RIGHTS, *taint)
    return (*NMI_MANAGED_RIGHTS, *(NAMESPACE_RIGHTS if allow_list else ()), *taint)


@dataclass(frozen=True, slots=True)
class Daemon:
    """One pod of MIC or NMI. `ready_seconds`: for how long it has been ready."""

    key: ObjectKey
    node: str
    ready: bool
    image: str
    account: str
    arguments: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    restarts: int = 0
    ready_seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. `None` or absent: it could not be looked at, and `unseen` says why.

    `definitions` says of each definition whether it has conditions; `denied` what each daemon's account may not do;
    `created_seconds` for how long an assigned identity has been there; `startup_taint` is the key that NMI was told,
    and `tainted` names the nodes that carry it; `unreadable` says of assigned identities why they cannot be read.
    """

    server: str
    definitions: Mapping[str, bool] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    mic: tuple[Daemon, ...] = ()
    nmi: tuple[Daemon, ...] = ()
    leader: str = ""
    denied: Mapping[str, tuple[Right, ...]] = field(default_factory=dict)
    identities: tuple[AzureIdentity, ...] = ()
    bindings: tuple[AzureIdentityBinding, ...] = ()
    assigned: tuple[AzureAssignedIdentity, ...] = ()
    created_seconds: Mapping[ObjectKey, float] = field(default_factory=dict)
    unreadable: Mapping[ObjectKey, str] = field(default_factory=dict)
    unseen: tuple[tuple[str, str], ...] = ()
    managed_mode: bool = False
    assign_on_binding: bool = False
    startup_taint: str = ""
    tainted: frozenset[str] = frozenset()


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Say what is well and what is not."""
    return (
        ok("api server", facts.server),
        *(unknown(check, why) for check, why in facts.unseen),
        *_definitions(facts),
        *_mic(facts),
        *_nmi(facts),
        *_taint(facts),
        *_versions(facts),
        *_roles(facts),
        *_told("identities", len(facts.identities), _of_identities(facts)),
        *_told("bindings", len(facts.bindings), _of_bindings(facts)),
        *_stuck(facts),
        _throttling(facts),
    )


def _definitions(facts: Facts) -> Iterator[Finding]:
    missing = [f"{kind}.{GROUP}" for kind in KINDS if kind not in facts.definitions]
    plain = [kind for kind in KINDS[1:3] if facts.definitions.get(kind) is False]
    if missing:
        told = f"not installed: {', '.join(missing)}"
        yield problem("definitions", told, "install the CustomResourceDefinitions of deploy/infra")
    elif plain:
        told = f"without conditions: {', '.join(plain)}; these are aad-pod-identity's own definitions"
        yield note("definitions", told, "install ours to see why an identity or a binding has no effect")
    else:
        yield ok("definitions", "all four are installed, with conditions")


def _mic(facts: Facts) -> Iterator[Finding]:
    if facts.managed_mode:
        yield ok("mic", "NMI runs in managed mode: no MIC is needed")
        return
    ready = [one for one in facts.mic if one.ready]
    if not facts.mic:
        yield problem("mic", "no pod of MIC was found", "install deploy/infra/deployment-rbac.yaml or the chart")
    elif not ready:
        yield problem("mic", f"none of {len(facts.mic)} pods of MIC is ready", _logs(facts.mic[0]))
    else:
        yield ok("mic", f"{len(ready)} of {len(facts.mic)} pods ready, {_images(facts.mic)}")
        if facts.leader:
            yield ok("leader", facts.leader)
        else:
            yield wait("leader", "nobody leads", "an election takes up to leader-election-duration, 15 s")


def _nmi(facts: Facts) -> Iterator[Finding]:
    if not facts.nmi:
        yield problem("nmi", "no pod of NMI was found", "install deploy/infra/deployment-rbac.yaml or the chart")
        return
    linux = {one.name for one in facts.nodes if one.labels.get("kubernetes.io/os", "linux") == "linux"}
    ready = {one.node for one in facts.nmi if one.ready}
    missing = sorted(linux - ready)
    if missing:
        broken = next((one for one in facts.nmi if not one.ready), None)
        todo = _logs(broken) if broken else "see kubectl describe daemonset nmi: nodeSelector, taints, resources"
        yield problem("nmi", f"not ready on {_some(missing)}: pods there get no tokens", todo)
    else:
        yield ok("nmi", f"ready on all {len(linux)} nodes, {_images(facts.nmi)}")


def _taint(facts: Facts) -> Iterator[Finding]:
    """Where NMI is not ready, the taint does its work; where it is, pods wait for nothing."""
    if not facts.startup_taint:
        return
    ready = {one.node: one for one in facts.nmi if one.ready}
    kept = sorted(facts.tainted & ready.keys())
    told = f"the start-up taint {facts.startup_taint} is still on {_some(kept)}, though NMI is ready there"
    if not kept:
        yield ok("startup taint", f"no node where NMI is ready carries {facts.startup_taint}")
    elif not {*TAINT_RIGHTS}.isdisjoint(facts.denied.get("NMI", ())):
        todo = "let its ClusterRole get and patch nodes; see docs/configure/startup-taint.md"
        yield problem("startup taint", f"{told}: its role does not allow it to take that away", todo)
    elif all(ready[node].ready_seconds < TAINTED_SECONDS for node in kept):
        yield wait("startup taint", told, "NMI takes it away within seconds")
    else:
        yield problem("startup taint", f"{told}: new pods stay away", _logs(ready[kept[0]]))


def _versions(facts: Facts) -> Iterator[Finding]:
    """More than one version at a time is what an upgrade looks like; it should end."""
    tags = {name: {one.image.rpartition(":")[2] for one in found} for name, found in _parts(facts)}
    every = set().union(*tags.values())
    if len(every) > 1:
        told = ", ".join(f"{name} {', '.join(sorted(found))}" for name, found in tags.items())
        yield note("versions", f"more than one version runs: {told}", "finish the upgrade, or the way back")
    elif every:
        yield ok("versions", f"all pods run {every.pop()}")


def _parts(facts: Facts) -> tuple[tuple[str, tuple[Daemon, ...]], ...]:
    return (("MIC", facts.mic), ("NMI", facts.nmi))


def _roles(facts: Facts) -> Iterator[Finding]:
    for daemon, denied in sorted(facts.denied.items()):
        needed = sorted({_shown(one) for one in denied if one.needed})
        useful = sorted({_shown(one) for one in denied if not one.needed})
        if needed:
            yield problem("role", f"{daemon} may not {_some(needed)}", "add it to its ClusterRole; see deploy/infra")
        elif useful:
            yield note("role", f"{daemon} works without: {_some(useful)}", "deploy/infra has the whole role")
        else:
            yield ok("role", f"{daemon} may do all it needs")


@dataclass(frozen=True, slots=True)
class _Told:
    """A condition that says that something fails; `but` is why it does not count any more, "" when it does."""

    who: str
    condition: Condition
    but: str = ""


_NO_MIC = "that is older: MIC, which wrote it, does not run in managed mode"
_ALL_THERE = "that is older: every pod that needs it has it"
_CHANGED = "that is older: it was changed since"


def _of_identities(facts: Facts) -> Iterator[_Told]:
    there = _all_there((one.identity.arm_id, one) for one in facts.assigned) - {None}
    for identity in facts.identities:
        # With --assign-on=binding an identity may be refused where no pod needs it yet.
        settled = identity.arm_id in there and not facts.assign_on_binding
        for one in _failing(identity.conditions):
            but = _outdated(facts, settled=settled) if one.type == conditions.ASSIGNED else ""
            yield _Told(f"AzureIdentity {identity.key}", one, but or _changed_since(one, identity.generation))


def _of_bindings(facts: Facts) -> Iterator[_Told]:
    there = _all_there((one.binding.key, one) for one in facts.assigned)
    for binding in facts.bindings:
        for one in _failing(binding.conditions):
            but = _outdated(facts, settled=binding.key in there) if one.type == conditions.APPLIED else ""
            yield _Told(f"AzureIdentityBinding {binding.key}", one, but or _changed_since(one, binding.generation))


def _outdated(facts: Facts, *, settled: bool) -> str:
    return _NO_MIC if facts.managed_mode else _ALL_THERE if settled else ""


def _changed_since(condition: Condition, generation: int) -> str:
    return _CHANGED if conditions.is_older(condition, generation) else ""


def _all_there(by: Iterable[tuple[T, AzureAssignedIdentity]]) -> frozenset[T]:
    """Name what has assigned identities, and all of them Assigned."""
    every = tuple(by)
    lacking = {about for about, one in every if one.deleting or one.state != AssignedState.ASSIGNED}
    return frozenset(about for about, _ in every) - lacking


def _failing(every: Iterable[Condition]) -> Iterator[Condition]:
    return (one for one in every if one.status == "False" and one.reason not in _PASSING)


def _told(check: str, number: int, told: Iterable[_Told]) -> Iterator[Finding]:
    """A condition is written some seconds late: one that what is there contradicts is shown, and is no problem."""
    every = list(told)
    failing, older = [one for one in every if not one.but], [one for one in every if one.but]
    for one in failing[:SHOWN]:
        yield problem(check, _sentence(one))
    if len(failing) > SHOWN:
        yield problem(check, f"and {len(failing) - SHOWN} more")
    for one in older[:SHOWN]:
        yield note(check, f"{_sentence(one)}; {one.but}")
    if not every:
        yield ok(check, f"{number}, none failing")


def _sentence(told: _Told) -> str:
    return f"{told.who}: {told.condition.type} is False ({told.condition.reason}): {told.condition.message}"


def _stuck(facts: Facts) -> Iterator[Finding]:
    for key, why in sorted(facts.unreadable.items())[:SHOWN]:
        # MIC cannot tell whose it is: its pod has another one.
        todo = f"or delete it, and release it: kubectl -n {key.namespace} patch azureassignedidentity {key.name}"
        yield note("assigned", why, f'{todo} --type=merge -p \'{{"metadata":{{"finalizers":null}}}}\'')
    stuck = [
        one
        for one in facts.assigned
        if one.state == AssignedState.CREATED and facts.created_seconds.get(one.key, 0.0) > STUCK_SECONDS
    ]
    if stuck:
        told = f"{len(stuck)} of {len(facts.assigned)} not yet Assigned: {_some([str(one.key) for one in stuck])}"
        pod = stuck[0].pod
        yield problem("assigned", told, f"podidentity explain pod {pod}")
    elif not facts.unreadable:
        yield ok("assigned", f"{len(facts.assigned)}, none stuck")


def _throttling(facts: Facts) -> Finding:
    """Throttling shows as the condition of an identity that waits for it."""
    throttled = [
        told.who.removeprefix("AzureIdentity ")
        for told in _of_identities(facts)
        if not told.but and ("throttl" in told.condition.message.lower() or told.condition.reason in _THROTTLED)
    ]
    if throttled:
        told = f"Azure throttles the assignment of {_some(throttled)}"
        return problem("throttling", told, "MIC goes on when Azure allows it; spread nodes over more scale sets")
    return ok("throttling", "no identity waits for Azure's rate limit")


_THROTTLED = frozenset({"TooManyRequests", "OperationNotAllowed", "SubscriptionRequestsThrottled"})


def _images(daemons: Iterable[Daemon]) -> str:
    return ", ".join(sorted({one.image for one in daemons}))


def _logs(daemon: Daemon) -> str:
    return f"kubectl -n {daemon.key.namespace} logs {daemon.key.name}"


def _shown(right: Right) -> str:
    return f"{right.verb} {right.resource}"


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
