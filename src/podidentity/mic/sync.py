"""MIC's loop: whenever something changed, snapshot, wanted, plan, apply. It never waits for Azure.

There are two sizes of plan. One for everything is what counts: only it takes identities away from targets and writes
conditions. It costs a moment for each pod of the cluster, so there is a rest after it. Pods that changed need not wait
for that: a plan for them alone writes their objects and puts on the targets what they lack. The decisions are the same.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from podidentity.core import arm, assigning, conditions, planning, warming
from podidentity.core.assigning import Offers, Policy
from podidentity.core.cluster import Snapshot
from podidentity.core.identities import ObjectKey  # one style of import for values
from podidentity.core.planning import Plan
from podidentity.core.warming import IdleSince  # noqa: TC001  # one style of import for values
from podidentity.errors import ConfigurationError, ForbiddenError, KubernetesError
from podidentity.mic import apply
from podidentity.mic.changes import Changes
from podidentity.mic.ports import Board, Cluster, Narrator, Objects, Put, Records
from podidentity.mic.targets import Workers

RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
"""Pauses after writes that failed double from the one to the other: a namespace under deletion refuses for minutes."""

REST_SECONDS_PER_POD = 0.0002
"""After a plan for everything, by the pods that it was for: it takes some 15 us a pod."""
LONGEST_REST_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pacing:
    """How often, how much at a time, how long to wait."""

    sync_seconds: float = 3600.0
    batch: int = apply.BATCH
    unassign_delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a term works with. `changes` says why a new plan may come to something else."""

    cluster: Cluster
    objects: Objects
    story: Narrator
    board: Board
    changes: Changes
    cycle: Callable[[], AbstractContextManager[None]] = nullcontext


class Sync:
    """One leader's term."""

    def __init__(self, around: Surroundings, policy: Policy, pacing: Pacing = Pacing()) -> None:
        self._around = around
        self._policy = policy
        self._pacing = pacing
        self._told: frozenset[tuple[ObjectKey, str]] = frozenset()
        self._mistakes: Mapping[ObjectKey, str] = {}
        self._unreadable: Mapping[ObjectKey, str] = {}
        self._idle_since: IdleSince = {}
        self._rules: tuple[object, ...] = ()
        self._offers: Offers | None = None

    async def run(self, workers: Workers) -> None:
        """Plan and apply at every change, and every sync interval besides, until cancelled."""
        loop, changes = asyncio.get_running_loop(), self._around.changes
        due, rested, retry, was_near = loop.time(), loop.time(), RETRY_SECONDS, True
        while True:
            at = max(rested, loop.time() if changes.everything else due)
            # The few do not wait for all, and all does not wait for ever when there are always a few.
            if changes.near() and not (was_near and at <= loop.time()):
                was_near = True
                with self._around.cycle():
                    await self.near(workers)
            elif at <= loop.time():
                was_near = False
                with self._around.cycle():
                    report, due_seconds, rest_seconds = await self.all(workers)
                if report.failures:
                    due_seconds = min(due_seconds, retry)
                retry = min(retry * 2, LONGEST_RETRY_SECONDS) if report.failures else RETRY_SECONDS
                due, rested = loop.time() + due_seconds, loop.time() + rest_seconds
            else:
                await changes.wait(at)

    async def all(self, workers: Workers) -> tuple[apply.Report, float, float]:
        """Plan for everything and carry it out.

        The report; in how many seconds to plan again though nothing changed; and for how many to rest.
        """
        self._around.changes.all_done()
        snapshot = self._around.cluster.snapshot(workers.states, workers.put, workers.failing)
        wanted = assigning.wanted(snapshot, self._policy, self._offers_of(snapshot))
        plan = planning.plan(wanted, snapshot, self._policy)
        self._tell_mistakes(snapshot)
        self._tell_unreadable(snapshot.unreadable)
        self._told = self._tell_skipped(plan)
        due_seconds = self._want(plan, workers)
        report = await apply.run(plan.writes, self._around.objects, self._pacing.batch)
        self._report(report)
        # Last, and after the writes: pods wait for those, and only people for these.
        self._around.board.want(*conditions.of_plan(plan, wanted, snapshot, self._policy))
        return report, due_seconds, min(len(snapshot.pods) * REST_SECONDS_PER_POD, LONGEST_REST_SECONDS)

    async def near(self, workers: Workers) -> None:
        """Plan for the pods that changed and carry that out; a plan for everything follows, in its time."""
        changes, policy = self._around.changes, replace(self._policy, assign_on_binding=False)
        near = changes.near()
        changes.near_done()
        snapshot = self._around.cluster.close_up(near, workers.states, policy)
        plan = planning.plan(assigning.wanted(snapshot, policy, self._offers_of(snapshot)), snapshot, policy)
        self._told |= self._tell_skipped(plan)
        workers.want_more(plan.in_use)
        self._report(await apply.run(plan.writes, self._around.objects, self._pacing.batch))
        changes.soon()

    def _offers_of(self, snapshot: Snapshot) -> Offers:
        """Keep them for as long as what they are made from."""
        rules = (snapshot.bindings, snapshot.identities, snapshot.allowed)
        if self._offers is None or any(one is not other for one, other in zip(rules, self._rules, strict=True)):
            self._offers, self._rules = Offers(snapshot, self._policy), rules
        return self._offers

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

    def _tell_mistakes(self, snapshot: Snapshot) -> None:
        """Tell of each once, until it is corrected."""
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

    def _tell_unreadable(self, unreadable: Mapping[ObjectKey, str]) -> None:
        """Tell of each once, until it can be read."""
        for key, why in unreadable.items():
            if self._unreadable.get(key) != why:
                _log.warning("%s; MIC leaves it alone, and gives its pod another", why)
                self._around.story.unreadable(key, why)
        self._unreadable = unreadable

    def _tell_skipped(self, plan: Plan) -> frozenset[tuple[ObjectKey, str]]:
        """Tell each reason once, until it no longer holds; what was told."""
        for skipped in plan.skipped:
            if (skipped.binding, skipped.why) not in self._told:
                _log.warning("%s: %s", skipped.about, skipped.why)
                self._around.story.skipped(skipped)
        return frozenset((skipped.binding, skipped.why) for skipped in plan.skipped)


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
