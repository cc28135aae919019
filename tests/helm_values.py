"""A chart's values one by one, for tests that each value has an effect; and what its objects have in common."""

import copy
from typing import Any

Json = dict[str, Any]
Path = tuple[str, ...]


def leaves(value: Any, path: Path = ()) -> list[Path]:
    """Return the path of each value that a user can set."""
    if not (isinstance(value, dict) and value):
        return [path]
    return [leaf for name, below in value.items() for leaf in leaves(below, (*path, str(name)))]


def without(values: Json, path: Path) -> Json:
    """Return a copy that lacks the value at `path`."""
    less = copy.deepcopy(values)
    holder = less
    for name in path[:-1]:
        holder = holder[name]
    del holder[path[-1]]
    return less


def value_at(values: Json, path: Path) -> Any:
    """Return the value at `path`; None where there is none."""
    value: Any = values
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def find(items: list[Json], kind: str) -> Json:
    """Return the only object of this kind."""
    (item,) = [item for item in items if item["kind"] == kind]
    return item


def assert_restricted(spec: Json) -> None:
    """Hold that a pod satisfies Pod Security's level `restricted`, and that it can write to its own /tmp only."""
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")] == ["/tmp"]
