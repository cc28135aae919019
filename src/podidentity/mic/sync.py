"""MIC's loop: whenever something changed, snapshot, wanted, plan, apply. It never waits for Azure."""

import asyncio
import logging

from podidentity.core import assigning, planning
from podidentity.core.assigning import Policy
from podidentity.core.matching import Skipped  # noqa: TC001  # one style of import for values
from podidentity.core.planning import Plan
from podidentity.errors import ConfigurationError, ForbiddenError, KubernetesError
from podidentity.mic import apply
from podidentity.mic.ports import Cluster, Objects, Put, Records
from podidentity.mic.targets import Workers

RETRY_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Sync:
    """One leader's term."""

    def __init__(self, cluster: Cluster, objects: Objects, policy: Policy, changed: asyncio.Event) -> None:
        self.cycles = 0
        self._cluster = cluster
        self._objects = objects
        self._policy = policy
        self._changed = changed
        self._told: frozenset[Skipped] = frozenset()

    async def run(self, workers: Workers, sync_seconds: float) -> None:
        """Plan and apply at every change, and every `sync_seconds` besides, until cancelled."""
        pause = 0.0
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            report = await self.once(workers)
            pause = RETRY_SECONDS if report.failures else sync_seconds

    async def once(self, workers: Workers) -> apply.Report:
        """Plan once and carry it out."""
        snapshot = self._cluster.snapshot(workers.states, workers.put, workers.failing)
        wanted = assigning.wanted(snapshot, self._policy)
        plan = planning.plan(wanted, snapshot, self._policy)
        self.cycles += 1
        self._tell(plan)
        for target, in_use in plan.in_use.items():
            workers.want(target, in_use)
        report = await apply.run(plan.writes, self._objects)
        if report.written:
            _log.info("%d assigned identities written", report.written)
        return report

    def _tell(self, plan: Plan) -> None:
        """Log each reason once, until it no longer holds."""
        for skipped in plan.skipped:
            if skipped not in self._told:
                _log.warning("%s: %s", skipped.about, skipped.why)
        self._told = frozenset(plan.skipped)


async def first_record(records: Records, cluster: Cluster, policy: Policy) -> Put:
    """Read what MIC put where; when nothing was ever recorded, take over what upstream assigned, and record that.

    Tries until it knows: an empty guess would overwrite what a former leader put. Raises ConfigurationError when the
    role lacks the right or the record cannot be read.
    """
    while True:
        try:
            found = await records.load()
            if found is not None:
                return found
            taken = planning.taken_over(cluster.snapshot({}, {}), policy)
            await records.store(taken)
        except ForbiddenError as error:
            raise ConfigurationError(f"MIC must read and write its ConfigMap: {error}; correct its role") from error
        except KubernetesError as error:
            _log.warning("the record of what MIC assigned is not there yet, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return taken
