"""Carries out a plan's writes to Kubernetes: deletions first, then the rest, several at a time.

Decides nothing. No two writes of a plan concern the same object, so within each half their order does not matter.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from podidentity.core.assignment.planning import Create, Delete, Mark, Replace, Write
from podidentity.errors import ConflictError, FencedError, KubernetesError, NotFoundError
from podidentity.mic.ports import Objects

BATCH = 20
"""Writes under way at the same time; the default of upstream's `--createDeleteBatch`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A write that failed. An `outdated` one met a newer object, or a newer leader: it needs a new plan, no report."""

    write: Write
    message: str
    outdated: bool


@dataclass(slots=True)
class Result:
    """The writes that succeeded, and those that failed."""

    successes: list[Write] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


async def run(writes: Iterable[Write], objects: Objects, batch: int = BATCH) -> Result:
    """Carry out writes, `batch` at a time. A failure is part of the result and stops no other write."""
    result = Result()
    deletions: list[Write] = []
    remaining: list[Write] = []
    for write in writes:
        (deletions if isinstance(write, Delete) else remaining).append(write)
    for half in (deletions, remaining):
        queue = iter(half)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(max(batch, 1), len(half))):
                group.create_task(_work(queue, objects, result))
    return result


async def _work(queue: Iterator[Write], objects: Objects, result: Result) -> None:
    for write in queue:
        try:
            await _carry_out(write, objects)
        except (ConflictError, NotFoundError, FencedError) as error:
            _log.info(
                "%s of assigned identity %s is outdated: %s", type(write).__name__, write.assigned_identity.key, error
            )
            result.failures.append(Failure(write, str(error), outdated=True))  # the watch will show the newer object
        except KubernetesError as error:
            _log.error(
                "%s of assigned identity %s failed: %s", type(write).__name__, write.assigned_identity.key, error
            )
            result.failures.append(Failure(write, str(error), outdated=False))
        else:
            result.successes.append(write)


async def _carry_out(write: Write, objects: Objects) -> None:
    match write:
        case Create(assigned_identity):
            await objects.create(assigned_identity)
        case Replace(assigned_identity):
            await objects.replace(assigned_identity)
        case Mark(assigned_identity):
            await objects.mark(assigned_identity)
        case Delete(assigned_identity):
            await objects.delete(assigned_identity)
