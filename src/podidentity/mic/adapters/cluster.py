"""The cluster as MIC's watches show it, frozen into a Snapshot for each plan.

Also notes what changed. A watch shows MIC's own writes too: they are known already, so they only schedule a full plan,
in case one depends on them; otherwise each pod would cost two or three plans.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from podidentity.core.model.allow_list import ANNOTATION
from podidentity.core.model.arm import ArmState, Target
from podidentity.core.model.assignment_failure import AssignmentFailure
from podidentity.core.model.identities import (
    POD_LABEL,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Node, Pod, Snapshot
from podidentity.errors import ConfigurationError, ForbiddenError
from podidentity.kube.api import ALL_OBJECTS, Api, Selection
from podidentity.kube.reflector import Reflector
from podidentity.kube.resources import (
    ASSIGNED_IDENTITIES,
    BINDINGS,
    IDENTITIES,
    NAMESPACES,
    NODES,
    SELECTED_PODS,
    Namespace,
)
from podidentity.kube.store import Change, Store, pod_of, selector_of
from podidentity.mic.changes import Changes
from podidentity.mic.ports import AssignedByMic

AHEAD_SECONDS = 60.0
"""How long a write counts before its watch shows it; after that only what the watch shows counts."""

PODS_AT_ONCE = 1000
"""Of more pods that one change concerns the full plan alone takes care: planning takes some 15 us a pod."""


class WatchedCluster:
    """The watches, and the writes that they do not show yet. With `allow_list`, namespaces are watched too.

    Without `is_written` assigned identities are in memory alone, and there is nothing to watch.
    """

    def __init__(self, api: Api, *, allow_list: bool = False, is_written: bool = True) -> None:
        self.pods: Store[Pod] = Store()
        self.nodes: Store[Node] = Store()
        self.identities: Store[AzureIdentity] = Store()
        self.bindings: Store[AzureIdentityBinding] = Store()
        self.assigned_identities: Store[AzureAssignedIdentity] = Store()
        self.namespaces: Store[Namespace] = Store()
        self._clock = api.clock
        self._ahead_of_watch: dict[ObjectKey, tuple[float, AzureAssignedIdentity | None]] = {}
        self._writing: set[ObjectKey] = set()
        self._changes: list[Changes] = []
        self._rules = (-1, Snapshot())
        self._pods_on = self.pods.index(_node_of)
        self._pods_with = self.pods.index(_selector_of)
        self._bindings_of = self.bindings.index(_identity_of)
        self._assigned_to = self.assigned_identities.index(pod_of)
        self.assigned_identities.subscribe(self._handle_assigned)
        self._assigned_reflector = Reflector(api, ASSIGNED_IDENTITIES, self.assigned_identities)
        self.reflectors: tuple[Reflector[Any], ...] = (
            Reflector(api, SELECTED_PODS, self.pods, selection=Selection(labels=POD_LABEL)),
            Reflector(api, NODES, self.nodes),
            Reflector(api, IDENTITIES, self.identities),
            Reflector(api, BINDINGS, self.bindings),
        )
        if is_written:
            self.reflectors += (self._assigned_reflector,)
        if allow_list:
            self.reflectors += (Reflector(api, NAMESPACES, self.namespaces),)

    def report_to(self, changes: Changes) -> None:
        """Note in `changes` each change that a plan may depend on; MIC's own conditions are none."""
        self.pods.subscribe(_if_plans_differ(lambda change: changes.note_pod(change.key)))
        concerned: tuple[tuple[Store[Any], Callable[[Change[Any]], Iterable[Pod]]], ...] = (
            (self.nodes, lambda change: self._pods_on.find(change.key.name)),
            (self.bindings, lambda change: self._pods_bound_by(filter(None, (change.previous, change.current)))),
            (self.identities, lambda change: self._pods_bound_by(self._bindings_of.find(change.key))),
            (self.namespaces, lambda _: ()),
        )
        for store, pods_of in concerned:
            store.subscribe(_if_plans_differ(partial(_note_pods, changes, pods_of)))
        self._changes.append(changes)

    def _pods_bound_by(self, bindings: Iterable[AzureIdentityBinding]) -> list[Pod]:
        selectors = {selector for binding in bindings for selector in selector_of(binding)}
        return [pod for selector in selectors for pod in self._pods_with.find(selector)]

    async def wait_until_synced(self) -> None:
        """Return when every first list is complete."""
        for reflector in self.reflectors:
            await reflector.store.wait_until_synced()

    def snapshot(
        self,
        targets: Mapping[Target, ArmState],
        assigned_by_mic: AssignedByMic,
        failing: tuple[AssignmentFailure, ...] = (),
    ) -> Snapshot:
        """Return the whole cluster as it is now."""
        return replace(
            self._rules_now(),
            pods=self.pods.values(),
            assigned_identities=self._assigned_now(),
            targets=dict(targets),
            assigned_by_mic=dict(assigned_by_mic),
            failing=failing,
            unreadable=dict(self._assigned_reflector.odd),
        )

    def pods_on(self, targets: AbstractSet[Target], policy: Policy) -> Iterable[ObjectKey]:
        """Return the pods on the nodes of some targets."""
        nodes = self._rules_now().nodes.values() if targets else ()
        names = [node.name for node in nodes if policy.target_of(node) in targets]
        return [pod.key for name in names for pod in self._pods_on.find(name)]

    def partial_snapshot(self, pods: AbstractSet[ObjectKey], targets: Mapping[Target, ArmState]) -> Snapshot:
        """Return these pods with their nodes and assigned identities. Its cost depends on their number alone."""
        rules = self._rules_now()
        values = tuple(pod for key in pods if (pod := self.pods.get(key)) is not None)
        return replace(
            rules,
            pods=values,
            nodes={pod.node: rules.nodes[pod.node] for pod in values if pod.node in rules.nodes},
            assigned_identities=self._assigned_to_pods(pods),
            targets=dict(targets),
            unreadable=dict(self._assigned_reflector.odd),
        )

    def _rules_now(self) -> Snapshot:
        """Return the parts that change seldom: the same object for as long as none of them changed."""
        revision = sum(store.revision for store in (self.nodes, self.identities, self.bindings, self.namespaces))
        if self._rules[0] != revision:
            annotations = {namespace.name: namespace.annotations.get(ANNOTATION) for namespace in self.namespaces}
            snapshot = Snapshot(
                nodes={node.name: node for node in self.nodes},
                identities=self.identities.as_mapping(),
                bindings=tuple(self.bindings),
                allow_list={name: text for name, text in annotations.items() if text},
            )
            self._rules = (revision, snapshot)
        return self._rules[1]

    @contextmanager
    def writing(self, key: ObjectKey) -> Iterator[None]:
        """Take what the watch shows of this object for MIC's own write while the body runs."""
        self._writing.add(key)
        try:
            yield
        finally:
            self._writing.discard(key)

    def note_write(self, key: ObjectKey, assigned_identity: AzureAssignedIdentity | None) -> None:
        """Count a write from now on, though the watch has not shown it yet; None is a deletion."""
        if assigned_identity is None and key not in self.assigned_identities:
            self._ahead_of_watch.pop(key, None)
        elif assigned_identity is None or not _is_shown(
            assigned_identity.resource_version, self.assigned_identities.version(key)
        ):
            self._ahead_of_watch[key] = (self._clock.steady(), assigned_identity)

    def _assigned_now(self) -> tuple[AzureAssignedIdentity, ...]:
        """Return what the watch shows, updated with those of MIC's own writes that are ahead of it."""
        self._forget_old_writes()
        writes = (write for _, write in self._ahead_of_watch.values() if write is not None)
        return self.assigned_identities.values(without=self._ahead_of_watch) + tuple(writes)

    def _assigned_to_pods(self, pods: AbstractSet[ObjectKey]) -> tuple[AzureAssignedIdentity, ...]:
        """Return the same of these pods alone."""
        self._forget_old_writes()
        watched = (identity for key in pods for identity in self._assigned_to.find(key))
        writes = (write for _, write in self._ahead_of_watch.values() if write is not None and write.pod in pods)
        return (*(identity for identity in watched if identity.key not in self._ahead_of_watch), *writes)

    def _forget_old_writes(self) -> None:
        oldest = self._clock.steady() - AHEAD_SECONDS
        self._ahead_of_watch = {
            key: (time, write) for key, (time, write) in self._ahead_of_watch.items() if time > oldest
        }

    def _handle_assigned(self, change: Change[AzureAssignedIdentity]) -> None:
        """Forget our write once the watch shows it or a later one; note which pods the change concerns."""
        _, write = self._ahead_of_watch.get(change.key, (0.0, None))
        version = self.assigned_identities.version(change.key)
        if change.current is None or (write and _is_shown(write.resource_version, version)):
            self._ahead_of_watch.pop(change.key, None)
        is_own_write = change.key in self._writing or (write is not None and write.resource_version == version)
        if is_own_write and change.current is not None:
            for changes in self._changes:
                changes.schedule_full_plan()
            return
        for assigned_identity in filter(None, (change.previous, change.current)):
            for changes in self._changes:
                changes.note_pod(assigned_identity.pod)


async def require_namespaces(api: Api) -> None:
    """Raise ConfigurationError when the role may not list and watch namespaces.

    An allow-list that cannot be read would allow nothing, or stay as it was.
    """
    try:
        namespaces = await api.list(NAMESPACES)
        async with api.watch(NAMESPACES, ALL_OBJECTS, namespaces.version, silence_seconds=5.0, duration_seconds=1):
            pass
    except ForbiddenError as error:
        raise ConfigurationError(
            f"--namespace-allow-list needs the right to list and watch namespaces ({error}); "
            "add it to the ClusterRole, or leave the flag out"
        ) from error


def _note_pods(changes: Changes, pods_of: Callable[[Change[Any]], Iterable[Pod]], change: Change[Any]) -> None:
    """Request a full plan, and one for the pods that a change concerns: they need not wait for the rest of the last."""
    keys = [pod.key for pod in pods_of(change)]
    for key in keys if len(keys) <= PODS_AT_ONCE else ():
        changes.note_pod(key)
    changes.request_full_plan()


def _selector_of(pod: Pod) -> tuple[str, ...]:
    return (pod.selector,) if pod.selector else ()


def _identity_of(binding: AzureIdentityBinding) -> tuple[ObjectKey]:
    return (ObjectKey(binding.key.namespace, binding.azure_identity),)


def _node_of(pod: Pod) -> tuple[str]:
    return (pod.node,)


def _if_plans_differ(handle: Callable[[Change[Any]], None]) -> Callable[[Change[Any]], None]:
    """Return a subscriber that passes on only changes after which a plan may come out differently."""

    def handle_difference(change: Change[Any]) -> None:
        if _plan_input(change.previous) != _plan_input(change.current):
            handle(change)

    return handle_difference


def _plan_input(value: object) -> object:
    """Return what a plan reads of an object: not a pod's address, but a binding's selector, which == leaves out."""
    if isinstance(value, Pod):
        return value.key, value.selector, value.node, value.live
    return value, getattr(value, "node_selector", None)


def _is_shown(version: str, watched_version: str) -> bool:
    """Whether a watch that shows `watched_version` of an object has reached `version`.

    Resource versions of one object compare as numbers (kubernetes.io/docs/reference/using-api/api-concepts, from 1.35
    on by contract); where they are no numbers, whatever the watch shows counts.
    """
    if version.isdecimal() and watched_version.isdecimal():
        return int(watched_version) >= int(version)
    return watched_version != ""
