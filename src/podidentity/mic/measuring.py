"""What MIC's calls to ARM cost and how they fail, under upstream's names (`pkg/metrics`), and who is failing now.

`Measured` is a wrapper on the port of `Machines`; nothing else in MIC knows that it is measured. As upstream does, only
calls that succeeded count into the durations.
"""

import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from podidentity.core.arm import ScaleSet, Target, TargetState
from podidentity.core.drift import Change
from podidentity.core.failing import Failing
from podidentity.errors import AzureError
from podidentity.mic.ports import Machines
from podidentity.serving.metrics import CYCLE_BUCKETS_SECONDS, PREFIX

_KNOWN = frozenset(
    {
        "AuthorizationFailed",
        "FailedIdentityOperation",
        "LinkedAuthorizationFailed",
        "ResourceNotFound",
        "TooManyRequests",
    }
)
"""ARM's codes that a label may have; every other is `other`."""
T = TypeVar("T")


class ArmMetrics:
    """What is counted, over all terms of a MIC."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.errors = Counter(
            f"{PREFIX}cloud_provider_operations_errors_count",
            "Calls to ARM that failed.",
            ["operation_type"],
            registry=registry,
        )
        self.seconds = Histogram(
            f"{PREFIX}cloud_provider_operations_duration_seconds",
            "How long calls to ARM took, until ARM had done what was asked.",
            ["operation_type"],
            buckets=CYCLE_BUCKETS_SECONDS,
            registry=registry,
        )
        for operation in ("vm_get", "vm_update", "vmss_get", "vmss_update"):
            self.errors.labels(operation)
            self.seconds.labels(operation)


class Measured:
    """Machines whose calls are measured."""

    def __init__(self, machines: Machines, metrics: ArmMetrics) -> None:
        self._machines = machines
        self._metrics = metrics

    async def get(self, target: Target) -> TargetState:
        """Read what a target carries."""
        return await self._call(target, "get", lambda: self._machines.get(target))

    async def patch(self, target: Target, change: Change, state: TargetState) -> TargetState:
        """Change what a target carries."""
        return await self._call(target, "update", lambda: self._machines.patch(target, change, state))

    async def _call(self, target: Target, what: str, call: Callable[[], Awaitable[T]]) -> T:
        operation = f"{'vmss' if isinstance(target, ScaleSet) else 'vm'}_{what}"
        began = time.perf_counter()
        try:
            made = await call()
        except AzureError:
            self._metrics.errors.labels(operation).inc()
            raise
        self._metrics.seconds.labels(operation).observe(time.perf_counter() - began)
        return made


class FailingIdentities(Collector):
    """How many identities are wanted somewhere and cannot be put there, by reason; asked when the page is."""

    def __init__(self, failing: Callable[[], Iterable[Failing]]) -> None:
        self._failing = failing

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Count them."""
        found = Tally(one.code if one.code in _KNOWN else "other" for one in self._failing())
        family = GaugeMetricFamily(
            f"{PREFIX}mic_failing_identities",
            "Identities that cannot be put on a VM or scale set that needs them, by ARM's error code.",
            labels=["reason"],
        )
        for reason in sorted({*_KNOWN, "other"}):
            family.add_metric([reason], found[reason])
        yield family
