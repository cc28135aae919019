"""Removes what MIC assigned from machines before an uninstall: no pod may find it there once nobody intercepts.

Only what the record names, and nothing immutable. The work is a leader's: the same workers, with nothing in use.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence

from podidentity.core.model.arm import IdentityId, Target
from podidentity.core.model.policy import Policy
from podidentity.core.target.drift import protected
from podidentity.mic.ports import Machines, Records
from podidentity.mic.record_batch import BatchedRecord
from podidentity.mic.workers import WorkerDependencies, Workers

LIMIT_SECONDS = 120.0
"""A PATCH of a scale set takes about a minute; those of several targets run side by side."""
POLL_SECONDS = 0.1

_log = logging.getLogger(__name__)


async def unassign_all(
    machines: Machines, records: Records, policy: Policy, limit_seconds: float = LIMIT_SECONDS
) -> Sequence[str]:
    """Remove what the record names, for `limit_seconds` at most. Return what remains, one line per target.

    Raises KubernetesError and ConfigurationError when the record cannot be read.
    """
    assigned_by_mic = await records.load()
    if not assigned_by_mic:
        return ()
    record = BatchedRecord(records, assigned_by_mic)
    async with asyncio.TaskGroup() as group:
        workers = Workers(WorkerDependencies(machines, record, _LoggedEvents(), policy, _ignore), group)
        workers.require({target: frozenset() for target in assigned_by_mic})
        try:
            async with asyncio.timeout(limit_seconds):
                while any(_remaining(workers, policy)):  # noqa: ASYNC110  # the workers' work
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            pass
        remaining = list(_remaining(workers, policy))
        workers.stop()
    return remaining


def _remaining(workers: Workers, policy: Policy) -> Iterator[str]:
    """Yield a line for each target that still carries something to remove."""
    states = workers.arm_states
    for target, identities in workers.assigned_by_mic.items():
        state = states.get(target)
        removable = identities - protected(state, policy) if state else identities
        if removable:
            yield f"{target}: {', '.join(sorted(identity.text for identity in removable))}"


class _LoggedEvents:
    """Logs what became of identities: no binding remains whose events anybody reads."""

    def report_assigned(self, identity: IdentityId, target: Target) -> None:
        """Do nothing: nothing is assigned here."""

    def report_removed(self, identity: IdentityId, target: Target) -> None:
        """Log the removal."""
        _log.info("%s: %s was removed", target, identity.text)

    def report_failing(self, identity: IdentityId, target: Target, message: str) -> None:
        """Do nothing: the worker has logged it."""


def _ignore(_target: Target) -> None:
    """Do nothing: no plan follows."""
