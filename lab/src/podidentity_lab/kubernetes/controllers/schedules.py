"""CronJobs to jobs, when their time has come."""

import asyncio
import datetime as dt
from collections.abc import Callable, Iterable
from typing import Any

from podidentity.timing import render_rfc3339
from podidentity_lab.kubernetes import cron
from podidentity_lab.kubernetes.controllers.jobs import outcome_of
from podidentity_lab.kubernetes.controllers.workloads import owned_by, owner_of, set_status
from podidentity_lab.kubernetes.statuses import ApiError
from podidentity_lab.kubernetes.storage import Storage

LOOK_SECONDS = 1.0
KEPT_JOBS = {"Complete": ("successfulJobsHistoryLimit", 3), "Failed": ("failedJobsHistoryLimit", 1)}
Json = dict[str, Any]


async def run(storage: Storage, clock: Callable[[], float]) -> None:
    """Start the jobs that are start, until cancelled; `clock` gives Unix time in seconds."""
    while True:
        for cron_job in storage.list("cronjobs.batch"):
            try:
                reconcile(storage, cron_job, dt.datetime.fromtimestamp(clock(), dt.UTC))
            except ApiError:  # somebody was faster: look again in a moment
                continue
        await asyncio.sleep(LOOK_SECONDS)


def reconcile(storage: Storage, cron_job: Json, now: dt.datetime) -> None:
    """Start a job if one is start, and delete what is over the limits of jobs that are kept."""
    spec, metadata = cron_job["spec"], cron_job["metadata"]
    jobs = owned_by(storage.list("jobs.batch", metadata["namespace"]), cron_job)
    running = [job for job in jobs if outcome_of(job) is None]
    status = dict(cron_job.get("status") or {})
    start = None if spec.get("suspend") else _next_start(spec, status.get("lastScheduleTime"), metadata, now)
    if start is not None:
        if not running or spec.get("concurrencyPolicy", "Allow") != "Forbid":
            if spec.get("concurrencyPolicy") == "Replace":
                _delete(storage, running)
            running = [*running, storage.create("jobs.batch", _new_job(cron_job, start))]
        status["lastScheduleTime"] = render_rfc3339(start.timestamp())
    for outcome, (field, limit) in KEPT_JOBS.items():
        finished = sorted((job for job in jobs if outcome_of(job) == outcome), key=_creation)
        _delete(storage, finished[: max(0, len(finished) - spec.get(field, limit))])
    active = [{"kind": "Job", "apiVersion": "batch/v1", "name": job["metadata"]["name"]} for job in running]
    new_status = {**status, "active": active} if active else {k: v for k, v in status.items() if k != "active"}
    if new_status != (cron_job.get("status") or {}):
        set_status(storage, "cronjobs.batch", cron_job, new_status)


def _next_start(spec: Json, last: str | None, metadata: Json, now: dt.datetime) -> dt.datetime | None:
    """Return the latest time of the schedule since the last one that was acted on; None when there is none."""
    since = dt.datetime.fromisoformat(last or metadata["creationTimestamp"])
    return cron.latest(spec["schedule"], spec["timeZone"], since, now)


def _new_job(cron_job: Json, start: dt.datetime) -> Json:
    template = cron_job["spec"]["jobTemplate"]
    metadata = template.get("metadata") or {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{cron_job['metadata']['name']}-{int(start.timestamp()) // 60}",
            "namespace": cron_job["metadata"]["namespace"],
            "labels": metadata.get("labels") or {},
            "annotations": metadata.get("annotations") or {},
            "ownerReferences": [owner_of(cron_job)],
        },
        "spec": template["spec"],
    }


def _delete(storage: Storage, jobs: Iterable[Json]) -> None:
    for job in jobs:
        storage.delete("jobs.batch", job["metadata"]["namespace"], job["metadata"]["name"])


def _creation(job: Json) -> str:
    return str(job["metadata"]["creationTimestamp"])
