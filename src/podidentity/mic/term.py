"""One term as leader: reads the record of what MIC assigned, then runs the loop and the workers that it drives."""

import asyncio
import logging

from podidentity.core.assignment import planning
from podidentity.core.model.arm import Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.policy import Policy
from podidentity.errors import ConfigurationError, ForbiddenError, KubernetesError
from podidentity.mic.context import TermContext
from podidentity.mic.ports import AssignedByMic, Cluster, Records
from podidentity.mic.record_batch import BatchedRecord
from podidentity.mic.sync import RETRY_SECONDS, Sync
from podidentity.mic.workers import WorkerDependencies, Workers

_log = logging.getLogger(__name__)


class Term:
    """One term. `workers` is None before it runs and after its end."""

    def __init__(self, context: TermContext) -> None:
        self._context = context
        self.workers: Workers | None = None

    @property
    def failing(self) -> tuple[AssignmentFailure, ...]:
        """The identities that cannot be assigned to a target now."""
        return self.workers.failing if self.workers else ()

    async def run(self) -> None:
        """Plan, write and assign until cancelled. Raises ConfigurationError when the record cannot be used."""
        ports, policy = self._context.ports, self._context.policy
        record = BatchedRecord(ports.records, await first_record(ports.records, ports.cluster, policy))
        reconcile_seconds = self._context.settings.reconcile_seconds
        dependencies = WorkerDependencies(
            ports.machines, record, ports.events, policy, self._note_target, reconcile_seconds
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ports.conditions.run())
                group.create_task(ports.machine_states.run())
                group.create_task(ports.remove_leftovers())
                self.workers = Workers(dependencies, group)
                with ports.identity_changes(self.workers):
                    await Sync(self._context).run(self.workers)
        finally:
            self.workers = None

    def _note_target(self, target: Target) -> None:
        """Tell NMI what is on a target, and plan anew for its pods."""
        state = self.workers.arm_state(target) if self.workers else None
        if state is not None:
            self._context.ports.machine_states.show(target, state)
        self._context.changes.note_target(target)


async def first_record(records: Records, cluster: Cluster, policy: Policy) -> AssignedByMic:
    """Return what MIC assigned; when there is no record yet, take over what upstream assigned and record that.

    Tries again until it knows: an empty guess would overwrite what a former leader assigned. Raises ConfigurationError
    when the role lacks the right or the record cannot be read.
    """
    while True:
        try:
            assigned_by_mic = await records.load()
            if assigned_by_mic is None:
                assigned_by_mic = planning.adopted(cluster.snapshot({}, {}), policy)
                await records.store(assigned_by_mic)
        except ForbiddenError as error:
            raise ConfigurationError(f"MIC must read and write its ConfigMap: {error}; correct its role") from error
        except KubernetesError as error:
            _log.warning("the record of what MIC assigned is not there yet, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return assigned_by_mic
