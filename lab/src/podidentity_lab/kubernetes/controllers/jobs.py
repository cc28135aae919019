"""Jobs to pods, and pods to their statuses. A pod that failed is followed by the next at once; a real cluster waits."""

from typing import Any

from podidentity.timing import render_rfc3339
from podidentity_lab.kubernetes.controllers.workloads import create_pod, is_active, is_ready, owned_by, set_status
from podidentity_lab.kubernetes.kinds import Kinds
from podidentity_lab.kubernetes.storage import Storage

RESOURCES = ("jobs.batch", "pods")
JOB_LABEL = "batch.kubernetes.io/job-name"
SHORT_JOB_LABEL = "job-name"
BACKOFF_LIMIT = 6
Json = dict[str, Any]


def reconcile(storage: Storage, kinds: Kinds, now: float) -> None:
    """Bring all jobs one step on; `now` is a Unix time in seconds."""
    for job in storage.list("jobs.batch"):
        if "selector" not in job["spec"]:
            _add_selector(storage, job)
        elif outcome_of(job) is None and "deletionTimestamp" not in job["metadata"]:
            _job(storage, kinds, job, render_rfc3339(now))


def outcome_of(job: Json) -> str | None:
    """Return `Complete` or `Failed`; None while the job goes on."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next((item["type"] for item in conditions if item["type"] in {"Complete", "Failed"}), None)


def _add_selector(storage: Storage, job: Json) -> None:
    def edit(obj: Json) -> None:
        labels = {JOB_LABEL: obj["metadata"]["name"], SHORT_JOB_LABEL: obj["metadata"]["name"]}
        obj["spec"]["selector"] = {"matchLabels": {JOB_LABEL: obj["metadata"]["name"]}}
        metadata = obj["spec"]["template"].setdefault("metadata", {})
        metadata["labels"] = {**(metadata.get("labels") or {}), **labels}

    storage.change("jobs.batch", job["metadata"]["namespace"], job["metadata"]["name"], edit)


def _job(storage: Storage, kinds: Kinds, job: Json, moment: str) -> None:
    spec, namespace = job["spec"], job["metadata"]["namespace"]
    pods = owned_by(storage.list("pods", namespace), job)
    phases = [pod.get("status", {}).get("phase") for pod in pods]
    active = [pod for pod in pods if is_active(pod)]
    completions = spec.get("completions") or spec.get("parallelism") or 1
    successes, failures = phases.count("Succeeded"), phases.count("Failed")
    status: Json = {"startTime": (job.get("status") or {}).get("startTime", moment)}
    if successes >= completions:
        status |= {"completionTime": moment, "conditions": [_condition("Complete", "CompletionsReached", moment)]}
    elif failures > spec.get("backoffLimit", BACKOFF_LIMIT):
        status["conditions"] = [_condition("Failed", "BackoffLimitExceeded", moment)]
    elif not spec.get("suspend"):
        for _ in range(min(spec.get("parallelism", 1), completions - successes) - len(active)):
            create_pod(storage, kinds, job, {})
    if "conditions" in status or spec.get("suspend"):
        for pod in active:
            storage.delete("pods", namespace, pod["metadata"]["name"])
    status |= {"active": len(active), "ready": sum(map(is_ready, active)), "succeeded": successes, "failed": failures}
    set_status(storage, "jobs.batch", job, {name: value for name, value in status.items() if value != 0})


def _condition(name: str, reason: str, moment: str) -> Json:
    return {
        "type": name,
        "status": "True",
        "reason": reason,
        "message": "Reached expected number of succeeded pods"
        if name == "Complete"
        else "Job has reached the specified backoff limit",
        "lastProbeTime": moment,
        "lastTransitionTime": moment,
    }
