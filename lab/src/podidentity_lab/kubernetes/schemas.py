"""Custom resources against their structural schemas: unknown fields, pruning, validation.

Follows what a real server does: strict validation names every unknown field, otherwise unknown fields are pruned; then
types, enums and patterns are checked.
"""

from collections.abc import Iterator
from typing import Any

import jsonschema

from podidentity_lab.kubernetes import rules
from podidentity_lab.kubernetes.kinds import Kind
from podidentity_lab.kubernetes.statuses import ApiError

Json = dict[str, Any]
_METADATA = frozenset({"apiVersion", "kind", "metadata"})


def admit(kind: Kind, obj: Json, *, strict: bool) -> Json:
    """Check a custom resource and drop what its schema does not know. Raises ApiError 400 or 422."""
    if kind.schema is None:
        return obj
    unknown = list(_unknown(obj, kind.schema, "", root=True))
    if unknown and strict:
        fields = ", ".join(f'unknown field "{path}"' for path in unknown)
        subject = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'
        message = f"{subject}: strict decoding error: {fields}"
        raise ApiError(400, message)
    pruned: Json = _pruned(obj, kind.schema, root=True)
    errors = sorted(
        jsonschema.Draft7Validator(_plain(kind.schema)).iter_errors(pruned), key=lambda error: list(error.path)
    )
    if errors:
        place = ".".join(str(part) for part in errors[0].path)
        name = obj.get("metadata", {}).get("name", "")
        raise ApiError(422, f'{kind.kind}.{kind.group} "{name}" is invalid: {place}: {errors[0].message}')
    for place, missing in _incomplete(pruned, kind.schema, ""):
        name = obj.get("metadata", {}).get("name", "")
        raise ApiError(422, f'{kind.kind}.{kind.group} "{name}" is invalid: {place}.{missing}: Required value')
    for place, message in rules.broken(pruned, kind.schema):
        name = obj.get("metadata", {}).get("name", "")
        raise ApiError(422, f'{kind.kind}.{kind.group} "{name}" is invalid: {place}: Invalid value: {message}')
    return pruned


def _plain(schema: Any) -> Any:
    """Return the schema as a JSON schema, in which `nullable` becomes a type that allows null."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _plain(value) for name, value in schema.items() if not name.startswith("x-")}
    if plain.get("nullable") is True and isinstance(plain.get("type"), str):
        plain["type"] = [plain["type"], "null"]
    return plain


def _property_names(schema: Json, *, root: bool) -> frozenset[str]:
    embedded = root or schema.get("x-kubernetes-embedded-resource")
    return frozenset(schema.get("properties") or ()) | (_METADATA if embedded else frozenset())


def _children(value: Any, schema: Json) -> Iterator[tuple[str, Any, Json]]:
    """Yield each part of a value that has a schema of its own: its path, the part, the schema."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield f"[{index}]", item, schema.get("items") or {}
    elif isinstance(value, dict):
        properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        for name, item in value.items():
            child = properties.get(name, additional)
            if isinstance(child, dict) and name != "metadata":
                yield f".{name}", item, child


def _incomplete(value: Any, schema: Json, path: str) -> Iterator[tuple[str, str]]:
    """Yield where an embedded object lacks a field that every object has, and which field."""
    if isinstance(value, dict) and schema.get("x-kubernetes-embedded-resource"):
        yield from ((path, name) for name in sorted(_METADATA) if not value.get(name))
    for step, item, child in _children(value, schema):
        yield from _incomplete(item, child, (path + step).lstrip("."))


def _open(schema: Json) -> bool:
    return bool(schema.get("x-kubernetes-preserve-unknown-fields")) or "additionalProperties" in schema


def _unknown(value: Any, schema: Json, path: str, *, root: bool = False) -> Iterator[str]:
    if isinstance(value, dict) and not _open(schema) and (root or schema.get("type") == "object"):
        for name in value:
            if name not in _property_names(schema, root=root):
                yield f"{path}.{name}".lstrip(".")
    for step, item, child in _children(value, schema):
        yield from _unknown(item, child, path + step)


def _pruned(value: Any, schema: Json, *, root: bool = False) -> Any:
    if isinstance(value, list):
        return [_pruned(item, schema.get("items") or {}) for item in value]
    if not isinstance(value, dict):
        return value
    keep_all = _open(schema) or not (root or schema.get("type") == "object")
    properties = {name: item for name, item in value.items() if keep_all or name in _property_names(schema, root=root)}
    return properties | {step[1:]: _pruned(item, child) for step, item, child in _children(properties, schema)}
