"""Patches: JSON patch, merge patch, strategic merge patch. The content type says which."""

import copy
from typing import Any

import jsonpatch

from podidentity.lab.kubernetes.statuses import ApiError

Json = dict[str, Any]
_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
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
    """Give the patched object."""
    kind = content_type.split(";", maxsplit=1)[0].strip()
    if kind == "application/json-patch+json":
        return _json_patch(obj, patch)
    if kind == "application/merge-patch+json":
        return _merged(obj, patch, {})
    if kind == "application/strategic-merge-patch+json":
        return _merged(obj, patch, _MERGE_KEYS)
    raise ApiError(415, f'patch type "{kind}" is not known')


def _json_patch(obj: Json, patch: Any) -> Json:
    try:
        result: Json = jsonpatch.apply_patch(obj, patch)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise ApiError(422, f"the server rejected our request due to an error in our request: {error}") from None
    return result


def _merged(obj: Json, patch: Any, keys: dict[str, str]) -> Json:
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
    merged = {item.get(key): item for item in target}
    for item in patch:
        if item.get("$patch") == "delete":
            merged.pop(item.get(key), None)
        else:
            merged[item.get(key)] = _merge(merged.get(item.get(key)), item, keys)
    return list(merged.values())
