"""ClusterRoles that let service accounts use identities through a broker, and the question whether one may."""

from collections.abc import Iterator, Mapping
from typing import Any

from podidentity.core.exchange.grants import GROUP, VERB
from podidentity.core.model import federation
from podidentity.core.model.identities import ObjectKey
from podidentity.kube.api import Api
from podidentity.kube.resources import DEPLOYMENTS, SUBJECT_REVIEWS, Kind

_RBAC = "rbac.authorization.k8s.io"
_READ = DEPLOYMENTS.read
CLUSTER_ROLES = Kind(_RBAC, "v1", "clusterroles", "ClusterRole", _READ, namespaced=False)
CLUSTER_ROLE_BINDINGS = Kind(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", _READ, namespaced=False)


async def find_granting_roles(api: Api) -> dict[str, tuple[str, ...]]:
    """Return the ClusterRoles that grant each client ID by its name. Raises KubernetesError."""
    roles: dict[str, tuple[str, ...]] = {}
    for key, role in (await api.list(CLUSTER_ROLES)).items.items():
        for client_id in _client_ids(role.value):
            roles[client_id] = (*roles.get(client_id, ()), key.name)
    return roles


async def find_grants(api: Api) -> dict[str, bool]:
    """Return each client ID that a ClusterRole grants, and whether anybody is bound to it. Raises KubernetesError."""
    bindings = (await api.list(CLUSTER_ROLE_BINDINGS)).values
    bound = {
        str((binding.get("roleRef") or {}).get("name"))
        for binding in bindings
        if (binding.get("roleRef") or {}).get("kind") == "ClusterRole" and binding.get("subjects")
    }
    roles = await find_granting_roles(api)
    return {client_id: not bound.isdisjoint(names) for client_id, names in roles.items()}


async def may_use(api: Api, account: ObjectKey, client_id: str) -> bool:
    """Whether a service account may use an identity. Raises KubernetesError."""
    accounts = "system:serviceaccounts"
    spec = {
        "user": federation.subject_of(account.namespace, account.name),
        "groups": [accounts, f"{accounts}:{account.namespace}", "system:authenticated"],
        "resourceAttributes": {"verb": VERB, "group": GROUP, "resource": client_id},
    }
    review = await api.create(SUBJECT_REVIEWS, {"metadata": {"name": ""}, "spec": spec})
    return bool((review.get("status") or {}).get("allowed"))


def _client_ids(role: Mapping[str, Any]) -> Iterator[str]:
    """Yield the client IDs that a role names; not those that `*` includes, which nobody means as a grant."""
    for rule in role.get("rules") or ():
        verbs = rule.get("verbs") or ()
        if GROUP in (rule.get("apiGroups") or ()) and (VERB in verbs or "*" in verbs):
            yield from (str(resource).lower() for resource in rule.get("resources") or () if resource != "*")
