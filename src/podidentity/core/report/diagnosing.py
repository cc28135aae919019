"""The health of an installation, as a platform engineer would check it: facts in, findings out.

What a role must allow stands here, as a table that a test holds against the roles of `deploy/podidentity`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from podidentity.core.assignment import conditions
from podidentity.core.model.crd import GROUP
from podidentity.core.model.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    Condition,
    IdentityType,
    ObjectKey,
)
from podidentity.core.model.snapshot import Node
from podidentity.core.model.wording import some_of
from podidentity.core.report.findings import Finding, note, ok, problem, unknown, wait

KINDS = ("azureassignedidentities", "azureidentities", "azureidentitybindings", "azurepodidentityexceptions")
TAINTED_SECONDS = 60.0
"""How long a node may keep its start-up taint after NMI is ready there, which takes it away within some seconds."""
STUCK_SECONDS = 300.0
"""How long an assigned identity may be Created before it counts as stuck: a scale set takes about a minute."""
ITEMS_NAMED = 10
T = TypeVar("T")
_PASSING = frozenset({"NotInUse", "Assigning", "NoPods"})


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one resource. `home`: in the daemon's own namespace only; `is_required` False: nice to have.

    `namespace`: in that namespace only; `name`: on the object of that name.
    """

    verb: str
    group: str
    resource: str
    home: bool = False
    is_required: bool = True
    namespace: str = ""
    name: str = ""


def _rights(
    verbs: str, group: str, resources: str, *, home: bool = False, is_required: bool = True
) -> tuple[Right, ...]:
    return tuple(
        Right(verb, group, resource, home, is_required) for resource in resources.split() for verb in verbs.split()
    )


def _on_one(group: str, resource: str, place: ObjectKey, *, is_required: bool = True) -> tuple[Right, ...]:
    """Read and write one object. Only its creation cannot be allowed by name. A place without namespace is home."""
    right = Right("get", group, resource, not place.namespace, is_required, place.namespace, place.name)
    return right, replace(right, verb="update"), replace(right, verb="create", name="")


MIC_RIGHTS = (
    *_rights("list watch", "", "pods nodes"),
    *_rights("create patch", "", "events", is_required=False),
    *_rights("list watch", GROUP, "azureidentities azureidentitybindings"),
    *_rights("list watch create update patch delete", GROUP, "azureassignedidentities"),
    *_rights("patch", GROUP, "azureidentities azureidentitybindings", is_required=False),
)
_NMI_ALWAYS = (
    *_rights("list watch", "", "pods"),
    *_rights("create patch", "", "events", is_required=False),
)
NMI_RIGHTS = (
    *_NMI_ALWAYS,
    *_rights("list watch", GROUP, "azurepodidentityexceptions azureassignedidentities"),
    *_rights("list watch", GROUP, "azureidentities azureidentitybindings", is_required=False),
    *_rights("get", "", "nodes", is_required=False),
    *_rights("list watch", "coordination.k8s.io", "leases", home=True, is_required=False),
)
NMI_MANAGED_RIGHTS = (
    *_NMI_ALWAYS,
    *_rights("list watch", GROUP, "azurepodidentityexceptions azureidentities azureidentitybindings"),
)
NAMESPACE_RIGHTS = _rights("list watch", "", "namespaces")
"""What --namespace-allow-list needs."""
TAINT_RIGHTS = _rights("get patch", "", "nodes")
"""What --startup-taint needs."""

LOCK = ObjectKey("default", "aad-pod-identity-mic")
"""Where MIC's lock is unless a flag says otherwise."""
RECORD = ObjectKey("", "aad-pod-identity-config")
"""The ConfigMap in MIC's own namespace."""


def mic_rights(*, allow_list: bool, lock: ObjectKey = LOCK, record: ObjectKey = RECORD) -> tuple[Right, ...]:
    """Return what MIC's account must be allowed."""
    return (
        *MIC_RIGHTS,
        *_on_one("", "configmaps", record),
        *_on_one("", "endpoints", lock),
        *_on_one("coordination.k8s.io", "leases", lock, is_required=False),
        *_rights("list create update delete", "coordination.k8s.io", "leases", home=True, is_required=False),
        *(NAMESPACE_RIGHTS if allow_list else ()),
    )


def secret_rights(identities: Iterable[AzureIdentity]) -> tuple[Right, ...]:
    """Return the Secrets that NMI's account must be allowed to read: those of service principals."""
    places = {
        ObjectKey(identity.client_password.namespace or identity.key.namespace, identity.client_password.name)
        for identity in identities
        if identity.type != IdentityType.USER_ASSIGNED and identity.client_password is not None
    }
    return tuple(Right("get", "", "secrets", namespace=place.namespace, name=place.name) for place in sorted(places))


def nmi_rights(*, managed: bool, allow_list: bool, startup_taint: str = "") -> tuple[Right, ...]:
    """Return what NMI's account must be allowed."""
    rights = NMI_MANAGED_RIGHTS if managed else NMI_RIGHTS
    namespaces = tuple(replace(right, is_required=managed) for right in NAMESPACE_RIGHTS) if allow_list else ()
    return (*rights, *namespaces, *(TAINT_RIGHTS if startup_taint else ()))


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
    """The facts of an installation. `None` or absent: not accessible, and `unavailable` says why.

    `definitions` says of each definition whether it has conditions; `missing_rights` what each daemon may not do;
    `created_seconds` for how long an assigned identity has been there; `startup_taint` is the key that NMI was told,
    and `tainted_nodes` names the nodes that carry it; `unreadable` says of assigned identities why they cannot be read.
    """

    server: str
    definitions: Mapping[str, bool] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    mic: tuple[Daemon, ...] = ()
    nmi: tuple[Daemon, ...] = ()
    leader: str = ""
    missing_rights: Mapping[str, tuple[Right, ...]] = field(default_factory=dict)
    identities: tuple[AzureIdentity, ...] = ()
    bindings: tuple[AzureIdentityBinding, ...] = ()
    assigned_identities: tuple[AzureAssignedIdentity, ...] = ()
    created_seconds: Mapping[ObjectKey, float] = field(default_factory=dict)
    unreadable: Mapping[ObjectKey, str] = field(default_factory=dict)
    unavailable: tuple[tuple[str, str], ...] = ()
    managed_mode: bool = False
    assign_on_binding: bool = False
    startup_taint: str = ""
    tainted_nodes: frozenset[str] = frozenset()


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Return what is well and what is not."""
    return (
        ok("api server", facts.server),
        *(unknown(check, message) for check, message in facts.unavailable),
        *_definitions(facts),
        *_mic(facts),
        *_nmi(facts),
        *_taint(facts),
        *_versions(facts),
        *_roles(facts),
        *_condition_findings("identities", len(facts.identities), _of_identities(facts)),
        *_condition_findings("bindings", len(facts.bindings), _of_bindings(facts)),
        *_stuck(facts),
        _throttling(facts),
    )


def _definitions(facts: Facts) -> Iterator[Finding]:  # in managed mode nobody needs the first kind, MIC's
    missing = [f"{kind}.{GROUP}" for kind in KINDS[facts.managed_mode :] if kind not in facts.definitions]
    plain = [kind for kind in KINDS[1:3] if facts.definitions.get(kind) is False]
    if missing:
        message = f"not installed: {', '.join(missing)}"
        yield problem("definitions", message, "install the CustomResourceDefinitions of deploy/podidentity")
    elif plain:
        message = f"without conditions: {', '.join(plain)}; these are aad-pod-identity's own definitions"
        yield note("definitions", message, "install ours to see why an identity or a binding has no effect")
    else:
        yield ok("definitions", "installed, with conditions")


def _mic(facts: Facts) -> Iterator[Finding]:
    if facts.managed_mode:
        yield ok("mic", "NMI runs in managed mode: no MIC is needed")
        return
    ready = [daemon for daemon in facts.mic if daemon.ready]
    if not facts.mic:
        yield problem("mic", "no pod of MIC was found", "install deploy/podidentity/standard.yaml or the chart")
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
        yield problem("nmi", "no pod of NMI was found", "install deploy/podidentity/standard.yaml or the chart")
        return
    linux = {node.name for node in facts.nodes if node.labels.get("kubernetes.io/os", "linux") == "linux"}
    ready = {item.node for item in facts.nmi if item.ready}
    missing = sorted(linux - ready)
    if missing:
        broken = next((item for item in facts.nmi if not item.ready), None)
        todo = _logs(broken) if broken else "see kubectl describe daemonset nmi: nodeSelector, taints, resources"
        yield problem("nmi", f"not ready on {_some(missing)}: pods there get no tokens", todo)
    else:
        yield ok("nmi", f"ready on all {len(linux)} nodes, {_images(facts.nmi)}")


def _taint(facts: Facts) -> Iterator[Finding]:
    """Report start-up taints on nodes whose NMI is ready: pods wait there for nothing."""
    if not facts.startup_taint:
        return
    ready = {daemon.node: daemon for daemon in facts.nmi if daemon.ready}
    nodes = sorted(facts.tainted_nodes & ready.keys())
    message = f"the start-up taint {facts.startup_taint} is still on {_some(nodes)}, though NMI is ready there"
    if not nodes:
        yield ok("startup taint", f"no node where NMI is ready carries {facts.startup_taint}")
    elif not {*TAINT_RIGHTS}.isdisjoint(facts.missing_rights.get("NMI", ())):
        todo = "let its ClusterRole get and patch nodes; see docs/configure/startup-taint.md"
        yield problem("startup taint", f"{message}: its role does not allow it to take that away", todo)
    elif all(ready[node].ready_seconds < TAINTED_SECONDS for node in nodes):
        yield wait("startup taint", message, "NMI takes it away within seconds")
    else:
        yield problem("startup taint", f"{message}: new pods stay away", _logs(ready[nodes[0]]))


def _versions(facts: Facts) -> Iterator[Finding]:
    """More than one version at a time is what an upgrade looks like; it should end."""
    tags = {name: {daemon.image.rpartition(":")[2] for daemon in daemons} for name, daemons in _parts(facts)}
    versions = set().union(*tags.values())
    if len(versions) > 1:
        message = ", ".join(f"{name} {', '.join(sorted(daemons))}" for name, daemons in tags.items())
        yield note("versions", f"more than one version runs: {message}", "finish the upgrade, or the way back")
    elif versions:
        yield ok("versions", f"all pods run {versions.pop()}")


def _parts(facts: Facts) -> tuple[tuple[str, tuple[Daemon, ...]], ...]:
    return (("MIC", facts.mic), ("NMI", facts.nmi))


def _roles(facts: Facts) -> Iterator[Finding]:
    for daemon, rights in sorted(facts.missing_rights.items()):
        required = sorted({_right_text(right) for right in rights if right.is_required})
        useful = sorted({_right_text(right) for right in rights if not right.is_required})
        if required:
            yield problem("role", f"{daemon} may not {_some(required)}", "add it to its role; see deploy/podidentity")
        elif useful:
            yield note("role", f"{daemon} works without: {_some(useful)}", "deploy/podidentity has the whole role")
        else:
            yield ok("role", f"{daemon} may do all it needs")


@dataclass(frozen=True, slots=True)
class _Problem:
    """A condition that says that something fails; `but` is why it does not count any more, "" when it does."""

    subject: str
    condition: Condition
    objection: str = ""


_NO_MIC = "that is older: MIC, which wrote it, does not run in managed mode"
_ALL_THERE = "that is older: every pod that needs it has it"
_OUTDATED = "that is older: it was changed since"


def _of_identities(facts: Facts) -> Iterator[_Problem]:
    assigned_ids = _all_assigned((item.identity.arm_id, item) for item in facts.assigned_identities) - {None}
    for identity in facts.identities:
        # With --assign-on=binding an identity may be refused where no pod needs it yet.
        is_settled = identity.arm_id in assigned_ids and not facts.assign_on_binding
        for condition in _failing(identity.conditions):
            objection = _outdated(facts, is_settled=is_settled) if condition.type == conditions.ASSIGNED_TYPE else ""
            objection = objection or _changed_since(condition, identity.generation)
            yield _Problem(f"AzureIdentity {identity.key}", condition, objection)


def _of_bindings(facts: Facts) -> Iterator[_Problem]:
    assigned_bindings = _all_assigned((item.binding.key, item) for item in facts.assigned_identities)
    for binding in facts.bindings:
        for condition in _failing(binding.conditions):
            is_settled = binding.key in assigned_bindings
            objection = _outdated(facts, is_settled=is_settled) if condition.type == conditions.APPLIED else ""
            objection = objection or _changed_since(condition, binding.generation)
            yield _Problem(f"AzureIdentityBinding {binding.key}", condition, objection)


def _outdated(facts: Facts, *, is_settled: bool) -> str:
    return _NO_MIC if facts.managed_mode else _ALL_THERE if is_settled else ""


def _changed_since(condition: Condition, generation: int) -> str:
    return _OUTDATED if conditions.is_older(condition, generation) else ""


def _all_assigned(by: Iterable[tuple[T, AzureAssignedIdentity]]) -> frozenset[T]:
    """Return the subjects that have assigned identities, all of them Assigned."""
    pairs = tuple(by)
    incomplete = {subject for subject, item in pairs if item.deleting or item.state != AssignedState.ASSIGNED}
    return frozenset(subject for subject, _ in pairs) - incomplete


def _failing(present: Iterable[Condition]) -> Iterator[Condition]:
    return (condition for condition in present if condition.status == "False" and condition.reason not in _PASSING)


def _condition_findings(check: str, number: int, failing_conditions: Iterable[_Problem]) -> Iterator[Finding]:
    """A condition is written some seconds late: one that what is there contradicts is shown, and is no problem."""
    items = list(failing_conditions)
    failing, older = [item for item in items if not item.objection], [item for item in items if item.objection]
    for item in failing[:ITEMS_NAMED]:
        yield problem(check, _sentence(item))
    if len(failing) > ITEMS_NAMED:
        yield problem(check, f"and {len(failing) - ITEMS_NAMED} more")
    for item in older[:ITEMS_NAMED]:
        yield note(check, f"{_sentence(item)}; {item.objection}")
    if not items:
        yield ok(check, f"{number}, none failing")


def _sentence(item: _Problem) -> str:
    return f"{item.subject}: {item.condition.type} is False ({item.condition.reason}): {item.condition.message}"


def _stuck(facts: Facts) -> Iterator[Finding]:
    for key, message in sorted(facts.unreadable.items())[:ITEMS_NAMED]:
        # MIC cannot tell whose it is: its pod has another one.
        todo = f"or delete it, and release it: kubectl -n {key.namespace} patch azureassignedidentity {key.name}"
        yield note("assigned", message, f'{todo} --type=merge -p \'{{"metadata":{{"finalizers":null}}}}\'')
    stuck = [
        item
        for item in facts.assigned_identities
        if item.state == AssignedState.CREATED and facts.created_seconds.get(item.key, 0.0) > STUCK_SECONDS
    ]
    if stuck:
        names = _some(str(item.key) for item in stuck)
        message = f"{len(stuck)} of {len(facts.assigned_identities)} not yet Assigned: {names}"
        pod = stuck[0].pod
        yield problem("assigned", message, f"podidentity explain pod {pod}")
    elif not facts.unreadable:
        yield ok("assigned", f"{len(facts.assigned_identities)}, none stuck")


def _throttling(facts: Facts) -> Finding:
    """Throttling shows as the condition of an identity that waits for it."""
    throttled = [
        condition.subject.removeprefix("AzureIdentity ")
        for condition in _of_identities(facts)
        if not condition.objection
        and ("throttl" in condition.condition.message.lower() or condition.condition.reason in _THROTTLED)
    ]
    if throttled:
        message = f"Azure throttles the assignment of {_some(throttled)}"
        return problem("throttling", message, "MIC goes on when Azure allows it; spread nodes over more scale sets")
    return ok("throttling", "no identity waits for Azure's rate limit")


_THROTTLED = frozenset({"TooManyRequests", "OperationNotAllowed", "SubscriptionRequestsThrottled"})


def _images(daemons: Iterable[Daemon]) -> str:
    return ", ".join(sorted({daemon.image for daemon in daemons}))


def _logs(daemon: Daemon) -> str:
    return f"kubectl -n {daemon.key.namespace} logs {daemon.key.name}"


def _right_text(right: Right) -> str:
    place = f" {right.namespace}/{right.name}" if right.namespace and right.name else ""
    return f"{right.verb} {right.resource}{place}"


def _some(texts: Iterable[str]) -> str:
    return some_of(texts, ITEMS_NAMED)
