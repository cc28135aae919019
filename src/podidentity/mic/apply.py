"""Carries out a plan's writes to Kubernetes, one after the other in their order. Decides nothing."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from podidentity.core.planning import Create, Delete, Mark, Replace, Write
from podidentity.errors import ConflictError, KubernetesError, NotFoundError
from podidentity.mic.ports import Objects

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """How many writes went through, and what became of the others."""

    written: int = 0
    failures: tuple[str, ...] = ()


async def run(writes: Iterable[Write], objects: Objects) -> Report:
    """Write; a failure is reported, and does not keep the others from being written."""
    written, failures = 0, []
    for write in writes:
        try:
            await _one(write, objects)
        except (ConflictError, NotFoundError) as error:
            failures.append(str(error))  # the watch will tell what is there now
        except KubernetesError as error:
            _log.error("%s of assigned identity %s failed: %s", type(write).__name__, write.assigned.key, error)
            failures.append(str(error))
        else:
            written += 1
    return Report(written, tuple(failures))


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
