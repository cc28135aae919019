"""Label and field selectors, as the API takes them in a query and as controllers write them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from podidentity_lab.kubernetes.statuses import ApiError

Json = dict[str, Any]
Test = Callable[[Json], bool]
_SET = re.compile(r"\s*([^\s!=]+)\s+(in|notin)\s+\(([^)]*)\)\s*")


def labels(text: str) -> Test:
    """Return the test that a label selector makes: `a=b,c!=d,e,!f,g in (h,i)`."""
    tests = [_label(part.strip()) for part in re.split(r",(?![^(]*\))", text) if part.strip()]
    return lambda obj: all(test(obj["metadata"].get("labels") or {}) for test in tests)


def fields(text: str) -> Test:
    """Return the test that a field selector makes: `spec.nodeName=n1,metadata.name!=x`; a missing field is empty."""
    tests = [_field(part) for part in text.split(",") if part]
    return lambda obj: all(test(obj) for test in tests)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether labels match a controller's `selector` (matchLabels only: all that the lab's objects use)."""
    if selector.get("matchExpressions"):
        raise ApiError(422, "the lab's controllers know matchLabels only; write the selector with them")
    return all(labels.get(name) == value for name, value in (selector.get("matchLabels") or {}).items())


def _label(part: str) -> Callable[[Mapping[str, str]], bool]:
    in_set = _SET.fullmatch(part)
    if in_set:
        name, word, values = in_set[1], in_set[2], {value.strip() for value in in_set[3].split(",")}
        return lambda labels: (labels.get(name) in values) == (word == "in")
    name, operator, value = _split(part)
    if operator:
        return lambda labels: (labels.get(name) == value) == (operator == "=")
    if part.startswith("!"):
        return lambda labels: part[1:] not in labels
    return lambda labels: part in labels


def _field(part: str) -> Test:
    name, operator, value = _split(part)
    if not operator:
        raise ApiError(400, f'field selector "{part}" has no operator; write name=value')
    return lambda obj: (_value_at(obj, name) == value) == (operator == "=")


def _split(part: str) -> tuple[str, str, str]:
    for operator in ("!=", "==", "="):
        name, separator, value = part.partition(operator)
        if separator:
            return name.strip(), operator.replace("==", "="), value.strip()
    return part, "", ""


def _value_at(obj: Json, path: str) -> str:
    value: Any = obj
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return "" if value is None else str(value)
