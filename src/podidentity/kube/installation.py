"""Finds MIC and NMI in a cluster, with their settings and rights, whichever manifest or chart installed them."""

import time
from collections.abc import Mapping
from typing import Any

from podidentity.core.model.identities import ObjectKey
from podidentity.core.report.diagnosing import Daemon, Right
from podidentity.kube.api import Api, Selection
from podidentity.kube.resources import PODS, SUBJECT_REVIEWS
from podidentity.timing import parse_rfc3339

LABELS = ("component", "app.kubernetes.io/component")
"""The labels by which upstream's manifests, and its chart, mark the pods of a daemon."""


async def find_daemons(api: Api, component: str) -> tuple[Daemon, ...]:
    """Return the pods of `mic` or `nmi` in all namespaces. Raises KubernetesError."""
    daemons: dict[ObjectKey, Daemon] = {}
    for label in LABELS:
        pods = await api.list(PODS.as_json(), Selection(labels=f"{label}={component}"))
        for key, pod in pods.items.items():
            daemon = _daemon(key, pod.value, component)
            if daemon is not None:
                daemons[key] = daemon
    return tuple(daemons[key] for key in sorted(daemons))


async def find_missing_rights(api: Api, daemon: Daemon, rights: tuple[Right, ...]) -> tuple[Right, ...]:
    """Return those of `rights` that a daemon's service account lacks. Raises KubernetesError."""
    return tuple([right for right in rights if not await _may(api, daemon, right)])


async def _may(api: Api, daemon: Daemon, right: Right) -> bool:
    attributes = {"verb": right.verb, "group": right.group, "resource": right.resource}
    if right.home:
        attributes["namespace"] = daemon.key.namespace
    elif right.namespace:
        attributes["namespace"] = right.namespace
    if right.name:
        attributes["name"] = right.name
    accounts = "system:serviceaccounts"
    spec = {
        "user": f"system:serviceaccount:{daemon.key.namespace}:{daemon.account}",
        "groups": [accounts, f"{accounts}:{daemon.key.namespace}", "system:authenticated"],
        "resourceAttributes": attributes,
    }
    review = await api.create(SUBJECT_REVIEWS, {"metadata": {"name": ""}, "spec": spec})
    return bool((review.get("status") or {}).get("allowed"))


def _daemon(key: ObjectKey, pod: Mapping[str, Any], component: str) -> Daemon | None:
    """Return the daemon that a pod runs; None when no container has the daemon's name."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    container = next((item for item in spec.get("containers") or () if item.get("name") == component), None)
    if container is None:
        return None
    statuses = [item for item in status.get("containerStatuses") or () if item.get("name") == component]
    ready: Mapping[str, Any] = next(
        (item for item in status.get("conditions") or () if item.get("type") == "Ready"), {}
    )
    return Daemon(
        key=key,
        node=str(spec.get("nodeName") or ""),
        ready=ready.get("status") == "True",
        image=str(container.get("image") or ""),
        account=str(spec.get("serviceAccountName") or "default"),
        arguments=tuple(map(str, container.get("args") or ())),
        environ={
            str(variable.get("name")): str(variable.get("value") or "") for variable in container.get("env") or ()
        },
        restarts=sum(int(item.get("restartCount") or 0) for item in statuses),
        ready_seconds=_seconds_since(ready.get("lastTransitionTime")),
    )


def _seconds_since(moment: object) -> float:
    """Return how long ago a time in RFC 3339 was; infinity when it cannot be read."""
    seconds = parse_rfc3339(str(moment))
    return float("inf") if seconds is None else time.time() - seconds
