"""What a path of the API names: a kind, a namespace, an object, a part of it."""

from dataclasses import dataclass

from podidentity_lab.kubernetes.kinds import Kind, Kinds
from podidentity_lab.kubernetes.statuses import ApiError, beyond_the_lab

REAL_RESOURCES = frozenset(
    [
        "statefulsets",
        "replicationcontrollers",
        "horizontalpodautoscalers",
        "ingresses",
        "ingressclasses",
        "persistentvolumes",
        "persistentvolumeclaims",
        "storageclasses",
        "volumeattachments",
        "csidrivers",
        "csinodes",
        "resourcequotas",
        "limitranges",
        "endpointslices",
        "controllerrevisions",
        "podtemplates",
        "runtimeclasses",
        "certificatesigningrequests",
        "validatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "flowschemas",
        "prioritylevelconfigurations",
        "apiservices",
        "componentstatuses",
    ]
)
"""What every real cluster has and this one does not."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a path names; `name` and `subresource` are empty when it does not."""

    kind: Kind
    namespace: str | None
    name: str
    subresource: str


def find(kinds: Kinds, path: str) -> Place:
    """Return what a path, without its leading slash, names. Raises ApiError 404, or 501 for what the lab lacks."""
    parts = path.split("/")
    depth = 2 if parts[0] == "api" else 3
    group_path, segments = "/".join(parts[:depth]), parts[depth:]
    namespace = None
    if len(segments) >= 3 and segments[0] == "namespaces" and kinds.find(group_path, segments[2]):
        namespace, segments = segments[1], segments[2:]
    kind = kinds.find(group_path, segments[0]) if segments else None
    if kind is None:
        group = parts[1] if depth == 3 and len(parts) > 1 else ""
        is_kubernetes = "." not in group or group.endswith(".k8s.io")
        if is_kubernetes and not REAL_RESOURCES.isdisjoint(segments):
            raise beyond_the_lab(next(segment for segment in segments if segment in REAL_RESOURCES))
        raise ApiError(404, "the server could not find the requested resource")
    name, subresource = (*segments[1:3], "", "")[:2]
    if subresource and subresource not in kind.subresources:
        raise beyond_the_lab(f"{kind.plural}/{subresource}")
    return Place(kind, namespace, name, subresource)
