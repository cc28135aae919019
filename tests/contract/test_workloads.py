"""Jobs, DaemonSets and Deployments as kubectl makes and reads them, protobuf included."""

import json

import pytest

from contract.conftest import Json, Kubectl

IMAGE = "registry.invalid/image:1"  # nothing of these tests needs to run
NOWHERE = {"nowhere": "at-all"}


def workload(kind: str, name: str, **spec: object) -> Json:
    """Return a workload of apps/v1 whose pods fit no node."""
    labels = {"app": name}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "main", "image": IMAGE}], "nodeSelector": NOWHERE},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels}, "template": template, **spec},
    }


def test_what_kubectl_creates_by_itself(kubectl: Kubectl) -> None:
    """`kubectl create` sends these kinds as protobuf; they are stored with kubectl's values and the API's defaults."""
    kubectl("create", "job", "work", f"--image={IMAGE}", "--", "true", "now")
    kubectl("create", "cronjob", "nightly", f"--image={IMAGE}", "--schedule=0 3 * * *", "--", "true")
    kubectl("create", "deployment", "web", f"--image={IMAGE}", "--replicas=0", "--port=80")
    kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=50%")
    kubectl("create", "service", "clusterip", "web", "--tcp=80:8080")
    job = kubectl.get("job", "work")["spec"]
    assert job["template"]["spec"]["containers"][0]["command"] == ["true", "now"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (1, 1, 6)
    assert kubectl.get("cronjob", "nightly")["spec"]["schedule"] == "0 3 * * *"
    deployment = kubectl.get("deployment", "web")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (0, "RollingUpdate")
    assert kubectl.get("poddisruptionbudget", "web")["spec"]["minAvailable"] == "50%"
    assert kubectl.get("service", "web")["spec"]["ports"][0]["targetPort"] == 8080


def test_a_job_from_a_cron_job(kubectl: Kubectl) -> None:
    """`kubectl create job --from` makes a Job of a CronJob's template."""
    kubectl("create", "cronjob", "nightly", f"--image={IMAGE}", "--schedule=0 3 * * *", "--", "true")
    kubectl("create", "job", "by-hand", "--from=cronjob/nightly")
    made = kubectl.get("job", "by-hand")
    assert made["metadata"]["ownerReferences"][0]["name"] == "nightly"
    assert made["spec"]["template"]["spec"]["containers"][0]["command"] == ["true"]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"template": {"spec": {"containers": [{"name": "main", "image": IMAGE}]}}}, "restartPolicy"),
        ({"template": {"spec": {"restartPolicy": "Never", "containers": []}}}, "containers"),
    ],
)
def test_a_job_that_could_never_run_is_refused(kubectl: Kubectl, job: Json, message: str) -> None:
    """A Job without a restart policy or without containers is refused, and the refusal names the field."""
    made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "bad"}, "spec": job}
    assert message in kubectl.refused("create", "-f", "-", stdin=made)


@pytest.mark.parametrize("schedule", ["never", "61 * * * *", "* * *"])
def test_a_schedule_that_cannot_be_read_is_refused(kubectl: Kubectl, schedule: str) -> None:
    """The refusal of such a CronJob names the field `spec.schedule`."""
    words = ("create", "cronjob", "bad", f"--image={IMAGE}", f"--schedule={schedule}")
    assert "spec.schedule" in kubectl.refused(*words)


@pytest.mark.parametrize("strategy", [{}, {"updateStrategy": {"type": "RollingUpdate"}}])
def test_a_daemon_set_has_the_numbers_of_its_update(kubectl: Kubectl, strategy: Json) -> None:
    """A DaemonSet always has `maxUnavailable` and `maxSurge`, which Helm reads without a check."""
    kubectl("create", "-f", "-", stdin=workload("DaemonSet", "agent", **strategy))
    rolling = kubectl.get("daemonset", "agent")["spec"]["updateStrategy"]["rollingUpdate"]
    assert (rolling["maxUnavailable"], rolling["maxSurge"]) == (1, 0)


def test_an_update_is_undone(kubectl: Kubectl) -> None:
    """`kubectl rollout undo` brings the old image back as revision 3, which `history` has in place of revision 1."""
    kubectl("create", "-f", "-", stdin=workload("Deployment", "web", replicas=0))
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    kubectl("set", "image", "deployment/web", "main=registry.invalid/image:2")
    kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    kubectl("wait", "--for=jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}=2", "deployment/web")
    kubectl("rollout", "undo", "deployment/web")
    assert kubectl.get("deployment", "web")["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
    kubectl("wait", "--for=jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}=3", "deployment/web")
    history = kubectl("rollout", "history", "deployment/web").split()
    assert ("2" in history, "3" in history, "1" in history) == (True, True, False)


def test_all_shows_workloads_and_explain_their_fields(kubectl: Kubectl) -> None:
    """`kubectl get all` finds workloads by discovery, and `explain` describes fields by OpenAPI."""
    kubectl("create", "-f", "-", stdin=workload("DaemonSet", "agent"))
    kubectl("create", "job", "work", f"--image={IMAGE}")
    names = kubectl("get", "all", "-o", "name").split()
    assert {"daemonset.apps/agent", "job.batch/work"} <= set(names)
    assert "<[]Container>" in kubectl("explain", "pod.spec.containers")
    assert "selector" in kubectl("explain", "azureidentitybinding.spec")


def test_an_eviction_obeys_the_budget(kubectl: Kubectl) -> None:
    """A budget keeps its last ready pod; one that is not ready, or that no budget covers any more, may go."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "needed", "labels": {"app": "needed"}},
        "spec": {"containers": [{"name": "main", "image": IMAGE}], "nodeSelector": NOWHERE},
    }
    kubectl("create", "-f", "-", stdin=pod)
    kubectl("create", "poddisruptionbudget", "needed", "--selector=app=needed", "--min-available=1")
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/needed/eviction"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "needed"}}
    kubectl("create", "--raw", path, "-f", "-", stdin=eviction | {"deleteOptions": {"dryRun": ["All"]}})
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    kubectl("patch", "pod", "needed", "--subresource=status", "--patch", json.dumps({"status": status}))
    assert "disruption budget" in kubectl.refused("create", "--raw", path, "-f", "-", stdin=eviction)
    assert kubectl.get("pod", "needed")["metadata"].get("deletionTimestamp") is None
    kubectl("delete", "poddisruptionbudget", "needed")
    kubectl("create", "--raw", path, "-f", "-", stdin=eviction)
    assert "not found" in kubectl.refused("get", "pod", "needed")


def test_debuggers_are_added_and_stay(kubectl: Kubectl) -> None:
    """`kubectl debug` adds containers to a pod; none is changed, removed or doubled, and no pod begins with one."""
    container = {"name": "main", "image": IMAGE}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"}}
    spec = {"containers": [container], "nodeSelector": NOWHERE}
    refusal = kubectl.refused("create", "-f", "-", stdin=pod | {"spec": {**spec, "ephemeralContainers": [container]}})
    assert "spec.ephemeralContainers: Forbidden: cannot be set on create" in refusal
    kubectl("create", "-f", "-", stdin=pod | {"spec": spec})
    for name in ("first", "second"):
        kubectl("debug", "app", f"--image={IMAGE}", f"--container={name}", "--target=main", "--", "sh")
    containers = kubectl.get("pod", "app")["spec"]["ephemeralContainers"]
    assert [container["name"] for container in containers] == ["first", "second"]
    assert (containers[0]["command"], containers[0]["targetContainerName"]) == (["sh"], "main")

    def refusal_of(*changed_containers: Json) -> str:
        patch = json.dumps({"spec": {"ephemeralContainers": changed_containers}})
        words = ("patch", "pod", "app", "--subresource=ephemeralcontainers", "--type=merge", "--patch", patch)
        return kubectl.refused(*words)

    assert 'existing ephemeral containers "second" may not be removed' in refusal_of(containers[0])
    changed = {**containers[1], "image": "registry.invalid/image:2"}
    assert 'existing ephemeral containers "second" may not be changed' in refusal_of(containers[0], changed)
    for field, message in (
        ({"name": "main"}, 'Duplicate value: "main"'),
        ({"image": ""}, "image: Required value"),
        ({"targetContainerName": "nobody"}, 'targetContainerName: Not found: "nobody"'),
        ({"ports": [{"containerPort": 80}]}, "ports: Forbidden: cannot be set for an Ephemeral Container"),
    ):
        assert message in refusal_of(*containers, {**containers[0], "name": "third", **field})


def test_server_side_apply_creates_changes_and_withdraws(kubectl: Kubectl) -> None:
    """A field that its manager no longer applies is removed; other managers' fields stay. Helm 4 installs this way."""

    def apply(manager: str, data: Json, name: str = "settings") -> None:
        made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        kubectl("apply", "--server-side", f"--field-manager={manager}", "-f", "-", stdin=made)

    apply("one", {"a": "1", "b": "2"})
    apply("two", {"c": "3"})
    apply("one", {"a": "4"})
    assert kubectl.get("configmap", "settings")["data"] == {"a": "4", "c": "3"}
    kubectl("apply", "--server-side", "-f", "-", stdin=workload("Deployment", "web", replicas=0))
    kubectl("set", "env", "deployment/web", "NAME=value")
    kubectl("apply", "--server-side", "-f", "-", stdin=workload("Deployment", "web", replicas=0, minReadySeconds=3))
    spec = kubectl.get("deployment", "web")["spec"]
    assert spec["minReadySeconds"] == 3
    assert spec["template"]["spec"]["containers"][0]["env"] == [{"name": "NAME", "value": "value"}]
