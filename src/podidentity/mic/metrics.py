"""MIC's metrics under upstream's names (`pkg/metrics`): its plans, its writes to Kubernetes, its calls to ARM.

`CountedObjects` and `MeasuredMachines` wrap the ports of the same methods; nothing else in MIC knows of metrics.
"""

import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from podidentity.core.model.arm import ArmState, IdentityId, ScaleSet, Target
from podidentity.core.model.assignment_failure import AssignmentFailure  # noqa: TC001  # one style of import for values
from podidentity.core.model.identities import AzureAssignedIdentity
from podidentity.core.target.drift import TargetChange
from podidentity.errors import AzureError, ConflictError, FencedError, KubernetesError
from podidentity.mic.ports import Machines, Objects
from podidentity.serving.metrics import CYCLE_BUCKETS_SECONDS, PREFIX, SHORT_BUCKETS_SECONDS

_WRITE_OPERATIONS = {
    "addition": "assigned_identity_addition",
    "deletion": "assigned_identity_deletion",
    "update": "assigned_identity_update",
    "status": "update_azure_assigned_identity_status",
}
"""The sorts of writes, and upstream's label for the failures of each."""
_ARM_CODES = frozenset(
    {
        "AuthorizationFailed",
        "FailedIdentityOperation",
        "LinkedAuthorizationFailed",
        "ResourceNotFound",
        "TooManyRequests",
    }
)
"""ARM's error codes that a label may have; every other code is `other`."""
T = TypeVar("T")


class Metrics:
    """What one MIC counts over all its terms as leader."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=registry)

        self.elections = counter("mic_new_leader_election_count", "Terms of this MIC as leader.")
        self.cycles = counter("mic_cycle_count", "Plans made and carried out.")
        self.cycle_seconds = histogram(
            "mic_cycle_duration_seconds", "How long it took to make a plan and write it.", CYCLE_BUCKETS_SECONDS
        )
        self.write_errors = counter(
            "kubernetes_api_operations_errors_count", "Requests to Kubernetes that failed.", "operation_type"
        )
        self.writes = {
            "addition": counter("assigned_identity_addition_count", "Assigned identities created."),
            "deletion": counter("assigned_identity_deletion_count", "Assigned identities deleted."),
            "update": counter("assigned_identity_update_count", "Assigned identities replaced."),
        }
        self.write_seconds = {
            sort: histogram(
                f"assigned_identity_{sort}_duration_seconds", f"How long each {sort} took.", SHORT_BUCKETS_SECONDS
            )
            for sort in self.writes
        }
        self.arm_errors = counter(
            "cloud_provider_operations_errors_count", "Calls to ARM that failed.", "operation_type"
        )
        self.arm_seconds = histogram(
            "cloud_provider_operations_duration_seconds",
            "How long calls to ARM took, until ARM had done what was asked.",
            CYCLE_BUCKETS_SECONDS,
            "operation_type",
        )
        self._show_zeros()

    def _show_zeros(self) -> None:
        """Make every label's series exist from the start."""
        for operation in _WRITE_OPERATIONS.values():
            self.write_errors.labels(operation)
        for operation in ("vm_get", "vm_update", "vmss_get", "vmss_update"):
            self.arm_errors.labels(operation)
            self.arm_seconds.labels(operation)

    @contextmanager
    def cycle(self) -> Iterator[None]:
        """Measure one plan, from its snapshot to its last write."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.cycles.inc()
            self.cycle_seconds.observe(time.perf_counter() - start)


class CountedObjects:
    """Assigned identities whose writes are counted and timed."""

    def __init__(self, objects: Objects, metrics: Metrics) -> None:
        self._objects = objects
        self._metrics = metrics

    async def create(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Create the object."""
        await self._write("addition", self._objects.create, assigned_identity)

    async def replace(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Replace the object."""
        await self._write("update", self._objects.replace, assigned_identity)

    async def mark(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Write the object's state and nothing else."""
        await self._write("status", self._objects.mark, assigned_identity)

    async def delete(self, assigned_identity: AzureAssignedIdentity) -> None:
        """Remove MIC's finalizer and delete the object."""
        await self._write("deletion", self._objects.delete, assigned_identity)

    async def _write(
        self,
        sort: str,
        write: Callable[[AzureAssignedIdentity], Awaitable[None]],
        assigned_identity: AzureAssignedIdentity,
    ) -> None:
        start = time.perf_counter()
        try:
            await write(assigned_identity)
        except KubernetesError as error:
            if not isinstance(error, ConflictError | FencedError):  # another writer, or another leader, is no failure
                self._metrics.write_errors.labels(_WRITE_OPERATIONS[sort]).inc()
            raise
        if sort in self._metrics.writes:  # upstream does not count writes of the state
            self._metrics.writes[sort].inc()
            self._metrics.write_seconds[sort].observe(time.perf_counter() - start)


class MeasuredMachines:
    """VMs and scale sets whose calls to ARM are timed. As in upstream, a failed call has no duration."""

    def __init__(self, machines: Machines, metrics: Metrics) -> None:
        self._machines = machines
        self._metrics = metrics

    async def get(self, target: Target) -> ArmState:
        """Return which identities a target carries."""
        return await self._call(target, "get", lambda: self._machines.get(target))

    async def client_id(self, identity: IdentityId) -> str:
        """Return the client ID of an identity. Not counted: the call concerns no VM and no scale set."""
        return await self._machines.client_id(identity)

    async def patch(self, target: Target, change: TargetChange, state: ArmState) -> ArmState:
        """Change the identities of a target."""
        return await self._call(target, "update", lambda: self._machines.patch(target, change, state))

    async def _call(self, target: Target, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        operation = f"{'vmss' if isinstance(target, ScaleSet) else 'vm'}_{verb}"
        start = time.perf_counter()
        try:
            result = await call()
        except AzureError:
            self._metrics.arm_errors.labels(operation).inc()
            raise
        self._metrics.arm_seconds.labels(operation).observe(time.perf_counter() - start)
        return result


class FailingIdentities(Collector):
    """How many identities cannot be assigned to a target that needs them, by reason.

    Counted when the page is read; `source` returns those of the latest term.
    """

    def __init__(self) -> None:
        self.source: Callable[[], Iterable[AssignmentFailure]] = tuple

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the one family of this collector."""
        counts = Tally(failure.code if failure.code in _ARM_CODES else "other" for failure in self.source())
        family = GaugeMetricFamily(
            f"{PREFIX}mic_failing_identities",
            "Identities that cannot be put on a VM or scale set that needs them, by ARM's error code.",
            labels=["reason"],
        )
        for reason in sorted({*_ARM_CODES, "other"}):
            family.add_metric([reason], counts[reason])
        yield family
