"""MIC's loop: whenever something changed, snapshot, wanted, plan, apply. It never waits for Azure."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from podidentity.core import arm, assigning, conditions, planning, warming
from podidentity.core.assigning import Policy
from podidentity.core.cluster import Snapshot
from podidentity.core.identities import ObjectKey  # noqa: TC001  # one style of import for values
from podidentity.core.planning import Plan
from podidentity.core.warming import IdleSince  # noqa: TC001  # one style of import for values
from podidentity.errors import ConfigurationError, ForbiddenError, KubernetesError
from podidentity.mic import apply
from podidentity.mic.ports import Board, Cluster, Narrator, Objects, Put, Records
from podidentity.mic.targets import Workers

RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
"""Pauses after writes that failed double from the one to the other: a namespace under deletion refuses for minutes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pacing:
    """How often, how much at a time, how long to wait."""

    sync_seconds: float = 3600.0
    batch: int = apply.BATCH
    unassign_delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a term works with. `changed` is set when a new plan may come to something else."""

    cluster: Cluster
    objects: Objects
    story: Narrator
    board: Board
    changed: asyncio.Event
    cycle: Callable[[], AbstractContextManager[None]] = nullcontext


class Sync:
    """One leader's term."""

    def __init__(self, around: Surroundings, policy: Policy, pacing: Pacing = Pacing()) -> None:
        self._around = around
        self._policy = policy
        self._pacing = pacing
        self._told: frozenset[tuple[ObjectKey, str]] = frozenset()
        self._mistakes: Mapping[ObjectKey, str] = {}
        self._idle_since: IdleSince = {}

    async def run(self, workers: Workers) -> None:
        """Plan and apply at every change, and every sync interval besides, until cancelled."""
        pause, retry = 0.0, RETRY_SECONDS
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._around.changed.wait()
            except TimeoutError:
                pass
            self._around.changed.clear()
            with self._around.cycle():
                report, due_seconds = await self.once(workers)
            pause = due_seconds
            if report.failures:
                pause = min(pause, retry)
            retry = min(retry * 2, LONGEST_RETRY_SECONDS) if report.failures else RETRY_SECONDS

    async def once(self, workers: Workers) -> tuple[apply.Report, float]:
        """Plan once and carry it out; the report, and in how many seconds to plan again though nothing changed."""
        snapshot = self._around.cluster.snapshot(workers.states, workers.put, workers.failing)
        wanted = assigning.wanted(snapshot, self._policy)
        plan = planning.plan(wanted, snapshot, self._policy)
        self._tell(plan, snapshot)
        due_seconds = self._want(plan, workers)
        report = await apply.run(plan.writes, self._around.objects, self._pacing.batch)
        self._report(report)
        # Last, and after the writes: pods wait for those, and only people for these.
        self._around.board.want(*conditions.of_plan(plan, wanted, snapshot, self._policy))
        return report, due_seconds

    def _want(self, plan: Plan, workers: Workers) -> float:
        """Tell the workers what must be on their targets."""
        now, delay = asyncio.get_running_loop().time(), self._pacing.unassign_delay_seconds
        kept = warming.lingering(plan.in_use, workers.put, self._idle_since, now, delay)
        self._idle_since = kept.idle_since
        workers.want_all(kept.in_use)
        return min(kept.due_seconds or self._pacing.sync_seconds, self._pacing.sync_seconds)

    def _report(self, report: apply.Report) -> None:
        if report.written:
            _log.info("%d assigned identities written", len(report.written))
        self._around.story.wrote(report.written)
        for failure in report.failures:
            if not failure.overtaken:
                self._around.story.refused(failure.write, failure.why)

    def _tell(self, plan: Plan, snapshot: Snapshot) -> None:
        """Tell each reason once, until it no longer holds."""
        client_ids = arm.client_ids(snapshot.targets.values())
        mistakes = {
            key: why
            for key, identity in snapshot.identities.items()
            if (why := conditions.wrong_client_id(identity, client_ids))
        }
        for key, why in mistakes.items():
            if self._mistakes.get(key) != why:
                _log.warning(
                    "AzureIdentity %s: clientID is not the one that Azure knows; its condition names both", key
                )
                self._around.story.mistaken(snapshot.identities[key], why)
        self._mistakes = mistakes
        for skipped in plan.skipped:
            if (skipped.binding, skipped.why) not in self._told:
                _log.warning("%s: %s", skipped.about, skipped.why)
                self._around.story.skipped(skipped)
        self._told = frozenset((skipped.binding, skipped.why) for skipped in plan.skipped)


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
