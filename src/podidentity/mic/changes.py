"""What happened since the last plan: single pods changed, what is on a target, or something that concerns everything.

Filled by `cluster` from the watches and by the workers of `targets`; emptied by `sync`. Pods and targets are kept apart
because a plan for a few pods costs nothing, and one for all of them a moment for each pod in the cluster.
"""

import asyncio
from dataclasses import dataclass

from podidentity.core.arm import Target
from podidentity.core.identities import ObjectKey

SOON_SECONDS = 0.2
"""How long a plan for everything may wait when nobody waits for it, unless something else asks for one before."""
PODS_REMEMBERED = 10_000
"""More at once are everything. A MIC that does not lead empties nothing."""


@dataclass(frozen=True, slots=True)
class Near:
    """Pods to plan for alone: those named, and those on the nodes of these targets."""

    pods: frozenset[ObjectKey] = frozenset()
    targets: frozenset[Target] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.pods or self.targets)


class Changes:
    """What nobody has planned for yet."""

    def __init__(self) -> None:
        self.everything = True
        """Whether a plan for everything may come out differently."""
        self._pods: set[ObjectKey] = set()
        self._targets: set[Target] = set()
        self._happened = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None

    def pod(self, key: ObjectKey) -> None:
        """A pod, or an assigned identity of it, is another one."""
        self._pods.add(key)
        if len(self._pods) > PODS_REMEMBERED:
            self._pods.clear()
            self.everything = True
        self._happened.set()

    def target(self, target: Target) -> None:
        """What is on a target changed, or what cannot be put there."""
        self._targets.add(target)
        self._happened.set()

    def all(self) -> None:
        """Something changed that any pod may depend on."""
        self.everything = True
        self._happened.set()

    def soon(self) -> None:
        """Ask for a plan for everything, but not at once: what asks for it at once spares this one."""
        if self._later is None and not self.everything:
            self._later = asyncio.get_running_loop().call_later(SOON_SECONDS, self.all)

    def near(self) -> Near:
        """Say which pods can be planned for alone."""
        return Near(frozenset(self._pods), frozenset(self._targets))

    def near_done(self) -> None:
        """Somebody is planning for those."""
        self._pods, self._targets = set(), set()

    def all_done(self) -> None:
        """Somebody is planning for everything."""
        self.near_done()
        self.everything = False
        if self._later is not None:
            self._later.cancel()
            self._later = None

    async def wait(self, until: float) -> None:
        """Return when something has happened since the last wait, or at `until`, by the loop's clock."""
        try:
            async with asyncio.timeout_at(until):
                await self._happened.wait()
        except TimeoutError:
            pass
        self._happened.clear()
