"""Ephemeral containers, which `kubectl debug` adds to a pod that runs: what may be added, in the API's words.

The rules are Kubernetes' (kubernetes.io/docs/concepts/workloads/pods/ephemeral-containers, and the fields of
`EphemeralContainer` in its API reference).
"""

import re
from typing import Any

from podidentity_lab.kubernetes.statuses import ApiError

Json = dict[str, Any]
FIELD = "ephemeralContainers"
FORBIDDEN_FIELDS = ("ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def with_containers(pod: Json, change: Json) -> Json:
    """Return `pod` with the ephemeral containers of `change`, and nothing else of it. Raises ApiError 422."""
    present_containers = pod["spec"].get(FIELD) or []
    containers = (change.get("spec") or {}).get(FIELD) or []
    if not isinstance(containers, list) or not all(isinstance(container, dict) for container in containers):
        raise _invalid(pod, f"spec.{FIELD}: Invalid value: it is no list of containers")
    by_name = {container.get("name"): container for container in containers}
    for container in present_containers:
        name = container["name"]
        if name not in by_name:
            raise _invalid(pod, f'spec.{FIELD}: Forbidden: existing ephemeral containers "{name}" may not be removed')
        if by_name[name] != container:
            raise _invalid(pod, f'spec.{FIELD}: Forbidden: existing ephemeral containers "{name}" may not be changed')
    names = _targets(pod)
    for index, container in enumerate(containers):
        _check(pod, f"spec.{FIELD}[{index}]", container, names)
    resource_version = (change.get("metadata") or {}).get("resourceVersion") or pod["metadata"]["resourceVersion"]
    metadata = {**pod["metadata"], "resourceVersion": resource_version}
    return {**pod, "metadata": metadata, "spec": {**pod["spec"], FIELD: containers}}


def refuse_at_creation(pod: Json) -> None:
    """Raise ApiError 422 for a new pod that has ephemeral containers."""
    if pod["spec"].get(FIELD):
        raise _invalid(pod, f"spec.{FIELD}: Forbidden: cannot be set on create")


def _check(pod: Json, path: str, container: Json, names: list[str]) -> None:
    """Check one container and add its name to `names`. Raises ApiError 422."""
    name, target = str(container.get("name") or ""), container.get("targetContainerName")
    if not _NAME.fullmatch(name):
        raise _invalid(pod, f"{path}.name: Invalid value: {name!r}: a lowercase RFC 1123 label is needed")
    if name in names:
        raise _invalid(pod, f'{path}.name: Duplicate value: "{name}"')
    if not container.get("image"):
        raise _invalid(pod, f"{path}.image: Required value")
    if target and target not in _targets(pod):
        raise _invalid(pod, f'{path}.targetContainerName: Not found: "{target}"')
    for field in FORBIDDEN_FIELDS:
        if container.get(field):
            raise _invalid(pod, f"{path}.{field}: Forbidden: cannot be set for an Ephemeral Container")
    names.append(name)


def _targets(pod: Json) -> list[str]:
    spec = pod["spec"]
    return [container["name"] for field in ("containers", "initContainers") for container in spec.get(field) or ()]


def _invalid(pod: Json, message: str) -> ApiError:
    return ApiError(422, f'Pod "{pod["metadata"].get("name", "")}" is invalid: {message}')
