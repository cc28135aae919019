"""Patches: JSON patch, merge patch, strategic merge patch. The content type says which."""

import copy
from typing import Any

import jsonpatch

from podidentity_lab.kubernetes.statuses import ApiError

Json = dict[str, Any]
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "conditions": "type",
    "ownerReferences": "uid",
    "tolerations": "",
}
"""Lists that a strategic merge patch merges by a key instead of replacing (from the Kubernetes API reference)."""


def apply(obj: Json, patch: Any, content_type: str) -> Json:
    """Return the patched object. Raises ApiError for a patch that cannot be applied."""
    kind = content_type.split(";", maxsplit=1)[0].strip()
    if kind == "application/json-patch+json":
        return _json_patch(obj, patch)
    if kind == "application/merge-patch+json":
        return _merge_object(obj, patch, {})
    if kind == "application/strategic-merge-patch+json":
        return _merge_object(obj, patch, _MERGE_KEYS)
    raise ApiError(415, f'patch type "{kind}" is not known')


def merge_intent(obj: Json, previous: Json, intent: Json, *, is_built_in: bool) -> Json:
    """Return the object with a manager's intent in it, and without what its `previous` one alone had set."""
    keys = _MERGE_KEYS if is_built_in else {}
    return _merge_object(_without_withdrawn(obj, previous, intent, keys), intent, keys)


def _without_withdrawn(obj: Json, previous: Json, intent: Json, keys: dict[str, str]) -> Json:
    """Drop the fields and the items of keyed lists that `previous` has and `intent` has not."""
    result = {name: value for name, value in obj.items() if name in intent or name not in previous}
    for name in result.keys() & previous.keys():
        old_value, new_value = previous[name], intent[name]
        if isinstance(old_value, dict) and isinstance(new_value, dict) and isinstance(result[name], dict):
            result[name] = _without_withdrawn(result[name], old_value, new_value, keys)
        elif keys.get(name) and isinstance(result[name], list):
            key = keys[name]
            withdrawn = {item.get(key) for item in old_value} - {item.get(key) for item in new_value}
            result[name] = [item for item in result[name] if item.get(key) not in withdrawn]
    return result


def _json_patch(obj: Json, patch: Any) -> Json:
    try:
        result: Json = jsonpatch.apply_patch(obj, patch)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise ApiError(422, f"the server rejected our request due to an error in our request: {error}") from None
    return result


def _merge_object(obj: Json, patch: Any, keys: dict[str, str]) -> Json:
    if not isinstance(patch, dict):
        raise ApiError(400, "a merge patch is an object")
    result: Json = _merge(obj, patch, keys)
    return result


def _merge(target: Any, patch: Any, keys: dict[str, str]) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if name.startswith("$"):
            continue
        if value is None:
            result.pop(name, None)
        elif isinstance(value, list) and keys.get(name):
            result[name] = _merge_lists(result.get(name) or [], value, keys[name], keys)
        else:
            result[name] = _merge(result.get(name), value, keys)
    return result


def _merge_lists(target: list[Json], patch: list[Json], key: str, keys: dict[str, str]) -> list[Json]:
    items = {item.get(key): item for item in target}
    for item in patch:
        if item.get("$patch") == "delete":
            items.pop(item.get(key), None)
        else:
            items[item.get(key)] = _merge(items.get(item.get(key)), item, keys)
    return list(items.values())
