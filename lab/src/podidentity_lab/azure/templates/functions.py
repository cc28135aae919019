"""The functions of template expressions: those that depend on their arguments alone, and those of a deployment's scope.

Reference: learn.microsoft.com/azure/azure-resource-manager/templates/template-functions. `uniqueString` has the form of
Azure's and depends on the same arguments, but its texts are not Azure's own: that hash is not published.
"""

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from podidentity_lab.azure import bodies
from podidentity_lab.azure.templates.budget import TemplateError, check_length
from podidentity_lab.azure.templates.expressions import Function, member, type_name

_GUIDS = uuid.UUID("11fb06fb-712d-4ddd-98c7-e71bbd588830")
"""The namespace of `guid()`, whose results are name-based UUIDs (RFC 9562, version 5)."""
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([0-9]{1,4})\}|[{}]")
_UNIQUE_CHARACTERS = 13
_MOST_COMPARISONS = 10_000_000  # of characters, when a text is split
_LONGEST_RANGE = 10_000
"""Numbers of `range()`, as in Azure."""


def text_of(value: Any) -> str:
    """Return a value as `string()` does."""
    if isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def format_text(arguments: Sequence[Any]) -> str:
    """Return `format('{0}-{1}', ...)`; widths and number formats are not there. Raises `TemplateError`."""
    template, *values = arguments

    def replacement(match: re.Match[str]) -> str:
        if match[0] in {"{{", "}}"}:
            return match[0][0]
        if match[1] is None:
            raise TemplateError(f"The format '{template}' is not valid: the lab knows {{0}}, {{1}}, ... only.")
        return texts[int(match[1])]

    texts = [text_of(value) for value in values]
    numbers = [match[1] for match in _PLACEHOLDER.finditer(template) if match[1]]
    check_length(sum(len(texts[int(number)]) for number in numbers))
    return _PLACEHOLDER.sub(replacement, template)


def guid(arguments: Sequence[Any]) -> str:
    """Return the GUID of one or more texts: the same one for the same texts."""
    return str(uuid.uuid5(_GUIDS, "-".join(_texts(arguments))))


def unique_string(arguments: Sequence[Any]) -> str:
    """Return 13 letters and digits: the same ones for the same texts."""
    digest = hashlib.sha256("-".join(_texts(arguments)).encode()).digest()
    return base64.b32encode(digest).decode().lower()[:_UNIQUE_CHARACTERS]


def _texts(arguments: Sequence[Any]) -> list[str]:
    if not arguments or not all(isinstance(argument, str) for argument in arguments):
        raise TypeError
    return list(arguments)


def _concat(arguments: Sequence[Any]) -> Any:
    if isinstance(arguments[0], list):
        return [item for argument in arguments for item in _array(argument)]
    texts = [text_of(argument) for argument in arguments]
    check_length(sum(map(len, texts)))
    return "".join(texts)


def _array(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _union(arguments: Sequence[Any]) -> Any:
    if isinstance(arguments[0], dict):
        return {key: value for argument in arguments for key, value in argument.items()}
    items: dict[str, Any] = {}
    for argument in arguments:
        for item in _array(argument):
            items.setdefault(_identity(item), item)
    return list(items.values())


def _identity(value: Any) -> str:
    """Return a text that equal values have in common, whatever their types."""
    return json.dumps(value, sort_keys=True)


def _contains(arguments: Sequence[Any]) -> bool:
    container, item = arguments
    if isinstance(container, dict):
        return str(item).lower() in {key.lower() for key in container}
    return item in container


def _equals(arguments: Sequence[Any]) -> bool:
    first, second = arguments
    if isinstance(first, str) and isinstance(second, str):
        return first.lower() == second.lower()
    return bool(type(first) is type(second) and first == second)


def _try_get(arguments: Sequence[Any]) -> Any:
    value = arguments[0]
    for key in arguments[1:]:
        try:
            value = member(value, key)
        except TemplateError:
            return None
    return value


def _boolean(arguments: Sequence[Any]) -> bool:
    (value,) = arguments
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
    return bool(value)


def _split(arguments: Sequence[Any]) -> list[str]:
    text, marks = arguments
    texts = [marks] if isinstance(marks, str) else _texts(marks)
    if len(text) * sum(map(len, texts)) > _MOST_COMPARISONS:
        raise TemplateError("The template function 'split' takes no text and marks as long as these.")
    return re.split("|".join(re.escape(mark) for mark in texts), text)


def _substring(arguments: Sequence[Any]) -> str:
    text, start, *length = arguments
    end = start + length[0] if length else len(text)
    if not 0 <= start <= end <= len(text):
        raise ValueError
    return str(text[start:end])


def _divide(arguments: Sequence[Any]) -> int:
    """Return the quotient of two whole numbers, cut off towards zero."""
    first, second = _integers(arguments)
    quotient = abs(first) // abs(second)
    return quotient if (first < 0) == (second < 0) else -quotient


def _integers(arguments: Sequence[Any]) -> Sequence[int]:
    if not all(isinstance(argument, int) for argument in arguments):
        raise TypeError
    return arguments


def _range(arguments: Sequence[Any]) -> list[int]:
    start, count = _integers(arguments)
    if not 0 <= count <= _LONGEST_RANGE:
        raise TemplateError(f"The template function 'range' yields 0 to {_LONGEST_RANGE} numbers, not {count}.")
    return list(range(start, start + count))


def _replace(arguments: Sequence[Any]) -> str:
    text, old, new = arguments
    if not old:
        raise ValueError
    check_length(len(text) + text.count(old) * (len(new) - len(old)))
    return str(text.replace(old, new))


def _join(arguments: Sequence[Any]) -> str:
    items, mark = arguments
    texts = [text_of(item) for item in _array(items)]
    check_length(sum(map(len, texts)) + len(mark) * max(len(texts) - 1, 0))
    return str(mark.join(texts))


def _subtract(arguments: Sequence[Any]) -> int:
    first, second = _integers(arguments)
    return first - second


def _multiply(arguments: Sequence[Any]) -> int:
    first, second = _integers(arguments)
    return first * second


def _create_object(arguments: Sequence[Any]) -> dict[str, Any]:
    if not all(isinstance(name, str) for name in arguments[::2]):
        raise TypeError
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


def _items(arguments: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in sorted(arguments[0].items())]


def _call(function: Callable[..., Any]) -> Function:
    """Return a function of an argument list from a function of arguments."""
    return lambda arguments: function(*arguments)


def _flat(items: list[Any] | tuple[Any, ...]) -> list[Any]:
    return list(items[0]) if len(items) == 1 and isinstance(items[0], list) else list(items)


PURE: Mapping[str, Function] = {
    "add": lambda arguments: sum(_integers(arguments)),
    "and": lambda arguments: all(argument is True for argument in arguments),
    "array": _call(lambda value: value if isinstance(value, list) else [value]),
    "base64": _call(lambda text: base64.b64encode(text.encode()).decode()),
    "base64tostring": _call(lambda text: base64.b64decode(text).decode()),
    "bool": _boolean,
    "coalesce": lambda arguments: next((argument for argument in arguments if argument is not None), None),
    "concat": _concat,
    "contains": _contains,
    "createarray": list,
    "createobject": _create_object,
    "div": _divide,
    "empty": _call(lambda value: value is None or len(value) == 0),
    "endswith": _call(lambda text, end: text.lower().endswith(end.lower())),
    "equals": _equals,
    "false": _call(lambda: False),
    "first": _call(lambda value: value[0] if value else None),
    "flatten": _call(lambda items: [item for part in items for item in _array(part)]),
    "format": format_text,
    "greater": _call(lambda first, second: first > second),
    "greaterorequals": _call(lambda first, second: first >= second),
    "guid": guid,
    "int": _call(int),
    "items": _items,
    "join": _join,
    "json": _call(bodies.loads),
    "last": _call(lambda value: value[-1] if value else None),
    "length": _call(len),
    "less": _call(lambda first, second: first < second),
    "lessorequals": _call(lambda first, second: first <= second),
    "max": lambda arguments: max(_flat(list(arguments))),
    "min": lambda arguments: min(_flat(list(arguments))),
    "mod": lambda arguments: arguments[0] - arguments[1] * _divide(arguments),
    "mul": _multiply,
    "not": _call(lambda value: value is not True),
    "null": _call(lambda: None),
    "or": lambda arguments: any(argument is True for argument in arguments),
    "range": _range,
    "replace": _replace,
    "split": _split,
    "startswith": _call(lambda text, start: text.lower().startswith(start.lower())),
    "string": _call(text_of),
    "sub": _subtract,
    "substring": _substring,
    "tolower": _call(lambda text: text.lower()),
    "toupper": _call(lambda text: text.upper()),
    "trim": _call(lambda text: text.strip()),
    "true": _call(lambda: True),
    "tryget": _try_get,
    "union": _union,
    "uniquestring": unique_string,
    "uricomponent": _call(lambda text: quote(text, safe="")),
}
"""Functions of their arguments alone, by lower-case name. `if` is part of the language (`expressions`)."""


def resource_path(kind: str, names: Sequence[str]) -> str:
    """Return the end of a resource's ID, from `/providers/` on: a type's segments take one name each."""
    namespace, *segments = kind.split("/")
    if not segments or len(segments) != len(names):
        message = (
            f"The template resource '{'/'.join(names)}' for type '{kind}' has incorrect segment lengths. A nested "
            "resource type must have identical number of segments as its resource name. A root resource type must have "
            "segment length one greater than its resource name."
        )
        raise TemplateError(message)
    pairs = "/".join(f"{segment}/{name}" for segment, name in zip(segments, names, strict=True))
    return f"/providers/{namespace}/{pairs}"


def resource_id(base: str, kind: str, names: Sequence[str]) -> str:
    """Return an ID below a scope; resource groups have no provider in theirs."""
    if kind.lower() == "microsoft.resources/resourcegroups" and len(names) == 1:
        return f"{'/'.join(base.split('/')[:3])}/resourceGroups/{names[0]}"
    return base.rstrip("/") + resource_path(kind, names)


def scope_functions(subscription_id: str, scope: str) -> Mapping[str, Function]:
    """Return the functions that name resources, for a deployment at `scope`: a group's ID, or the subscription's."""

    def identifier(arguments: Sequence[Any]) -> str:
        """Take an optional subscription ID and resource group, a type, and names."""
        number = next(number for number, argument in enumerate(arguments) if "/" in argument)
        places, kind, names = list(arguments[:number]), arguments[number], arguments[number + 1 :]
        if not places:
            return resource_id(scope, kind, names)
        is_subscription = len(places) == 2 or (len(places) == 1 and "/resourcegroups/" not in scope.lower())
        subscription = f"/subscriptions/{places[0] if is_subscription else subscription_id}"
        group = places[-1] if len(places) == 2 or not is_subscription else ""
        return resource_id(f"{subscription}/resourceGroups/{group}" if group else subscription, kind, names)

    def of_subscription(arguments: Sequence[Any]) -> str:
        number = next(number for number, argument in enumerate(arguments) if "/" in argument)
        place = arguments[0] if number else subscription_id
        return resource_id(f"/subscriptions/{place}", arguments[number], arguments[number + 1 :])

    return {
        "resourceid": identifier,
        "subscriptionresourceid": of_subscription,
        "tenantresourceid": lambda arguments: resource_path(arguments[0], arguments[1:]),
        "extensionresourceid": lambda arguments: resource_id(arguments[0], arguments[1], arguments[2:]),
    }


def check_type(name: str, kind: str, value: Any) -> None:
    """Refuse a parameter's or an output's value of another type than it is declared with. Raises `TemplateError`."""
    plain = {"securestring": "string", "secureobject": "object", "int": "integer", "bool": "boolean"}
    declared = plain.get(kind.lower(), kind.lower())
    if type_name(value).lower() != declared:
        raise TemplateError(f"The value of '{name}' is not valid: it must be a {kind}, and is a {type_name(value)}.")
