"""Jobs, schedules, draining, copying and Helm in a lab with kubelets."""

from collections.abc import Iterator
from pathlib import Path

import helm_python
import pytest

from podidentity_lab.kubernetes.controllers import workloads
from system.lab.running import Lab, lab
from waiting import until

pytestmark = pytest.mark.root
WAIT_SECONDS = 180  # a busy machine
IMAGE = "--image=podidentity/lab-tools:1"
CHART = Path(__file__).parents[3] / "charts/aad-pod-identity"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of two nodes."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "workloads", "--nodes", "2") as one:
        yield one


def test_a_job_ends(up: Lab) -> None:
    """A job completes once its pod has succeeded, and `kubectl logs job/...` finds that pod."""
    up.kubectl("create", "job", "work", IMAGE, "--", "echo", "done")
    up.kubectl("wait", "--for=condition=Complete", "job/work", f"--timeout={WAIT_SECONDS}s")
    assert up.kubectl("logs", "job/work") == "done\n"
    status = up.get("job", "work")["status"]
    assert (status["succeeded"], "active" in status, "failed" in status) == (1, False, False)


def test_a_job_that_fails_too_often_has_failed(up: Lab) -> None:
    """A job fails after its backoff limit, and its pods stay so that their logs can be read."""
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "bad"},
        "spec": {
            "backoffLimit": 1,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "main", "image": "podidentity/lab-tools:1", "command": ["false"]}],
                }
            },
        },
    }
    up.create(job)
    up.kubectl("wait", "--for=condition=Failed", "job/bad", f"--timeout={WAIT_SECONDS}s")
    assert up.get("job", "bad")["status"]["failed"] == 2
    assert len(up.get("pods", "-l", "job-name=bad")["items"]) == 2


def test_a_schedule_starts_jobs(up: Lab) -> None:
    """Every minute, of which the first may begin at once."""
    up.kubectl("create", "cronjob", "minutely", IMAGE, "--schedule=* * * * *", "--", "true")
    until(lambda: bool(_jobs(up, "minutely")), "a job of the schedule", WAIT_SECONDS + 60.0)
    job = _jobs(up, "minutely")[0]
    up.kubectl("wait", "--for=condition=Complete", f"job/{job}", f"--timeout={WAIT_SECONDS}s")
    up.kubectl("delete", "cronjob", "minutely")
    until(lambda: not _jobs(up, "minutely"), "its jobs to go with it", WAIT_SECONDS)


def _jobs(up: Lab, owner: str) -> list[str]:
    items = up.get("jobs")["items"]
    return [
        one["metadata"]["name"]
        for one in items
        if any(reference["name"] == owner for reference in one["metadata"].get("ownerReferences") or ())
    ]


def test_a_drained_node_is_empty_and_stays_so(up: Lab) -> None:
    """A budget is waited for; what comes after goes to another node until `uncordon`."""
    up.create(_deployment("web", 2))
    up.kubectl("rollout", "status", "deployment/web", f"--timeout={WAIT_SECONDS}s")
    up.kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--max-unavailable=0")
    words = ("drain", "node-1", "--ignore-daemonsets", "--force", "--delete-emptydir-data")
    refused = up.try_kubectl(*words, "--timeout=6s")
    assert refused.returncode != 0
    assert "disruption budget" in refused.stderr
    up.kubectl("delete", "poddisruptionbudget", "web")
    up.kubectl(*words, f"--timeout={WAIT_SECONDS}s")
    up.kubectl("rollout", "status", "deployment/web", f"--timeout={WAIT_SECONDS}s")
    nodes = {pod["spec"]["nodeName"] for pod in up.get("pods", "-l", "app=web")["items"]}
    assert nodes == {"node-0"}
    up.kubectl("uncordon", "node-1")
    up.kubectl("delete", "deployment", "web")


def test_files_are_copied_in_and_out(up: Lab, tmp_path: Path) -> None:
    """`kubectl cp` is tar by `exec`."""
    up.create(_deployment("files", 1))
    up.kubectl("rollout", "status", "deployment/files", f"--timeout={WAIT_SECONDS}s")
    pod = up.get("pods", "-l", "app=files")["items"][0]["metadata"]["name"]
    (tmp_path / "here").write_bytes(bytes(range(256)) * 1000)
    up.kubectl("cp", str(tmp_path / "here"), f"{pod}:/tmp/there")
    up.kubectl("cp", f"{pod}:/tmp/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
    up.kubectl("delete", "deployment", "files")


def test_a_container_that_cannot_start_is_no_success(up: Lab) -> None:
    """While a container cannot start, `kubectl rollout status` does not report success."""
    deployment = _deployment("bad", 1)
    deployment["spec"]["template"]["spec"]["containers"][0]["command"] = ["/not/there"]
    up.create(deployment)
    until(
        lambda: "RunContainerError" in _waits(up) or "CrashLoopBackOff" in _waits(up),
        "the container to fail",
        WAIT_SECONDS,
    )
    assert up.try_kubectl("rollout", "status", "deployment/bad", "--timeout=3s").returncode != 0
    up.kubectl("delete", "deployment", "bad")


def _waits(up: Lab) -> str:
    return str([pod.get("status") for pod in up.get("pods", "-l", "app=bad")["items"]])


def test_helm_waits_for_our_chart(up: Lab) -> None:
    """`helm install --wait` reads how DaemonSets are updated."""
    up.kubectl("create", "namespace", "podidentity-system")
    with helm_python.Config(kubeconfig_path=str(up.directory / "kubeconfig"), namespace="podidentity-system") as helm:
        helm.install(str(CHART), "podidentity", {}, namespace="podidentity-system", wait="legacy", timeout=WAIT_SECONDS)
    daemon_sets = up.get("daemonsets", "-n", "podidentity-system")["items"]
    assert [one["status"]["numberReady"] for one in daemon_sets] == [2]


def _deployment(name: str, replicas: int) -> workloads.Json:
    """Pods that end at once when they are told to."""
    labels = {"app": name}
    container = {"name": "main", "image": "podidentity/lab-tools:1", "command": ["sleep", "infinity"]}
    template = {
        "metadata": {"labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }
