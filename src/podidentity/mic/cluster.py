"""MIC's ports on the Kubernetes side: the watches' stores as a snapshot, writes, the record, events."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from podidentity.core import arm, crd
from podidentity.core.arm import IdentityId, Target, TargetState
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
from podidentity.errors import ConfigurationError, NotFoundError
from podidentity.kube.api import Api, Selection
from podidentity.kube.events import Recorder, Subject
from podidentity.kube.reflector import Reflector
from podidentity.kube.resources import ASSIGNED_IDENTITIES, BINDINGS, CONFIG_MAPS, IDENTITIES, NODES, PODS
from podidentity.kube.store import Change, Store
from podidentity.mic.ports import Put

RECORD = "assigned-by-mic"
"""The key of the ConfigMap under which the record stands."""


class WatchedCluster:
    """Five watches. What MIC has just written counts at once, until its watch shows it."""

    def __init__(self, api: Api) -> None:
        self.pods: Store[Pod] = Store()
        self.nodes: Store[Node] = Store()
        self.identities: Store[AzureIdentity] = Store()
        self.bindings: Store[AzureIdentityBinding] = Store()
        self.assigned: Store[AzureAssignedIdentity] = Store()
        self._ahead: dict[ObjectKey, AzureAssignedIdentity | None] = {}
        self.assigned.subscribe(self._caught_up)
        self.reflectors: tuple[Reflector[Any], ...] = (
            Reflector(api, PODS, self.pods, where=Selection(labels=POD_LABEL)),
            Reflector(api, NODES, self.nodes),
            Reflector(api, IDENTITIES, self.identities),
            Reflector(api, BINDINGS, self.bindings),
            Reflector(api, ASSIGNED_IDENTITIES, self.assigned),
        )

    @property
    def stores(self) -> tuple[Store[Any], ...]:
        """All stores, for subscriptions and for waiting."""
        return (self.pods, self.nodes, self.identities, self.bindings, self.assigned)

    def snapshot(self, targets: Mapping[Target, TargetState], put: Put, failing: tuple[Failing, ...] = ()) -> Snapshot:
        """Freeze what is known now."""
        assigned: dict[ObjectKey, AzureAssignedIdentity | None] = {**self.assigned.as_mapping(), **self._ahead}
        return Snapshot(
            pods=tuple(self.pods),
            nodes={node.name: node for node in self.nodes},
            identities=self.identities.as_mapping(),
            bindings=tuple(self.bindings),
            assigned=tuple(one for one in assigned.values() if one is not None),
            targets=dict(targets),
            put=dict(put),
            failing=failing,
        )

    def wrote(self, key: ObjectKey, assigned: AzureAssignedIdentity | None) -> None:
        """Take note of a write that the watch has not shown yet; None is a deletion."""
        self._ahead[key] = assigned

    def _caught_up(self, change: Change[AzureAssignedIdentity]) -> None:
        shown = change.after or change.before
        if shown is not None:
            self._ahead.pop(shown.key, None)


class AssignedObjects:
    """Writes assigned identities."""

    def __init__(self, api: Api, cluster: WatchedCluster) -> None:
        self._api = api
        self._cluster = cluster

    async def create(self, assigned: AzureAssignedIdentity) -> None:
        """Create one."""
        made = await self._api.create(ASSIGNED_IDENTITIES, crd.render_assigned(assigned))
        self._cluster.wrote(assigned.key, made)

    async def replace(self, assigned: AzureAssignedIdentity) -> None:
        """Replace one; a conflict when somebody wrote since it was read."""
        made = await self._api.replace(ASSIGNED_IDENTITIES, crd.render_assigned(assigned))
        self._cluster.wrote(assigned.key, made)

    async def mark(self, assigned: AzureAssignedIdentity) -> None:
        """Write its state and nothing else."""
        status = {"status": {"status": str(assigned.state), "availableReplicas": 1}}
        made = await self._api.patch(ASSIGNED_IDENTITIES, assigned.key, status)
        self._cluster.wrote(assigned.key, made)

    async def delete(self, assigned: AzureAssignedIdentity) -> None:
        """Release its finalizer and delete it; gone already is fine."""
        try:
            if assigned.finalizers:
                await self._api.patch(ASSIGNED_IDENTITIES, assigned.key, {"metadata": {"finalizers": None}})
            await self._api.delete(ASSIGNED_IDENTITIES, assigned.key)
        except NotFoundError:
            pass
        self._cluster.wrote(assigned.key, None)


class ConfigMapRecords:
    """The record, in a ConfigMap: target path to resource IDs, as JSON that a person can read."""

    def __init__(self, api: Api, key: ObjectKey, policy: Policy) -> None:
        self._api = api
        self._key = key
        self._policy = policy

    async def load(self) -> Put | None:
        """Read the record; None when there is none yet."""
        try:
            found = await self._api.get(CONFIG_MAPS, self._key)
        except NotFoundError:
            return None
        text = (found.get("data") or {}).get(RECORD)
        return None if text is None else self._read(text)

    async def store(self, put: Put) -> None:
        """Write it, leaving the ConfigMap's other keys as they are."""
        shown = {target.path: sorted(identity.text for identity in put[target]) for target in put}
        text = json.dumps(shown, indent=1, sort_keys=True)
        try:
            found = await self._api.get(CONFIG_MAPS, self._key)
        except NotFoundError:
            metadata = {"namespace": self._key.namespace, "name": self._key.name}
            await self._api.create(CONFIG_MAPS, {"metadata": metadata, "data": {RECORD: text}})
            return
        data = {**(found.get("data") or {}), RECORD: text}
        await self._api.replace(CONFIG_MAPS, {**found, "data": data})

    def _read(self, text: str) -> Put:
        """Read what an earlier leader wrote. Raises ConfigurationError: a guess could take identities from pods."""
        try:
            written = {str(path): [str(one) for one in identities] for path, identities in json.loads(text).items()}
        except (ValueError, AttributeError, TypeError) as error:
            told = f'ConfigMap {self._key}: "{RECORD}" cannot be read ({error}); restore it, or delete that key'
            raise ConfigurationError(told) from None
        put: dict[Target, frozenset[IdentityId]] = {}
        for path, identities in written.items():
            target = arm.target_of("", f"azure://{path}", self._policy.subscription, self._policy.group)
            put[target] = frozenset(found for one in identities if (found := arm.parse_identity_id(one)))
        return put


class BindingEvents:
    """Tells users on their bindings, in upstream's words."""

    def __init__(self, recorder: Recorder, cluster: WatchedCluster) -> None:
        self._recorder = recorder
        self._cluster = cluster

    def assigned(self, identity: IdentityId, target: Target) -> None:
        """An identity is on a target."""
        for binding in self._bindings(identity):
            self._record(binding, "Normal", "binding applied", f"{identity.name} is on {target}")

    def removed(self, identity: IdentityId, target: Target) -> None:
        """An identity left a target."""
        for binding in self._bindings(identity):
            self._record(binding, "Normal", "binding removed", f"{identity.name} left {target}")

    def failed(self, identity: IdentityId, target: Target, why: str) -> None:
        """An identity cannot be put on a target."""
        for binding in self._bindings(identity):
            self._record(binding, "Warning", "binding apply error", f"{identity.name} cannot go on {target}: {why}")

    def _bindings(self, identity: IdentityId) -> Iterable[AzureIdentityBinding]:
        for binding in self._cluster.bindings:
            found = self._cluster.identities.get(ObjectKey(binding.key.namespace, binding.azure_identity))
            if found is not None and found.arm_id == identity:
                yield binding

    def _record(self, binding: AzureIdentityBinding, kind: Any, reason: str, message: str) -> None:
        self._recorder.record(Subject.of(BINDINGS, binding.key, binding.uid), kind, reason, message)
