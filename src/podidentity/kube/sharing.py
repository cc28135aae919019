"""Keeps one copy of what many objects repeat: at 100,000 pods, that is more of MIC's memory than what they do not.

Each object arrives as JSON of its own, so that each pod brings the name of its node, and each assigned identity a whole
AzureIdentity and binding. Shared are values that are equal in every field, those that do not count for equality
included.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from sys import intern
from typing import Any, TypeVar

from podidentity.bounded import BoundedDict
from podidentity.core.model import crd
from podidentity.core.model.identities import AzureAssignedIdentity, ObjectKey

T = TypeVar("T", bound=Hashable)

LIMIT = 8192
"""Different values of a kind that are shared; of more, the oldest ones are there more than once."""

_values: BoundedDict[Hashable, Hashable] = BoundedDict(4 * LIMIT)
_labels: BoundedDict[tuple[tuple[str, str], ...], Mapping[str, str]] = BoundedDict(LIMIT)


def shared_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return labels, which nobody changes, for any number of pods that have the same."""
    items = tuple(labels.items())
    earlier = _labels.get(items)
    if earlier is None:
        _labels[items] = labels
        return labels
    return earlier


def shared_key(key: ObjectKey) -> ObjectKey:
    """Return the key of an object with the name of its namespace shared."""
    return ObjectKey(intern(key.namespace), key.name)


def own_key(value: object, key: ObjectKey) -> ObjectKey:
    """Return the key that a value has itself, in place of an equal one beside it; `key` where it has none."""
    candidate: object = getattr(value, "key", None)
    return candidate if isinstance(candidate, ObjectKey) and candidate == key else key


def parse_shared(obj: Mapping[str, Any]) -> AzureAssignedIdentity:
    """Read an AzureAssignedIdentity; its identity, binding and names are those of others that have the same."""
    item = crd.parse_assigned(obj)
    identity, binding = item.identity, item.binding
    return replace(
        item,
        key=shared_key(item.key),
        identity=_representative(identity, identity.uid, identity.stamp, identity.generation, identity.conditions),
        binding=_representative(binding, binding.uid, binding.node_selector, binding.generation, binding.conditions),
        pod=shared_key(item.pod),
        node=intern(item.node),
        finalizers=_representative(item.finalizers),
    )


def _representative(value: T, *remaining: Hashable) -> T:
    """Return an earlier value that is equal to this one, as are the `remaining` fields, or this one."""
    key = (value, remaining)
    earlier = _values.get(key)
    if earlier is None:
        _values[key] = value
        return value
    return earlier  # type: ignore[return-value]  # equal values of one class
