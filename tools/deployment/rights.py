"""Service accounts and roles: for each right, the code that uses it. There is no right that no code uses.

What must be read in every namespace is a ClusterRole; what is written in one namespace alone is a Role there.
Upstream's own roles are enough for all that upstream does; see docs/compatibility.md.
"""

from collections.abc import Iterable, Sequence

from deployment.settings import GROUP, LOCK, LOCK_NAMESPACE, MIC_ACCOUNT, NMI_ACCOUNT, RECORD, Installation, Json

RBAC = "rbac.authorization.k8s.io"
FOLLOW = ("list", "watch")

CHOICES = ("azureidentities", "azureidentitybindings", "azurepodidentityexceptions")


def nmi_rules(*, managed: bool) -> list[Json]:
    """Return what NMI may do everywhere: watch what its choice of an identity depends on, and write events.

    Reading Secrets is apart: `secret_rules` are bound only in namespaces with service principals.
    """
    rules = [
        _rule("", ["pods"], FOLLOW),
        _rule("", ["events"], ["create", "patch"]),  # each pod's first token
        _rule(GROUP, CHOICES, FOLLOW),
    ]
    if managed:
        return rules
    # Its own node, to know its machine. Assigned identities: for an NMI of the release before, which goes by them until
    # an update has replaced it, and for a moment in which the API server refuses what it will allow.
    return [*rules, _rule("", ["nodes"], ["get"]), _rule(GROUP, ["azureassignedidentities"], FOLLOW)]


def machine_rules() -> list[Json]:
    """Return what NMI may do as well in MIC's namespace in standard mode: see what MIC says is on its machine."""
    return [_rule("coordination.k8s.io", ["leases"], FOLLOW)]


def secret_rules() -> list[Json]:
    """Return what NMI may do as well in a namespace with service principals: get a Secret by name, and list none."""
    return [_rule("", ["secrets"], ["get"])]


def mic_rules() -> list[Json]:
    """Return what MIC may do everywhere."""
    return [
        _rule("", ["pods", "nodes"], FOLLOW),
        _rule("", ["events"], ["create", "patch"]),
        _rule(GROUP, ["azureidentities", "azureidentitybindings"], [*FOLLOW, "patch"]),  # their conditions
        _rule(GROUP, ["azureassignedidentities"], [*FOLLOW, "create", "update", "patch", "delete"]),
    ]


def namespace_rules() -> list[Json]:
    """Return what MIC, and NMI in managed mode, may do as well with --namespace-allow-list."""
    return [_rule("", ["namespaces"], FOLLOW)]


def startup_taint_rules() -> list[Json]:
    """Return what NMI may do as well with --startup-taint: on every node, as no rule can name the node of a pod."""
    return [_rule("", ["nodes"], ["get", "patch"])]


def record_rules() -> list[Json]:
    """Return what MIC may do in its own namespace: keep its record, and tell NMI what is on each machine.

    The latter has a Lease for each VM and scale set, so no rule can name them.
    """
    return [
        *_one_object("", "configmaps", RECORD),
        _rule("coordination.k8s.io", ["leases"], ["list", "create", "update", "delete"]),
    ]


def lock_rules() -> list[Json]:
    """Return what MIC may do where its locks are: upstream's, so that both never lead at once, and ours."""
    return [*_one_object("", "endpoints", LOCK), *_one_object("coordination.k8s.io", "leases", LOCK)]


def chart_rules() -> Json:
    """Return all these rules, as the chart's templates read them."""
    return {
        "nmi": nmi_rules(managed=False),
        "nmiManaged": nmi_rules(managed=True),
        "nmiMachine": machine_rules(),
        "secrets": secret_rules(),
        "mic": mic_rules(),
        "namespaceAllowList": namespace_rules(),
        "startupTaint": startup_taint_rules(),
        "micRecord": record_rules(),
        "micLocks": lock_rules(),
    }


def nmi_rights(installation: Installation) -> list[Json]:
    """Return NMI's account and role."""
    rules = nmi_rules(managed=installation.managed)
    rules[1:1] = secret_rules() if installation.every_secret else []
    rights = [_account(NMI_ACCOUNT, installation), *_cluster_wide("nmi", NMI_ACCOUNT, rules, installation)]
    if installation.managed:
        return rights
    return [*rights, *_namespaced("nmi", NMI_ACCOUNT, installation.namespace, machine_rules(), installation)]


def mic_rights(installation: Installation) -> list[Json]:
    """Return MIC's account and roles; the locks are where every MIC of the cluster looks for them."""
    roles: dict[str, list[Json]] = {installation.namespace: record_rules()}
    roles[LOCK_NAMESPACE] = [*roles.get(LOCK_NAMESPACE, ()), *lock_rules()]
    return [
        _account(MIC_ACCOUNT, installation),
        *_cluster_wide("mic", MIC_ACCOUNT, mic_rules(), installation),
        *(
            item
            for namespace, rules in roles.items()
            for item in _namespaced("mic", MIC_ACCOUNT, namespace, rules, installation)
        ),
    ]


def secret_reader(installation: Installation, namespace: str) -> list[Json]:
    """Return the right to read Secrets, and its binding in `namespace`."""
    name = "aad-pod-id-nmi-secrets"
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": secret_rules()},
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "subjects": [_subject(NMI_ACCOUNT, installation)],
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
        },
    ]


def _account(name: str, installation: Installation) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": installation.namespace},
    }


def _cluster_wide(part: str, account: str, rules: Iterable[Json], installation: Installation) -> list[Json]:
    name = f"aad-pod-id-{part}-role"
    binding = f"aad-pod-id-{part}-binding"
    labels = {"k8s-app": binding}
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": list(rules)},
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": binding, "labels": labels},
            "subjects": [_subject(account, installation)],
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
        },
    ]


def _namespaced(
    part: str, account: str, namespace: str, rules: Iterable[Json], installation: Installation
) -> list[Json]:
    name, binding = f"aad-pod-id-{part}-role", f"aad-pod-id-{part}-binding"
    home = {"namespace": namespace}
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": {"name": name, **home}, "rules": list(rules)},
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": binding, **home},
            "subjects": [_subject(account, installation)],
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
        },
    ]


def _subject(account: str, installation: Installation) -> Json:
    return {"kind": "ServiceAccount", "name": account, "namespace": installation.namespace}


def _one_object(group: str, resource: str, name: str) -> list[Json]:
    """Return the rules to read and write one object.

    A rule to create cannot name an object (Kubernetes: "Referring to resources").
    """
    read_and_write = _rule(group, [resource], ["get", "update"]) | {"resourceNames": [name]}
    return [read_and_write, _rule(group, [resource], ["create"])]


def _rule(group: str, resources: Sequence[str], verbs: Sequence[str]) -> Json:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
