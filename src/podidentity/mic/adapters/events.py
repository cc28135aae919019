"""Kubernetes Events for users: what became of their bindings, with upstream's reasons (`pkg/mic`).

Most events are on the binding, because its author is who has to act.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from podidentity.core.assignment.planning import Delete, Mark, Write
from podidentity.core.model.arm import IdentityId, Target
from podidentity.core.model.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.core.model.matching import IneffectiveBinding
from podidentity.core.model.wording import some_of
from podidentity.kube.events import Recorder, Subject
from podidentity.kube.resources import ASSIGNED_IDENTITIES, BINDINGS, IDENTITIES
from podidentity.mic.adapters.cluster import WatchedCluster

_MAX_LISTED_PODS = 5
_log = logging.getLogger(__name__)


class BindingEvents:
    """The events of one term."""

    def __init__(self, recorder: Recorder, cluster: WatchedCluster) -> None:
        self._recorder = recorder
        self._cluster = cluster

    # From the workers: an identity on a target, which may concern many pods or, after a delay, none any more.

    def report_assigned(self, identity: IdentityId, target: Target) -> None:
        """Log that an identity is on a target; the bindings' events come with the writes of their objects."""
        _log.info("%s is on %s", identity.name, target)

    def report_removed(self, identity: IdentityId, target: Target) -> None:
        """Log that an identity was removed from a target."""
        _log.info("%s left %s", identity.name, target)

    def report_failing(self, identity: IdentityId, target: Target, message: str) -> None:
        """Record on each binding of an identity that it cannot be assigned to a target."""
        for binding in self._bindings_of(identity):
            message_with_names = f"{identity.name} cannot go on {target}: {message}"
            self._record(binding, "Warning", "binding apply error", message_with_names)

    # From the sync: single objects.

    def report_writes(self, writes: Sequence[Write]) -> None:
        """Record successful writes in one event for each binding: thousands of pods may have come at once."""
        groups: defaultdict[tuple[ObjectKey, str, str], list[AzureAssignedIdentity]] = defaultdict(list)
        for write in writes:
            assigned_identity = write.assigned_identity
            if isinstance(write, Delete):
                groups[assigned_identity.binding.key, "binding removed", "is no longer assigned"].append(
                    assigned_identity
                )
            elif assigned_identity.state == AssignedState.ASSIGNED:
                groups[assigned_identity.binding.key, "binding applied", "is assigned"].append(assigned_identity)
        for (_, reason, predicate), group in groups.items():
            self._record(group[0].binding, "Normal", reason, f"{_describe_group(group)} {predicate}")

    def report_failed_write(self, write: Write, message: str) -> None:
        """Record a failed write on its binding; of a state, on the assigned identity."""
        assigned_identity = write.assigned_identity
        text = f"{_describe(assigned_identity)}: {message}"
        if isinstance(write, Mark):
            subject = Subject.of_kind(ASSIGNED_IDENTITIES, assigned_identity.key)
            self._recorder.record(subject, "Warning", "status update error", text)
            return
        reason = "binding remove error" if isinstance(write, Delete) else "binding apply error"
        self._record(assigned_identity.binding, "Warning", reason, text)

    def report_skipped(self, skip: IneffectiveBinding) -> None:
        """Record on a binding that it has no effect on a pod that it selects."""
        binding = self._cluster.bindings.get(skip.binding)
        if binding is not None:
            self._record(binding, "Warning", "binding apply error", skip.message, cause=skip.pod.namespace)

    def report_wrong_client_id(self, identity: AzureIdentity, message: str) -> None:
        """Record on an AzureIdentity that its client ID is not the one in Azure."""
        subject = Subject.of_kind(IDENTITIES, identity.key, identity.uid)
        self._recorder.record(subject, "Warning", "wrong client ID", message)

    def report_unreadable(self, key: ObjectKey, message: str) -> None:
        """Record on an assigned identity that it cannot be read."""
        subject = Subject.of_kind(ASSIGNED_IDENTITIES, key)
        self._recorder.record(subject, "Warning", "unreadable", f"{message}; until then it counts for nothing")

    def _bindings_of(self, identity_id: IdentityId) -> Iterable[AzureIdentityBinding]:
        for binding in self._cluster.bindings:
            identity = self._cluster.identities.get(ObjectKey(binding.key.namespace, binding.azure_identity))
            if identity is not None and identity.arm_id == identity_id:
                yield binding

    def _record(
        self,
        binding: AzureIdentityBinding,
        kind: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        cause: str = "",
    ) -> None:
        """Record an event on a binding. `cause` is the namespace whose pods brought it about, when it is another."""
        cause = "" if cause == binding.key.namespace else cause
        watched = self._cluster.bindings.get(binding.key) or binding  # an assigned identity's copy has no UID
        self._recorder.record(Subject.of_kind(BINDINGS, binding.key, watched.uid), kind, reason, message, cause)


def _describe_group(group: Sequence[AzureAssignedIdentity]) -> str:
    if len(group) == 1:
        return _describe(group[0])
    pods = sorted(str(assigned_identity.pod) for assigned_identity in group)
    return f"{group[0].identity.key.name} for {len(pods)} pods ({some_of(pods, _MAX_LISTED_PODS)})"


def _describe(assigned_identity: AzureAssignedIdentity) -> str:
    return f"{assigned_identity.identity.key.name} for pod {assigned_identity.pod} on node {assigned_identity.node}"
