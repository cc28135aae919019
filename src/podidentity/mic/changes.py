"""What changed since the last plan: single pods, what is on a target, or something that any pod may depend on.

The watches and the workers note changes here, `sync` takes them. Pods and targets are counted apart from the rest
because a plan for a few pods costs next to nothing, and a full plan some time for every pod of the cluster.
"""

import asyncio
from dataclasses import dataclass

from podidentity.core.model.arm import Target
from podidentity.core.model.identities import ObjectKey

FULL_PLAN_DELAY_SECONDS = 0.2
"""How long a scheduled full plan waits; one that is requested meanwhile takes its place."""
MAX_CHANGED_PODS = 10_000
"""Beyond this a full plan is due instead: a MIC that does not lead takes no changes."""


@dataclass(frozen=True, slots=True)
class ChangedPods:
    """Pods that can be planned for alone: `pods`, and those on the nodes of `targets`."""

    pods: frozenset[ObjectKey] = frozenset()
    targets: frozenset[Target] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.pods or self.targets)


class Changes:
    """Changes that no plan has taken into account yet."""

    def __init__(self) -> None:
        self.is_full_plan_due = True
        self.is_full_plan_urgent = True
        """It is due for something that any pod may depend on, not for what a plan for a few pods has left."""
        self._pods: set[ObjectKey] = set()
        self._targets: set[Target] = set()
        self._happened = asyncio.Event()
        self._scheduled: asyncio.TimerHandle | None = None

    @property
    def changed_pods(self) -> ChangedPods:
        """The pods that can be planned for alone."""
        return ChangedPods(frozenset(self._pods), frozenset(self._targets))

    def note_pod(self, key: ObjectKey) -> None:
        """Note that a pod, or one of its assigned identities, changed."""
        self._pods.add(key)
        if len(self._pods) > MAX_CHANGED_PODS:
            self._pods.clear()
            self.is_full_plan_due = True
        self._happened.set()

    def note_target(self, target: Target) -> None:
        """Note that the identities on a target changed, or which of them cannot be assigned to it."""
        self._targets.add(target)
        self._happened.set()

    def request_full_plan(self) -> None:
        """Note that something changed that any pod may depend on."""
        self.is_full_plan_urgent = True
        self._make_full_plan_due()

    def schedule_full_plan(self) -> None:
        """Have a full plan due after `FULL_PLAN_DELAY_SECONDS`, unless one is due or scheduled. It is not urgent."""
        if self._scheduled is None and not self.is_full_plan_due:
            loop = asyncio.get_running_loop()
            self._scheduled = loop.call_later(FULL_PLAN_DELAY_SECONDS, self._make_full_plan_due)

    def clear_changed_pods(self) -> None:
        """Forget the changed pods: a plan for them begins."""
        self._pods, self._targets = set(), set()

    def clear(self) -> None:
        """Forget all changes: a full plan begins."""
        self.clear_changed_pods()
        self.is_full_plan_due = self.is_full_plan_urgent = False
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None

    def _make_full_plan_due(self) -> None:
        self.is_full_plan_due = True
        self._happened.set()

    def wake(self) -> None:
        """End the wait of whoever waits for changes, though nothing changed."""
        self._happened.set()

    async def wait(self, deadline: float | None = None) -> None:
        """Return when something has changed since the last wait, or at `deadline`, by the loop's clock."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._happened.wait()
        except TimeoutError:
            pass
        self._happened.clear()
