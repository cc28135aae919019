"""What a path of the API names: a kind, a namespace, an object, a part of it."""

from dataclasses import dataclass

from podidentity.lab.kubernetes.kinds import Kind, Kinds
from podidentity.lab.kubernetes.statuses import ApiError, beyond_the_lab


@dataclass(frozen=True, slots=True)
class Place:
    """What a path names; `name` and `subresource` are empty when it does not."""

    kind: Kind
    namespace: str | None
    name: str
    subresource: str


def find(kinds: Kinds, path: str) -> Place:
    """Read a path without its leading slash. Raises ApiError 404, or 501 for what the lab does not have."""
    parts = path.split("/")
    depth = 2 if parts[0] == "api" else 3
    where, rest = "/".join(parts[:depth]), parts[depth:]
    namespace = None
    if len(rest) >= 3 and rest[0] == "namespaces" and kinds.find(where, rest[2]):
        namespace, rest = rest[1], rest[2:]
    kind = kinds.find(where, rest[0]) if rest else None
    if kind is None:
        raise ApiError(404, "the server could not find the requested resource")
    name, subresource = (*rest[1:3], "", "")[:2]
    if subresource and subresource not in kind.subresources:
        raise beyond_the_lab(f"{kind.plural}/{subresource}")
    return Place(kind, namespace, name, subresource)
