"""Tells users what became of their bindings: Kubernetes Events, in upstream's words (`pkg/mic`), on the binding.

What the workers report of identities and targets, and what the sync reports of single objects, meet here.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from podidentity.core.arm import IdentityId, Target
from podidentity.core.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.core.matching import Skipped
from podidentity.core.planning import Delete, Mark, Write
from podidentity.kube.events import Recorder, Subject
from podidentity.kube.resources import ASSIGNED_IDENTITIES, BINDINGS, IDENTITIES
from podidentity.mic.cluster import WatchedCluster

_PODS_SHOWN = 5
_log = logging.getLogger(__name__)


class BindingEvents:
    """Both ports of those who tell: `Storyteller` for the workers, `Narrator` for the sync."""

    def __init__(self, recorder: Recorder, cluster: WatchedCluster) -> None:
        self._recorder = recorder
        self._cluster = cluster

    # What workers tell: of an identity on a target, which may concern many pods or, with a delay, none any more.

    def assigned(self, identity: IdentityId, target: Target) -> None:
        """An identity is on a target; its pods' bindings hear of it with their objects."""
        _log.info("%s is on %s", identity.name, target)

    def removed(self, identity: IdentityId, target: Target) -> None:
        """An identity left a target."""
        _log.info("%s left %s", identity.name, target)

    def failed(self, identity: IdentityId, target: Target, why: str) -> None:
        """An identity cannot be put on a target."""
        for binding in self._bindings(identity):
            self._tell(binding, "Warning", "binding apply error", f"{identity.name} cannot go on {target}: {why}")

    # What the sync tells: of single objects.

    def wrote(self, writes: Sequence[Write]) -> None:
        """These writes went through. One event for each binding: thousands of pods may have come at once."""
        told: defaultdict[tuple[ObjectKey, str, str], list[AzureAssignedIdentity]] = defaultdict(list)
        for write in writes:
            one = write.assigned
            if isinstance(write, Delete):
                told[one.binding.key, "binding removed", "is no longer assigned"].append(one)
            elif one.state == AssignedState.ASSIGNED:
                told[one.binding.key, "binding applied", "is assigned"].append(one)
        for (_, reason, verb), ones in told.items():
            self._tell(ones[0].binding, "Normal", reason, f"{_together(ones)} {verb}")

    def refused(self, write: Write, why: str) -> None:
        """A write did not go through."""
        one = write.assigned
        if isinstance(write, Mark):
            subject = Subject.of(ASSIGNED_IDENTITIES, one.key)
            self._recorder.record(subject, "Warning", "status update error", f"{_shown(one)}: {why}")
            return
        reason = "binding remove error" if isinstance(write, Delete) else "binding apply error"
        self._tell(one.binding, "Warning", reason, f"{_shown(one)}: {why}")

    def skipped(self, skipped: Skipped) -> None:
        """A binding has no effect on a pod that it selects."""
        binding = self._cluster.bindings.get(skipped.binding)
        if binding is not None:
            self._tell(binding, "Warning", "binding apply error", skipped.why)

    def mistaken(self, identity: AzureIdentity, why: str) -> None:
        """An AzureIdentity says something that Azure contradicts."""
        self._recorder.record(Subject.of(IDENTITIES, identity.key, identity.uid), "Warning", "wrong client ID", why)

    def unreadable(self, assigned: ObjectKey, why: str) -> None:
        """An assigned identity cannot be read, and is left alone."""
        subject = Subject.of(ASSIGNED_IDENTITIES, assigned)
        self._recorder.record(subject, "Warning", "unreadable", f"{why}; until then it counts for nothing")

    def _bindings(self, identity: IdentityId) -> Iterable[AzureIdentityBinding]:
        for binding in self._cluster.bindings:
            found = self._cluster.identities.get(ObjectKey(binding.key.namespace, binding.azure_identity))
            if found is not None and found.arm_id == identity:
                yield binding

    def _tell(
        self, binding: AzureIdentityBinding, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        stored = self._cluster.bindings.get(binding.key) or binding  # an embedded one does not know its UID
        self._recorder.record(Subject.of(BINDINGS, binding.key, stored.uid), kind, reason, message)


def _together(ones: Sequence[AzureAssignedIdentity]) -> str:
    if len(ones) == 1:
        return _shown(ones[0])
    pods = sorted(str(one.pod) for one in ones)
    more = ", ..." if len(pods) > _PODS_SHOWN else ""
    return f"{ones[0].identity.key.name} for {len(pods)} pods ({', '.join(pods[:_PODS_SHOWN])}{more})"


def _shown(assigned: AzureAssignedIdentity) -> str:
    return f"{assigned.identity.key.name} for pod {assigned.pod} on node {assigned.node}"
