"""Validation rules of custom resources (`x-kubernetes-validations`), written in CEL.

Protocol: kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions, "Validation rules".
"""

import functools
from collections.abc import Iterator
from typing import Any

import cel

Json = dict[str, Any]


def broken(value: Any, schema: Json, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield where a value breaks a rule of its schema, and the rule's message."""
    for rule in schema.get("x-kubernetes-validations") or ():
        if not _holds(rule["rule"], value):
            yield path, str(rule.get("message") or f"failed rule: {rule['rule']}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from broken(item, schema.get("items") or {}, f"{path}[{index}]")
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        for name, item in value.items():
            if name in properties:
                yield from broken(item, properties[name], f"{path}.{name}".lstrip("."))


def _holds(rule: str, value: Any) -> bool:
    """Whether a value satisfies a rule; a rule that cannot be evaluated does not hold, as on a real server."""
    try:
        return bool(_compiled(rule).execute({"self": value}))
    except (RuntimeError, ValueError, TypeError):
        return False


@functools.cache
def _compiled(rule: str) -> cel.Program:
    return cel.compile(rule)
