"""Service accounts and roles: for each right, the code that uses it. A right without a user does not stand here.

What must be read in every namespace is a ClusterRole; what is written in one namespace alone is a Role there.
Upstream's own roles are enough for all that upstream does; see docs/compatibility.md. Called by `files`.
"""

from collections.abc import Iterable, Sequence

from deployment.settings import GROUP, MIC_ACCOUNT, NMI_ACCOUNT, Installation, Json

RBAC = "rbac.authorization.k8s.io"
FOLLOW = ("list", "watch")

CHOICES = ("azureidentities", "azureidentitybindings", "azurepodidentityexceptions")


def nmi_rules(*, managed: bool) -> list[Json]:
    """What NMI may do everywhere: it follows what choices depend on, and writes nothing but events.

    Of Secrets it may get one by name (service principals' own); it cannot list them.
    """
    # In standard mode MIC has read identities and bindings: what NMI needs of them is in the assigned identities.
    resources = CHOICES if managed else ("azureassignedidentities", "azurepodidentityexceptions")
    return [
        _rule("", ["pods"], FOLLOW),
        _rule("", ["secrets"], ["get"]),
        _rule("", ["events"], ["create", "patch"]),  # each pod's first token
        _rule(GROUP, resources, FOLLOW),
    ]


def mic_rules() -> list[Json]:
    """What MIC may do everywhere."""
    return [
        _rule("", ["pods", "nodes"], FOLLOW),
        _rule("", ["events"], ["create", "patch"]),
        _rule(GROUP, ["azureidentities", "azureidentitybindings"], [*FOLLOW, "patch"]),  # their conditions
        _rule(GROUP, ["azureassignedidentities"], [*FOLLOW, "create", "update", "patch", "delete"]),
    ]


def namespace_rules() -> list[Json]:
    """What MIC, and NMI in managed mode, may do everywhere besides when they run with --namespace-allow-list."""
    return [_rule("", ["namespaces"], FOLLOW)]


def startup_taint_rules() -> list[Json]:
    """What NMI may do everywhere besides when it runs with --startup-taint: no rule can name one node."""
    return [_rule("", ["nodes"], ["get", "patch"])]


def record_rules() -> list[Json]:
    """What MIC may do where it runs: keep the record of what it assigned."""
    return [_rule("", ["configmaps"], ["get", "create", "update"])]


def lock_rules() -> list[Json]:
    """What MIC may do where its locks live: upstream's, so that both never lead at once, and ours."""
    return [
        _rule("", ["endpoints"], ["get", "create", "update"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "create", "update"]),
    ]


def chart_rules() -> Json:
    """All of the above, as the chart's templates read it."""
    return {
        "nmi": nmi_rules(managed=False),
        "nmiManaged": nmi_rules(managed=True),
        "mic": mic_rules(),
        "namespaceAllowList": namespace_rules(),
        "startupTaint": startup_taint_rules(),
        "micRecord": record_rules(),
        "micLocks": lock_rules(),
    }


def nmi_rights(installation: Installation) -> list[Json]:
    """NMI's account and role."""
    rules = nmi_rules(managed=installation.managed)
    return [_account(NMI_ACCOUNT, installation), *_cluster_wide("nmi", NMI_ACCOUNT, rules, installation)]


def mic_rights(installation: Installation) -> list[Json]:
    """MIC's account and roles. In the manifests its locks live where it runs."""
    at_home = [*record_rules(), *lock_rules()]
    return [
        _account(MIC_ACCOUNT, installation),
        *_cluster_wide("mic", MIC_ACCOUNT, mic_rules(), installation),
        *_namespaced("mic", MIC_ACCOUNT, at_home, installation),
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


def _namespaced(part: str, account: str, rules: Iterable[Json], installation: Installation) -> list[Json]:
    name, binding = f"aad-pod-id-{part}-role", f"aad-pod-id-{part}-binding"
    home = {"namespace": installation.namespace}
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


def _rule(group: str, resources: Sequence[str], verbs: Sequence[str]) -> Json:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
