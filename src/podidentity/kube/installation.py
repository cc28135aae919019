"""Finds MIC and NMI in a cluster, whichever manifest or chart installed them, and what they were told.

For commands that a person runs (`explain`, `doctor`); the daemons do not look for each other.
"""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from podidentity.core.diagnosing import Daemon, Right
from podidentity.core.identities import ObjectKey
from podidentity.kube.api import Api, Selection
from podidentity.kube.resources import PODS, SUBJECT_REVIEWS

LABELS = ("component", "app.kubernetes.io/component")
"""How upstream's manifests, and its chart, label the pods of a daemon."""


async def find_daemons(api: Api, component: str) -> tuple[Daemon, ...]:
    """List the pods of `mic` or `nmi` in all namespaces."""
    found: dict[ObjectKey, Daemon] = {}
    for label in LABELS:
        listed = await api.list(PODS.whole(), Selection(labels=f"{label}={component}"))
        for key, stored in listed.items.items():
            daemon = _daemon(key, stored.value, component)
            if daemon is not None:
                found[key] = daemon
    return tuple(found[key] for key in sorted(found))


async def denied(api: Api, daemon: Daemon, rights: tuple[Right, ...]) -> tuple[Right, ...]:
    """Ask the API server which of `rights` a daemon's service account lacks. Raises KubernetesError."""
    return tuple([one for one in rights if not await _may(api, daemon, one)])


async def _may(api: Api, daemon: Daemon, right: Right) -> bool:
    attributes = {"verb": right.verb, "group": right.group, "resource": right.resource}
    if right.home:
        attributes["namespace"] = daemon.key.namespace
    accounts = "system:serviceaccounts"
    spec = {
        "user": f"system:serviceaccount:{daemon.key.namespace}:{daemon.account}",
        "groups": [accounts, f"{accounts}:{daemon.key.namespace}", "system:authenticated"],
        "resourceAttributes": attributes,
    }
    review = await api.create(SUBJECT_REVIEWS, {"metadata": {"name": ""}, "spec": spec})
    return bool((review.get("status") or {}).get("allowed"))


def _daemon(key: ObjectKey, pod: Mapping[str, Any], component: str) -> Daemon | None:
    """Read a pod; None when none of its containers can be the daemon."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    container = next((one for one in spec.get("containers") or () if one.get("name") == component), None)
    if container is None:
        return None
    statuses = [one for one in status.get("containerStatuses") or () if one.get("name") == component]
    ready: Mapping[str, Any] = next((one for one in status.get("conditions") or () if one.get("type") == "Ready"), {})
    return Daemon(
        key=key,
        node=str(spec.get("nodeName") or ""),
        ready=ready.get("status") == "True",
        image=str(container.get("image") or ""),
        account=str(spec.get("serviceAccountName") or "default"),
        arguments=tuple(map(str, container.get("args") or ())),
        environ={str(one.get("name")): str(one.get("value") or "") for one in container.get("env") or ()},
        restarts=sum(int(one.get("restartCount") or 0) for one in statuses),
        ready_seconds=_seconds_since(ready.get("lastTransitionTime")),
    )


def _seconds_since(moment: object) -> float:
    """How long ago it was; for ever when it does not say."""
    try:
        return time.time() - datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return float("inf")
