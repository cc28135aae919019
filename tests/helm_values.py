"""A chart's values one by one, for tests that each value has an effect."""

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
