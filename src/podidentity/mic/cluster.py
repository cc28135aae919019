"""The cluster as MIC's watches know it, frozen into a Snapshot when a plan is made.

Says also what changed, so that a plan may come to something else. What a watch shows of MIC's own writes is known
already; it asks for a plan all the same, in case one rests on it, but not at once: each pod would cost two or three.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from podidentity.core import allowing, warming
from podidentity.core.arm import Target, TargetState
from podidentity.core.assigning import Policy
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
from podidentity.kube.store import Change, Store, pod_of
from podidentity.mic.changes import Changes, Near
from podidentity.mic.ports import Put

AHEAD_SECONDS = 60.0
"""How long our own write counts before the watch shows it: after that, what the watch says is all there is."""


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
        self._changes: list[Changes] = []
        self._frame = (-1, Snapshot())
        self._pods_on = self.pods.index(_node_of)
        self._assigned_to = self.assigned.index(pod_of)
        self.assigned.subscribe(self._caught_up)
        self._assigning = Reflector(api, ASSIGNED_IDENTITIES, self.assigned)
        self.reflectors: tuple[Reflector[Any], ...] = (
            Reflector(api, PODS, self.pods, where=Selection(labels=POD_LABEL)),
            Reflector(api, NODES, self.nodes),
            Reflector(api, IDENTITIES, self.identities),
            Reflector(api, BINDINGS, self.bindings),
            self._assigning,
        )
        if allow_list:
            self.reflectors += (Reflector(api, NAMESPACES, self.namespaces),)

    def tell(self, changes: Changes) -> None:
        """Tell `changes` of each change that a plan may depend on: our own conditions are none."""
        self.pods.subscribe(_only_differences(lambda change: changes.pod(change.key)))
        for store in (self.nodes, self.identities, self.bindings, self.namespaces):
            store.subscribe(_only_differences(lambda _: changes.all()))
        self._changes.append(changes)

    async def wait_until_synced(self) -> None:
        """Return when every first list is complete."""
        for reflector in self.reflectors:
            await reflector.store.wait_until_synced()

    def snapshot(self, targets: Mapping[Target, TargetState], put: Put, failing: tuple[Failing, ...] = ()) -> Snapshot:
        """Freeze what is known now."""
        return replace(
            self._framed(),
            pods=tuple(self.pods),
            assigned=self._assigned_now(self.assigned, lambda _: True),
            targets=dict(targets),
            put=dict(put),
            failing=failing,
            unreadable=dict(self._assigning.odd),
        )

    def close_up(self, near: Near, targets: Mapping[Target, TargetState], policy: Policy) -> Snapshot:
        """Freeze what is known of a few pods: they, their nodes, their assigned identities. Costs what they cost."""
        frame = self._framed()
        nodes = [one for one in frame.nodes.values() if warming.target_of(one, policy) in near.targets]
        keys = near.pods | {pod.key for node in nodes for pod in self._pods_on.of(node.name)}
        pods = tuple(pod for key in keys if (pod := self.pods.get(key)) is not None)
        stored = (one for key in keys for one in self._assigned_to.of(key))
        return replace(
            frame,
            pods=pods,
            nodes={pod.node: frame.nodes[pod.node] for pod in pods if pod.node in frame.nodes},
            assigned=self._assigned_now(stored, lambda one: one.pod in keys),
            targets=dict(targets),
            unreadable=dict(self._assigning.odd),
        )

    def _framed(self) -> Snapshot:
        """What changes seldom: the same values for as long as it did not."""
        revision = sum(one.revision for one in (self.nodes, self.identities, self.bindings, self.namespaces))
        if self._frame[0] != revision:
            notes = {one.name: one.annotations.get(allowing.ANNOTATION) for one in self.namespaces}
            made = Snapshot(
                nodes={node.name: node for node in self.nodes},
                identities=self.identities.as_mapping(),
                bindings=tuple(self.bindings),
                allowed={name: text for name, text in notes.items() if text},
            )
            self._frame = (revision, made)
        return self._frame[1]

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

    def _assigned_now(
        self, shown: Iterable[AzureAssignedIdentity], wanted: Callable[[AzureAssignedIdentity], bool]
    ) -> tuple[AzureAssignedIdentity, ...]:
        """What the watch shows, and those of our own writes ahead of it that are `wanted`."""
        oldest = self._clock.now() - AHEAD_SECONDS
        self._ahead = {key: (at, one) for key, (at, one) in self._ahead.items() if at > oldest}
        behind = tuple(one for one in shown if one.key not in self._ahead)
        return behind + tuple(one for _, one in self._ahead.values() if one is not None and wanted(one))

    def _caught_up(self, change: Change[AzureAssignedIdentity]) -> None:
        """Forget our own write once the watch shows it, or something later."""
        _, ahead = self._ahead.get(change.key, (0.0, None))
        seen = self.assigned.version(change.key)
        if change.after is None or (ahead and _is_shown(ahead.resource_version, seen)):
            self._ahead.pop(change.key, None)
        ours = change.key in self._writing or (ahead is not None and ahead.resource_version == seen)
        if ours and change.after is not None:
            for changes in self._changes:
                changes.soon()
            return
        for one in filter(None, (change.before, change.after)):
            for changes in self._changes:
                changes.pod(one.pod)


def _node_of(pod: Pod) -> tuple[str]:
    return (pod.node,)


def _only_differences(tell: Callable[[Change[Any]], None]) -> Callable[[Change[Any]], None]:
    def changed(change: Change[Any]) -> None:
        if _told(change.before) != _told(change.after):
            tell(change)

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
