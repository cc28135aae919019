"""The cluster as MIC's watches know it, frozen into a Snapshot when a plan is made.

Says also when a new plan may come to something else. What a watch shows of MIC's own writes is known already; it asks
for a plan all the same, in case one rests on it, but not at once: each pod would cost two or three plans.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from podidentity.core import allowing
from podidentity.core.arm import Target, TargetState
from podidentity.core.cluster import Node, Pod, Snapshot
from podidentity.core.failing import Failing
from podidentity.core.identities import (
    POD_LABEL,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.kube.api import Api, Selection
from podidentity.kube.reflector import Reflector
from podidentity.kube.resources import ASSIGNED_IDENTITIES, BINDINGS, IDENTITIES, NAMESPACES, NODES, PODS, Namespace
from podidentity.kube.store import Change, Store
from podidentity.mic.ports import Put

AHEAD_SECONDS = 60.0
"""How long our own write counts before the watch shows it: after that, what the watch says is all there is."""
ECHO_SECONDS = 0.2
"""How long after a watch showed our own write there is a plan, if nothing else asks for one before."""

T = TypeVar("T")


class WatchedCluster:
    """The watches. What MIC has just written counts at once, until its watch shows it.

    With `allow_list`, namespaces are watched too.
    """

    def __init__(self, api: Api, *, allow_list: bool = False) -> None:
        self.pods: Store[Pod] = Store()
        self.nodes: Store[Node] = Store()
        self.identities: Store[AzureIdentity] = Store()
        self.bindings: Store[AzureIdentityBinding] = Store()
        self.assigned: Store[AzureAssignedIdentity] = Store()
        self.namespaces: Store[Namespace] = Store()
        self._clock = api.clock
        self._ahead: dict[ObjectKey, tuple[float, AzureAssignedIdentity | None]] = {}
        self._writing: set[ObjectKey] = set()
        self._wakes: list[_Wake] = []
        self.assigned.subscribe(self._caught_up)
        self.reflectors: tuple[Reflector[Any], ...] = (
            Reflector(api, PODS, self.pods, where=Selection(labels=POD_LABEL)),
            Reflector(api, NODES, self.nodes),
            Reflector(api, IDENTITIES, self.identities),
            Reflector(api, BINDINGS, self.bindings),
            Reflector(api, ASSIGNED_IDENTITIES, self.assigned),
        )
        if allow_list:
            self.reflectors += (Reflector(api, NAMESPACES, self.namespaces),)

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` after each change that a plan may depend on: our own conditions are none."""
        waking = _Wake(wake)
        for store in (self.pods, self.nodes, self.identities, self.bindings, self.namespaces):
            store.subscribe(_only_differences(waking.now))
        self._wakes.append(waking)

    async def wait_until_synced(self) -> None:
        """Return when every first list is complete."""
        for reflector in self.reflectors:
            await reflector.store.wait_until_synced()

    def snapshot(self, targets: Mapping[Target, TargetState], put: Put, failing: tuple[Failing, ...] = ()) -> Snapshot:
        """Freeze what is known now."""
        return Snapshot(
            pods=tuple(self.pods),
            nodes={node.name: node for node in self.nodes},
            identities=self.identities.as_mapping(),
            bindings=tuple(self.bindings),
            assigned=self._assigned_now(),
            targets=dict(targets),
            put=dict(put),
            failing=failing,
            allowed={one.name: text for one in self.namespaces if (text := one.annotations.get(allowing.ANNOTATION))},
        )

    @contextmanager
    def writing(self, key: ObjectKey) -> Iterator[None]:
        """While the body runs, what the watch shows of this object is taken for our own write."""
        self._writing.add(key)
        try:
            yield
        finally:
            self._writing.discard(key)

    def wrote(self, key: ObjectKey, assigned: AzureAssignedIdentity | None) -> None:
        """Take note of a write that the watch has not shown yet; None is a deletion."""
        if assigned is None and key not in self.assigned:
            self._ahead.pop(key, None)
        elif assigned is None or not _is_shown(assigned.resource_version, self.assigned.version(key)):
            self._ahead[key] = (self._clock.now(), assigned)

    def _assigned_now(self) -> tuple[AzureAssignedIdentity, ...]:
        oldest = self._clock.now() - AHEAD_SECONDS
        self._ahead = {key: (at, one) for key, (at, one) in self._ahead.items() if at > oldest}
        ahead = {key: one for key, (_, one) in self._ahead.items()}
        stored: dict[ObjectKey, AzureAssignedIdentity | None] = {**self.assigned.as_mapping(), **ahead}
        return tuple(one for one in stored.values() if one is not None)

    def _caught_up(self, change: Change[AzureAssignedIdentity]) -> None:
        """Forget our own write once the watch shows it, or something later."""
        _, ahead = self._ahead.get(change.key, (0.0, None))
        seen = self.assigned.version(change.key)
        if change.after is None or (ahead and _is_shown(ahead.resource_version, seen)):
            self._ahead.pop(change.key, None)
        ours = change.key in self._writing or (ahead is not None and ahead.resource_version == seen)
        for wake in self._wakes:
            wake.soon() if ours and change.after is not None else wake.now()


class _Wake:
    """Asks for a plan, at once or soon; what is asked for at once spares what was asked for soon."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._later: asyncio.TimerHandle | None = None

    def now(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._wake()

    def soon(self) -> None:
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(ECHO_SECONDS, self.now)


def _only_differences(wake: Callable[[], None]) -> Callable[[Change[Any]], None]:
    def changed(change: Change[Any]) -> None:
        if _told(change.before) != _told(change.after):
            wake()

    return changed


def _told(value: object) -> object:
    """What a plan depends on: not a pod's address, but a binding's annotation, which comparing leaves out."""
    if isinstance(value, Pod):
        return value.key, value.selector, value.node, value.live
    return value, getattr(value, "node_selector", None)


def _is_shown(written: str, seen: str) -> bool:
    """Say whether a watch that shows version `seen` has come to `written`.

    Resource versions of one object compare as numbers (kubernetes.io/docs/reference/using-api/api-concepts, from 1.35
    on by contract); where they are none, whatever the watch shows counts.
    """
    if written.isdecimal() and seen.isdecimal():
        return int(seen) >= int(written)
    return seen != ""
