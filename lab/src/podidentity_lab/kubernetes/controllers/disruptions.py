"""PodDisruptionBudgets: whether a pod may be evicted now."""

from typing import Any

from podidentity_lab.kubernetes import selectors
from podidentity_lab.kubernetes.controllers.workloads import is_active, is_ready
from podidentity_lab.kubernetes.statuses import ApiError
from podidentity_lab.kubernetes.storage import Storage

Json = dict[str, Any]


def check(storage: Storage, pod: Json) -> None:
    """Raise ApiError 429 when a budget does not allow that `pod` goes. One that is not ready may always go."""
    namespace = pod["metadata"]["namespace"]
    if not is_ready(pod):
        return
    for budget in storage.list("poddisruptionbudgets.policy", namespace):
        selector = budget["spec"].get("selector")
        if not _matches(selector, pod):
            continue
        pods = [item for item in storage.list("pods", namespace) if _matches(selector, item) and is_active(item)]
        healthy = sum(map(is_ready, pods))
        if healthy - 1 < _least(budget["spec"], len(pods)):
            raise ApiError(429, "Cannot evict pod as it would violate the pod's disruption budget.")


def _matches(selector: Json | None, pod: Json) -> bool:
    """Whether a selector chooses the pod: an empty one every pod, an absent one none (policy/v1)."""
    return selector is not None and selectors.matches(selector, pod["metadata"].get("labels") or {})


def _least(spec: Json, total: int) -> int:
    """Return how many pods of `total` must stay healthy; percentages are rounded up, as in Kubernetes."""
    if "maxUnavailable" in spec:
        return total - _count(spec["maxUnavailable"], total)
    return _count(spec.get("minAvailable", 1), total)


def _count(value: int | str, total: int) -> int:
    if isinstance(value, str) and value.endswith("%"):
        return -(-int(value.removesuffix("%")) * total // 100)
    return int(value)
