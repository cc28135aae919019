"""What the server fills in when an object is created, as far as kubectl, controllers and kubelets rely on it."""

import base64
import re
from typing import Any

from podidentity_lab.kubernetes import cron, debugging
from podidentity_lab.kubernetes.kinds import Kind
from podidentity_lab.kubernetes.statuses import ApiError, beyond_the_lab

TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  # a path
TOKEN_VOLUME = "kube-api-access"  # noqa: S105  # a volume's name
NAME_LIMIT = 253
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
Json = dict[str, Any]


def admit(kind: Kind, obj: Json) -> None:
    """Fill in defaults, in place. Raises ApiError 422 for a bad name or what the lab could not work with."""
    _check_name(kind, obj["metadata"].get("name") or "")
    fill = _FILLS.get(kind.resource)
    if fill is not None:
        if not isinstance(obj.get("spec"), dict):
            raise ApiError(422, f'{kind.kind} "{obj["metadata"].get("name", "")}" is invalid: spec: Required value')
        fill(obj)
    if kind.plural == "secrets":
        _secret(obj)
    if kind.plural == "namespaces":
        obj.setdefault("status", {"phase": "Active"})


def _check_name(kind: Kind, name: str) -> None:
    """Names are DNS subdomains (RFC 1123); roles and their bindings may have any name that fits into a path."""
    if kind.group == "rbac.authorization.k8s.io" or not name:
        return
    if len(name) > NAME_LIMIT or not _NAME.fullmatch(name):
        rule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
        raise ApiError(422, f'{kind.kind} "{name}" is invalid: metadata.name: Invalid value: "{name}": {rule}')


def _pod(obj: Json) -> None:
    spec = obj["spec"]
    if not spec.get("containers"):
        raise ApiError(422, f'Pod "{obj["metadata"].get("name", "")}" is invalid: spec.containers: Required value')
    debugging.refuse_at_creation(obj)
    defaults = {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst"}
    for name, value in defaults.items():
        spec.setdefault(name, value)
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("securityContext", {})  # `kubectl debug` reads it without asking whether it is there
    obj.setdefault("status", {}).setdefault("phase", "Pending")
    if spec.get("automountServiceAccountToken") is not False:
        _mount_token(spec)


def _mount_token(spec: Json) -> None:
    containers = [*spec["containers"], *spec.get("initContainers", [])]
    volumes = spec.setdefault("volumes", [])
    if any(volume["name"].startswith(TOKEN_VOLUME) for volume in volumes):
        return
    sources = [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]
    volumes.append({"name": TOKEN_VOLUME, "projected": {"sources": sources}})
    for container in containers:
        mounts = container.setdefault("volumeMounts", [])
        mounts.append({"name": TOKEN_VOLUME, "mountPath": TOKEN_PATH, "readOnly": True})


def _deployment(obj: Json) -> None:
    spec = obj["spec"]
    spec.setdefault("replicas", 1)
    _rolling_update(spec, "strategy", {"maxSurge": "25%", "maxUnavailable": "25%"})
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)


def _daemon_set(obj: Json) -> None:
    _rolling_update(obj["spec"], "updateStrategy", {"maxSurge": 0, "maxUnavailable": 1})
    obj["spec"].setdefault("revisionHistoryLimit", 10)


def _rolling_update(spec: Json, field: str, defaults: Json) -> None:
    """Fill in a strategy, part by part: clients read `rollingUpdate` without asking whether it is there."""
    strategy = spec[field] = spec.get(field) or {}
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        strategy["rollingUpdate"] = {**defaults, **(strategy.get("rollingUpdate") or {})}


def _job(obj: Json) -> None:
    spec, name = obj["spec"], obj["metadata"].get("name", "")
    template = spec.get("template") or {}
    if not (template.get("spec") or {}).get("containers"):
        raise ApiError(422, f'Job "{name}" is invalid: spec.template.spec.containers: Required value')
    policy = template["spec"].get("restartPolicy")
    if policy not in {"Never", "OnFailure"}:
        raise ApiError(
            422,
            f'Job "{name}" is invalid: spec.template.spec.restartPolicy: Unsupported value: "{policy or "Always"}": '
            f'supported values: "OnFailure", "Never"',
        )
    for field, value in {"parallelism": 1, "backoffLimit": 6, "suspend": False, "completionMode": "NonIndexed"}.items():
        spec.setdefault(field, value)
    if "completions" not in spec and spec["parallelism"] == 1:
        spec["completions"] = 1
    if spec["completionMode"] != "NonIndexed":
        raise beyond_the_lab(f"jobs with the completion mode {spec['completionMode']}")


def _cron_job(obj: Json) -> None:
    spec = obj["spec"]
    spec.setdefault("timeZone", "UTC")
    cron.check(str(spec.get("schedule") or ""), spec["timeZone"])
    _job({"metadata": obj["metadata"], "spec": (spec.get("jobTemplate") or {}).get("spec") or {}})
    for field, value in {"concurrencyPolicy": "Allow", "suspend": False}.items():
        spec.setdefault(field, value)


def _service(obj: Json) -> None:
    spec = obj["spec"]
    spec.setdefault("type", "ClusterIP")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])


def _secret(obj: Json) -> None:
    for name, value in (obj.pop("stringData", None) or {}).items():
        obj.setdefault("data", {})[name] = base64.b64encode(value.encode()).decode()
    obj.setdefault("type", "Opaque")


_FILLS = {
    "pods": _pod,
    "deployments.apps": _deployment,
    "daemonsets.apps": _daemon_set,
    "jobs.batch": _job,
    "cronjobs.batch": _cron_job,
    "services": _service,
}
"""What fills in the defaults of a kind."""
