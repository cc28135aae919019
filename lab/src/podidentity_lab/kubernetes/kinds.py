"""The kinds of objects that the API serves. Paths, discovery, storage and validation all follow this table."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind. Only custom resources have `schema` and `columns`; objects of built-in kinds are not validated."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    in_all: bool = False
    """Whether `kubectl get all` shows it."""
    schema: dict[str, Any] | None = field(default=None, compare=False)
    columns: tuple[dict[str, Any], ...] = field(default=(), compare=False)

    @property
    def resource(self) -> str:
        """The name under which it is stored: `pods`, `deployments.apps`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """`v1`, `apps/v1`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """Where its group and version are served: `api/v1`, `apis/apps/v1`."""
        return f"apis/{self.api_version}" if self.group else f"api/{self.version}"


_RBAC = "rbac.authorization.k8s.io"
CRD = Kind(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
    short=("crd", "crds"),
    subresources=("status",),
)
BUILT_IN = (
    Kind("", "v1", "namespaces", "Namespace", namespaced=False, short=("ns",), subresources=("status",)),
    Kind("", "v1", "nodes", "Node", namespaced=False, short=("no",), subresources=("status",)),
    Kind(
        "",
        "v1",
        "pods",
        "Pod",
        short=("po",),
        subresources=("status", "log", "exec", "attach", "portforward", "ephemeralcontainers", "binding", "eviction"),
        in_all=True,
    ),
    Kind("", "v1", "services", "Service", short=("svc",), subresources=("status",), in_all=True),
    Kind("", "v1", "endpoints", "Endpoints", short=("ep",)),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "configmaps", "ConfigMap", short=("cm",)),
    Kind("", "v1", "serviceaccounts", "ServiceAccount", short=("sa",), subresources=("token",)),
    Kind("", "v1", "events", "Event", short=("ev",)),
    Kind("apps", "v1", "deployments", "Deployment", short=("deploy",), subresources=("status", "scale"), in_all=True),
    Kind("apps", "v1", "replicasets", "ReplicaSet", short=("rs",), subresources=("status", "scale"), in_all=True),
    Kind("apps", "v1", "daemonsets", "DaemonSet", short=("ds",), subresources=("status",), in_all=True),
    Kind("batch", "v1", "jobs", "Job", subresources=("status",), in_all=True),
    Kind("batch", "v1", "cronjobs", "CronJob", short=("cj",), subresources=("status",), in_all=True),
    Kind("coordination.k8s.io", "v1", "leases", "Lease"),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", short=("netpol",)),
    Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", short=("pdb",), subresources=("status",)),
    Kind(_RBAC, "v1", "roles", "Role"),
    Kind(_RBAC, "v1", "rolebindings", "RoleBinding"),
    Kind(_RBAC, "v1", "clusterroles", "ClusterRole", namespaced=False),
    Kind(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False, short=("pc",)),
    Kind(
        "admissionregistration.k8s.io",
        "v1",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        namespaced=False,
    ),
    CRD,
)


class Kinds:
    """The kinds that are served now: the built-in ones and those of custom resource definitions."""

    def __init__(self) -> None:
        self._by_place = {(kind.path, kind.plural): kind for kind in BUILT_IN}

    def __iter__(self) -> Iterator[Kind]:
        return iter(list(self._by_place.values()))

    def find(self, path: str, plural: str) -> Kind | None:
        """Return the kind with this path and plural (`apis/apps/v1`, `deployments`), or None."""
        return self._by_place.get((path, plural))

    def find_by_resource(self, resource: str) -> Kind:
        """Return the kind that is stored as `resource` (`deployments.apps`). Raises StopIteration if there is none."""
        return next(kind for kind in self if kind.resource == resource)

    def add(self, kind: Kind) -> None:
        """Serve one more kind, or a changed one."""
        self._by_place[kind.path, kind.plural] = kind

    def remove(self, kind: Kind) -> None:
        """Serve a kind no longer."""
        self._by_place.pop((kind.path, kind.plural), None)


def from_definition(definition: dict[str, Any]) -> Iterator[Kind]:
    """Yield the kinds of a CustomResourceDefinition, one for each version that is served."""
    spec = definition["spec"]
    names = spec["names"]
    for version in spec["versions"]:
        if version.get("served", True):
            yield Kind(
                spec["group"],
                version["name"],
                names["plural"],
                names["kind"],
                namespaced=spec.get("scope") == "Namespaced",
                short=tuple(names.get("shortNames") or ()),
                subresources=tuple(version.get("subresources") or ()),
                schema=(version.get("schema") or {}).get("openAPIV3Schema") or {},
                columns=tuple(version.get("additionalPrinterColumns") or ()),
            )
