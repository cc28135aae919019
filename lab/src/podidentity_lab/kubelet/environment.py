"""A container's command and environment, worked out from its pod: valueFrom, envFrom and $(VAR).

A reference to something that does not exist is a `ContainerConfigError`: the container waits with that sentence, as on
a real node.
"""

import base64
import re
from collections.abc import Mapping, Sequence

from podidentity.errors import LabError
from podidentity_lab.fabric import FABRIC_ADDRESS
from podidentity_lab.images import Image
from podidentity_lab.kubelet.node import Json, Storage, find

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.\-][A-Za-z0-9_.\-]*)\)")
_ENTRY = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")

CLUSTER_ENVIRONMENT = {
    "KUBERNETES_SERVICE_HOST": FABRIC_ADDRESS,
    "KUBERNETES_SERVICE_PORT": "6443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "6443",
    "KUBERNETES_PORT": f"tcp://{FABRIC_ADDRESS}:6443",
}


class ContainerConfigError(LabError):
    """A container's specification names what does not exist."""


def environment(storage: Storage, pod: Json, container: Json, image: Image) -> dict[str, str]:
    """Return all variables of a container. Raises `ContainerConfigError`."""
    variables = {**image.environment, "HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"]}
    variables |= CLUSTER_ENVIRONMENT
    for source in container.get("envFrom") or ():
        variables |= _env_from(storage, pod, source)
    for variable in container.get("env") or ():
        value = _value(storage, pod, variable)
        if value is not None:
            variables[variable["name"]] = expand(value, variables) if "value" in variable else value
    return variables


def command(container: Json, image: Image, variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command line: `command` replaces entry point and arguments, `args` the arguments alone.

    Raises `ContainerConfigError`.
    """
    arguments = container.get("args") or (() if container.get("command") else image.arguments)
    words = [*(container.get("command") or image.entry_point), *arguments]
    if not words:
        message = f"container {container['name']}: image {container['image']} has no program of its own; give a command"
        raise ContainerConfigError(message)
    return tuple(expand(str(word), variables) for word in words)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Return `text` with variables in place of $(VAR); $$ is a dollar sign; an unknown variable stays as written."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else variables.get(name, match.group(0))

    return _REFERENCE.sub(replace, text)


def field(pod: Json, path: str) -> str:
    """Return a field of the pod by its path in the downward API. Raises `ContainerConfigError`."""
    entry = _ENTRY.fullmatch(path)
    if entry:
        return str((pod["metadata"].get(entry.group(1)) or {}).get(entry.group(2), ""))
    status, spec, metadata = pod.get("status") or {}, pod["spec"], pod["metadata"]
    fields = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "metadata.labels": _lines(metadata.get("labels") or {}),
        "metadata.annotations": _lines(metadata.get("annotations") or {}),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": status.get("podIP", ""),
        "status.podIPs": ",".join(pod_ip["ip"] for pod_ip in status.get("podIPs") or ()),
        "status.hostIP": status.get("hostIP", ""),
        "status.hostIPs": status.get("hostIP", ""),
    }
    if path not in fields:
        raise ContainerConfigError(f"fieldRef {path!r} is not known; use one of {', '.join(fields)}")
    return str(fields[path])


def decoded(resource: str, obj: Json) -> dict[str, bytes]:
    """Return the contents of a Secret or ConfigMap, by key."""
    if resource == "secrets":
        return {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
    plain = {key: str(value).encode() for key, value in (obj.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}


def _lines(values: Mapping[str, str]) -> str:
    return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))


def _env_from(storage: Storage, pod: Json, source: Json) -> dict[str, str]:
    resource, reference = _reference(source, ("secretRef", "configMapRef"))
    obj = find(storage, resource, pod["metadata"]["namespace"], reference["name"])
    if obj is None:
        if reference.get("optional"):
            return {}
        raise ContainerConfigError(_missing(resource, reference["name"]))
    prefix = source.get("prefix", "")
    return {f"{prefix}{key}": value.decode(errors="replace") for key, value in decoded(resource, obj).items()}


def _value(storage: Storage, pod: Json, variable: Json) -> str | None:
    """Return a variable's value; None to leave it out."""
    source = variable.get("valueFrom")
    if not source:
        return str(variable.get("value", ""))
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return "0"  # the lab limits nothing
    resource, reference = _reference(source, ("secretKeyRef", "configMapKeyRef"))
    obj = find(storage, resource, pod["metadata"]["namespace"], reference["name"])
    values = decoded(resource, obj) if obj else {}
    if reference["key"] in values:
        return values[reference["key"]].decode(errors="replace")
    if reference.get("optional"):
        return None
    if obj is None:
        raise ContainerConfigError(_missing(resource, reference["name"]))
    object_name = f"{resource[:-1]} {pod['metadata']['namespace']}/{reference['name']}"
    message = f"couldn't find key {reference['key']} in {object_name}"
    raise ContainerConfigError(f"{message}; add it, or make the reference optional")


def _reference(source: Json, names: Sequence[str]) -> tuple[str, Json]:
    secret, config = names
    if secret in source:
        return "secrets", source[secret]
    if config in source:
        return "configmaps", source[config]
    message = f"the lab does not know the source {', '.join(source)} of a variable"
    raise ContainerConfigError(f"{message}; use {secret} or {config}")


def _missing(resource: str, name: str) -> str:
    return f'{resource[:-1]} "{name}" not found; create it, or make the reference optional'
