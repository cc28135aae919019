"""Carries out a plan's writes to Kubernetes: deletions first, then the others, several at a time. Decides nothing.

No two writes of a plan are about the same object, so within each half their order does not matter.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from podidentity.core.planning import Create, Delete, Mark, Replace, Write
from podidentity.errors import ConflictError, FencedError, KubernetesError, NotFoundError
from podidentity.mic.ports import Objects

BATCH = 20
"""Writes under way at the same time, as upstream's `--createDeleteBatch` has it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A write that did not go through. One that was `overtaken` is planned again from what is there now."""

    write: Write
    why: str
    overtaken: bool


@dataclass(slots=True)
class Report:
    """Which writes went through, and what became of the others."""

    written: list[Write] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


async def run(writes: Iterable[Write], objects: Objects, batch: int = BATCH) -> Report:
    """Write, `batch` at a time; a failure is reported, and does not keep the others from being written."""
    report = Report()
    every = tuple(writes)
    for half in (
        [one for one in every if isinstance(one, Delete)],
        [one for one in every if not isinstance(one, Delete)],
    ):
        queue = iter(half)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(max(batch, 1), len(half))):
                group.create_task(_work(queue, objects, report))
    return report


async def _work(queue: Iterator[Write], objects: Objects, report: Report) -> None:
    for write in queue:
        try:
            await _one(write, objects)
        except (ConflictError, NotFoundError, FencedError) as error:
            _log.info("%s of assigned identity %s was overtaken: %s", type(write).__name__, write.assigned.key, error)
            report.failures.append(Failure(write, str(error), overtaken=True))  # the watch will tell what is there now
        except KubernetesError as error:
            _log.error("%s of assigned identity %s failed: %s", type(write).__name__, write.assigned.key, error)
            report.failures.append(Failure(write, str(error), overtaken=False))
        else:
            report.written.append(write)


async def _one(write: Write, objects: Objects) -> None:
    match write:
        case Create(assigned):
            await objects.create(assigned)
        case Replace(assigned):
            await objects.replace(assigned)
        case Mark(assigned):
            await objects.mark(assigned)
        case Delete(assigned):
            await objects.delete(assigned)
