"""MIC's metrics about its own cycles and its writes to Kubernetes, under upstream's names (`pkg/metrics`).

`Counted` measures writes as a wrapper on the same port; nothing else in MIC knows that it is measured.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from podidentity.core.identities import AzureAssignedIdentity
from podidentity.errors import ConflictError, FencedError, KubernetesError
from podidentity.mic.ports import Objects
from podidentity.serving.metrics import CYCLE_BUCKETS_SECONDS, PREFIX, SHORT_BUCKETS_SECONDS

_ERRORS = {
    "addition": "assigned_identity_addition",
    "deletion": "assigned_identity_deletion",
    "update": "assigned_identity_update",
    "status": "update_azure_assigned_identity_status",
}


class Metrics:
    """What a MIC counts, over all its terms."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, text, buckets=buckets, registry=registry)

        self.elections = counter("mic_new_leader_election_count", "Terms of this MIC as leader.")
        self.cycles = counter("mic_cycle_count", "Plans made and carried out.")
        self.cycle_seconds = histogram(
            "mic_cycle_duration_seconds", "How long it took to make a plan and write it.", CYCLE_BUCKETS_SECONDS
        )
        self.errors = counter(
            "kubernetes_api_operations_errors_count", "Requests to Kubernetes that failed.", "operation_type"
        )
        self.counts = {
            "addition": counter("assigned_identity_addition_count", "Assigned identities created."),
            "deletion": counter("assigned_identity_deletion_count", "Assigned identities deleted."),
            "update": counter("assigned_identity_update_count", "Assigned identities replaced."),
        }
        self.seconds = {
            kind: histogram(
                f"assigned_identity_{kind}_duration_seconds", f"How long each {kind} took.", SHORT_BUCKETS_SECONDS
            )
            for kind in self.counts
        }
        for operation in _ERRORS.values():
            self.errors.labels(operation)

    @contextmanager
    def cycle(self) -> Iterator[None]:
        """Measure one cycle."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.cycles.inc()
            self.cycle_seconds.observe(time.perf_counter() - began)


class Counted:
    """Objects whose writes are counted and measured."""

    def __init__(self, objects: Objects, metrics: Metrics) -> None:
        self._objects = objects
        self._metrics = metrics

    async def create(self, assigned: AzureAssignedIdentity) -> None:
        """Create one."""
        await self._measured("addition", self._objects.create, assigned)

    async def replace(self, assigned: AzureAssignedIdentity) -> None:
        """Replace one."""
        await self._measured("update", self._objects.replace, assigned)

    async def mark(self, assigned: AzureAssignedIdentity) -> None:
        """Write its state and nothing else."""
        await self._measured("status", self._objects.mark, assigned)

    async def delete(self, assigned: AzureAssignedIdentity) -> None:
        """Release its finalizer and delete it."""
        await self._measured("deletion", self._objects.delete, assigned)

    async def _measured(
        self, kind: str, write: Callable[[AzureAssignedIdentity], Awaitable[None]], assigned: AzureAssignedIdentity
    ) -> None:
        began = time.perf_counter()
        try:
            await write(assigned)
        except KubernetesError as error:
            if not isinstance(error, ConflictError | FencedError):  # somebody else's turn is no failure
                self._metrics.errors.labels(_ERRORS[kind]).inc()
            raise
        if kind in self._metrics.counts:  # upstream does not count states
            self._metrics.counts[kind].inc()
            self._metrics.seconds[kind].observe(time.perf_counter() - began)
