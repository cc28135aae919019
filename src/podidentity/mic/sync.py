"""MIC's loop: after every change it takes a snapshot, plans and writes. It never waits for Azure.

There are two sizes of plan with the same decisions. Only a full plan removes identities from targets and writes
conditions; it takes some time for each pod of the cluster, therefore a rest follows it. Pods that changed need not wait
for it: a plan for them alone writes their assigned identities and has missing identities assigned to their targets.
A full plan is made in slices from the snapshot that it began with. Plans for changed pods go on meanwhile, and as they
are newer, it leaves their pods alone; what it does not know yet has the next one made.
"""

import asyncio
import itertools
import logging
import operator
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from podidentity.core.assignment import assigning, conditions, idle_identities, planning
from podidentity.core.assignment.assigning import DesiredAssignments, Offers
from podidentity.core.assignment.idle_identities import IdleSince  # noqa: TC001  # one style of import for values
from podidentity.core.assignment.planning import Plan, Write
from podidentity.core.model import arm
from podidentity.core.model.arm import IdentityId, Target
from podidentity.core.model.identities import ObjectKey  # one style of import for values
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Snapshot
from podidentity.mic import apply
from podidentity.mic.context import TermContext
from podidentity.mic.slices import Slices
from podidentity.mic.workers import Workers
from podidentity.serving import memory

RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
"""The pause after failed writes doubles from the one to the other: a namespace being deleted refuses for minutes."""

REST_SECONDS_PER_POD = 0.0002
"""The rest after a full plan, per pod in it; planning takes some 20 us a pod."""
LONGEST_REST_SECONDS = 10.0
BORROWED_RESTS = 2
"""How many rests urgent full plans may have before them: what a binding changes does not wait for what was before."""
FIRST_PART, PART = 40, 400
"""The least and the most writes between two looks at changed pods."""
PART_SECONDS = 0.5
"""How long they should take, on an API server of whatever speed: the time that a pod of another namespace waits."""
PODS_ON_TARGETS = 500
"""How many pods of targets that changed are planned for at once: a pod that changed itself waits for no more."""
WRITING_SECONDS = 30.0
"""How long the writes of a full plan may take turns with those for changed pods."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class _Decision(NamedTuple):
    """A plan, and what it was made from."""

    plan: Plan
    assignments: DesiredAssignments
    client_ids: Mapping[IdentityId, str]


@dataclass(slots=True)
class _Meanwhile:
    """What plans for changed pods did since the snapshot of the full plan, which is older than they are."""

    pods: set[ObjectKey] = field(default_factory=set)
    """Pods that were planned or written for; the full plan leaves them alone."""
    in_use: dict[Target, frozenset[IdentityId]] = field(default_factory=dict)
    skips: frozenset[tuple[ObjectKey, str]] = frozenset()

    def note(self, plan: Plan, skips: frozenset[tuple[ObjectKey, str]], pods: Iterable[ObjectKey]) -> None:
        """Note one plan for changed pods."""
        self.pods.update(pods)
        self.in_use = self.add_to(plan.in_use)
        self.skips |= skips

    def add_to(self, in_use: Mapping[Target, frozenset[IdentityId]]) -> dict[Target, frozenset[IdentityId]]:
        """Return identities in use with those of the plans noted here."""
        added = {target: identities | in_use.get(target, frozenset()) for target, identities in self.in_use.items()}
        return {**in_use, **added}


class Sync:
    """The loop of one term as leader."""

    def __init__(self, context: TermContext) -> None:
        self._ports = context.ports
        self._changes = context.changes
        self._policy = context.policy
        self._settings = context.settings
        self._cycle = context.cycle
        self._reported_skips: frozenset[tuple[ObjectKey, str]] = frozenset()
        self._wrong_client_ids: Mapping[ObjectKey, str] = {}
        self._unreadable: Mapping[ObjectKey, str] = {}
        self._idle_since: IdleSince = {}
        self._full_namespaces: frozenset[str] = frozenset()
        self._offers_source: tuple[object, ...] = ()
        self._offers: Offers | None = None
        self._client_ids_source: tuple[object, ...] = ()
        self._client_ids: Mapping[IdentityId, str] = {}
        self._remaining: list[Write] = []  # of plans for changed pods
        self._pods_on_targets: dict[ObjectKey, None] = {}  # that changed, in order
        self._meanwhile = _Meanwhile()
        self._part = FIRST_PART
        self._slices = Slices()

    async def run(self, workers: Workers) -> None:
        """Plan and write after every change, and once per sync interval, until cancelled."""
        loop, changes = asyncio.get_running_loop(), self._changes
        next_full_plan, rest_end, rest_seconds = loop.time(), loop.time(), 0.0
        retry_seconds, was_partial = RETRY_SECONDS, True
        while True:
            borrowed_seconds = rest_seconds * BORROWED_RESTS if changes.is_full_plan_urgent else 0.0
            start = max(rest_end - borrowed_seconds, loop.time() if changes.is_full_plan_due else next_full_plan)
            # Partial plans do not wait for a full one; when both are possible they alternate, so that neither starves.
            if self._has_changed_pods and not (was_partial and start <= loop.time()):
                was_partial = True
                with self._cycle():
                    await self.plan_changed_pods(workers)
            elif start <= loop.time():
                was_partial = False
                with self._cycle():
                    result, pause_seconds, rest_seconds = await self.plan_everything(workers)
                if result.failures:
                    pause_seconds = min(pause_seconds, retry_seconds)
                retry_seconds = min(retry_seconds * 2, LONGEST_RETRY_SECONDS) if result.failures else RETRY_SECONDS
                next_full_plan, rest_end = loop.time() + pause_seconds, max(rest_end, loop.time()) + rest_seconds
            else:
                await changes.wait(start)

    async def plan_everything(self, workers: Workers) -> tuple[apply.Result, float, float]:
        """Make a full plan and carry it out.

        Return the result of the writes, the seconds until the next full plan if nothing changes, and those of the rest.
        """
        self._changes.clear()
        self._meanwhile = _Meanwhile()
        snapshot = self._ports.cluster.snapshot(workers.arm_states, workers.assigned_by_mic, workers.failing)
        decision = await self._beside_changed_pods(self._plan(snapshot, self._policy, self._slices), workers)
        plan, assignments, client_ids = decision
        self._report_wrong_client_ids(snapshot, client_ids)
        self._report_unreadable(snapshot.unreadable)
        self._reported_skips = self._report_skipped(plan) | self._meanwhile.skips
        self._full_namespaces = assignments.full
        self._remaining = [write for write in self._remaining if write.assigned_identity.pod in self._meanwhile.pods]
        pause_seconds = self._require(plan, workers)
        self._ports.machine_states.replace_all(workers.arm_states, workers.targets)
        result = await self._write(plan.writes, workers)
        # Conditions come after the writes: pods wait for the writes, only people for the conditions.
        steps = conditions.of_plan_in_steps(plan, assignments, snapshot, self._policy, client_ids)
        self._ports.conditions.update(*await self._beside_changed_pods(self._slices.run(steps), workers))
        return result, pause_seconds, min(len(snapshot.pods) * REST_SECONDS_PER_POD, LONGEST_REST_SECONDS)

    async def plan_changed_pods(self, workers: Workers) -> None:
        """Plan for the changed pods alone, carry a part of that out, and schedule a full plan.

        What remains takes turns with the writes for pods that change meanwhile.
        """
        policy = replace(self._policy, assign_on_binding=False)
        changed_pods = self._take_changed_pods()
        partial = self._ports.cluster.partial_snapshot(changed_pods, workers.arm_states)
        snapshot = _without(self._full_namespaces, partial)
        slices = Slices()
        plan = (await self._plan(snapshot, policy, slices)).plan
        skips = self._report_skipped(plan)
        self._reported_skips |= skips
        workers.require_also(plan.in_use)
        pods = frozenset(key for key in changed_pods if key.namespace not in self._full_namespaces)
        writes = await slices.run(planning.with_newer(self._remaining, plan, pods))
        part, self._remaining = writes[: self._part], writes[self._part :]
        self._meanwhile.note(plan, skips, pods | {write.assigned_identity.pod for write in part})
        await self._write_part(part)
        self._changes.schedule_full_plan()

    def _take_changed_pods(self) -> frozenset[ObjectKey]:
        """Return all pods that changed, and some of those on targets that changed: a scale set has thousands."""
        changed_pods = self._changes.changed_pods
        self._changes.clear_changed_pods()
        self._pods_on_targets.update(dict.fromkeys(self._ports.cluster.pods_on(changed_pods.targets, self._policy)))
        portion = list(itertools.islice(self._pods_on_targets, PODS_ON_TARGETS))
        for key in portion:
            del self._pods_on_targets[key]
        return changed_pods.pods | frozenset(portion)

    async def _plan(self, snapshot: Snapshot, policy: Policy, slices: Slices) -> _Decision:
        """Decide, in slices."""
        client_ids = await self._client_ids_of(snapshot, slices)
        assignments = await slices.run(assigning.desired_in_steps(snapshot, self._offers_of(snapshot)))
        plan = await slices.run(planning.plan_in_steps(assignments, snapshot, policy, client_ids))
        return _Decision(plan, assignments, client_ids)

    async def _beside_changed_pods(self, computation: Coroutine[Any, Any, T], workers: Workers) -> T:
        """Run a computation to its end and return its result; meanwhile, plan for pods that change."""
        with memory.without_collections():
            async with asyncio.TaskGroup() as group:
                return await self._wait_for(group.create_task(computation), workers)

    async def _wait_for(self, task: asyncio.Task[T], workers: Workers) -> T:
        task.add_done_callback(lambda _: self._changes.wake())
        while not task.done():
            if self._has_changed_pods:
                with self._slices.give_way():
                    await self.plan_changed_pods(workers)
            else:
                await self._changes.wait()
        return task.result()

    @property
    def _has_changed_pods(self) -> bool:
        return bool(self._changes.changed_pods or self._remaining or self._pods_on_targets)

    async def _write(self, writes: Iterable[Write], workers: Workers) -> apply.Result:
        """Carry out a full plan part by part; between two parts, plan for pods that changed meanwhile.

        When such pods never cease, the next full plan, which knows more, writes what remains of this one.
        """
        loop, total, queue = asyncio.get_running_loop(), apply.Result(), iter(writes)
        deadline = loop.time() + WRITING_SECONDS
        while True:
            current = (write for write in queue if write.assigned_identity.pod not in self._meanwhile.pods)
            part = list(itertools.islice(current, self._part))
            if not part:
                return total
            result = await self._write_part(part)
            total.successes += result.successes
            total.failures += result.failures
            if self._has_changed_pods and loop.time() >= deadline:
                self._changes.schedule_full_plan()
                return total
            if self._has_changed_pods:
                await self.plan_changed_pods(workers)

    async def _write_part(self, part: Sequence[Write]) -> apply.Result:
        """Carry out some writes; the next part is as many as take about `PART_SECONDS`."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        result = await apply.run(part, self._ports.objects, self._settings.batch)
        self._report(result)
        fitting = len(part) * PART_SECONDS / max(loop.time() - start, 0.001)
        self._part = int(max(FIRST_PART, min(PART, 2 * self._part, fitting)))
        return result

    async def _client_ids_of(self, snapshot: Snapshot, slices: Slices) -> Mapping[IdentityId, str]:
        """Return the client IDs that ARM reports: the same object for as long as ARM says the same."""
        sources = tuple(state.client_ids for state in snapshot.targets.values())
        if len(sources) != len(self._client_ids_source) or not all(map(operator.is_, sources, self._client_ids_source)):
            client_ids = await slices.run(arm.client_ids_in_steps(snapshot.targets.values()))
            self._client_ids, self._client_ids_source = client_ids, sources
            return client_ids
        return self._client_ids

    def _offers_of(self, snapshot: Snapshot) -> Offers:
        """Return the offers of a snapshot: the same object for as long as what they are made from is the same."""
        source = (snapshot.bindings, snapshot.identities, snapshot.allow_list)
        if self._offers is None or not all(map(operator.is_, source, self._offers_source)):
            self._offers, self._offers_source = Offers(snapshot, self._policy), source
        return self._offers

    def _require(self, plan: Plan, workers: Workers) -> float:
        """Hand the workers the identities in use, and return in how many seconds at most the next full plan is due."""
        now, delay = asyncio.get_running_loop().time(), self._settings.unassign_delay_seconds
        in_use = self._meanwhile.add_to(plan.in_use)
        retained = idle_identities.retained(in_use, workers.assigned_by_mic, self._idle_since, now, delay)
        self._idle_since = retained.idle_since
        workers.require(retained.in_use)
        return min(retained.due_seconds or self._settings.sync_seconds, self._settings.sync_seconds)

    def _report(self, result: apply.Result) -> None:
        if result.successes:
            _log.info("%d assigned identities written", len(result.successes))
        self._ports.events.report_writes(result.successes)
        for failure in result.failures:
            if not failure.outdated:
                self._ports.events.report_failed_write(failure.write, failure.message)

    def _report_wrong_client_ids(self, snapshot: Snapshot, client_ids: Mapping[IdentityId, str]) -> None:
        """Report each wrong client ID once, until it is corrected."""
        messages = {
            key: message
            for key, identity in snapshot.identities.items()
            if (message := conditions.wrong_client_id(identity, client_ids))
        }
        for key, message in messages.items():
            if self._wrong_client_ids.get(key) != message:
                _log.warning(
                    "AzureIdentity %s: clientID is not the one that Azure knows; its condition names both", key
                )
                self._ports.events.report_wrong_client_id(snapshot.identities[key], message)
        self._wrong_client_ids = messages

    def _report_unreadable(self, unreadable: Mapping[ObjectKey, str]) -> None:
        """Report each unreadable object once, until it can be read."""
        for key, message in unreadable.items():
            if self._unreadable.get(key) != message:
                _log.warning("%s; MIC leaves it alone, and gives its pod another", message)
                self._ports.events.report_unreadable(key, message)
        self._unreadable = unreadable

    def _report_skipped(self, plan: Plan) -> frozenset[tuple[ObjectKey, str]]:
        """Report each reason why a binding is skipped once, until it no longer holds. Return all that hold now."""
        for skip in plan.ineffective:
            if (skip.binding, skip.message) not in self._reported_skips:
                _log.warning("%s: %s", skip.subject, skip.message)
                self._ports.events.report_skipped(skip)
        return frozenset((skip.binding, skip.message) for skip in plan.ineffective)


def _without(namespaces: frozenset[str], snapshot: Snapshot) -> Snapshot:
    """Leave out namespaces that have as many assigned identities as they may: only a full plan chooses among them."""
    if not namespaces:
        return snapshot
    return replace(
        snapshot,
        pods=tuple(pod for pod in snapshot.pods if pod.key.namespace not in namespaces),
        assigned_identities=tuple(
            identity for identity in snapshot.assigned_identities if identity.pod.namespace not in namespaces
        ),
    )
