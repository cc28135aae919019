"""What a kubelet does with pods, seen through kubectl as a user sees it. One lab serves all these tests."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.lab.running import Json, Lab, lab, object_of, pod
from waiting import until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of one node."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "pods", "--nodes", "1") as one:
        yield one


def with_spec(made: Json, **spec: object) -> Json:
    """Return a pod with further fields in its spec."""
    return {**made, "spec": {**made["spec"], **spec}}


def test_the_environment_is_the_pod_s_own(up: Lab) -> None:
    """Nothing of the lab's own environment is in a container; what the pod says is, references and $(VAR) included."""
    up.create(
        object_of("Secret", "env-secret", {"password": "hunter2"}), object_of("ConfigMap", "env-map", {"colour": "red"})
    )
    env = [
        {"name": "PLAIN", "value": "a"},
        {"name": "JOINED", "value": "$(PLAIN)-b-$(UNKNOWN)-$$(PLAIN)"},
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "env-secret", "key": "password"}}},
        {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "x", "optional": True}}},
    ]
    source = [{"prefix": "MAP_", "configMapRef": {"name": "env-map"}}]
    said = up.run_pod(pod("environment", "env", env=env, envFrom=source))
    found = dict(line.split("=", 1) for line in said.splitlines())
    wanted = {
        "PLAIN": "a",
        "JOINED": "a-b-$(UNKNOWN)-$(PLAIN)",
        "WHO": "environment",
        "LABEL": "environment",
        "WHERE": "node-0",
        "HOST_IP": "192.168.50.10",
        "SECRET": "hunter2",
        "MAP_colour": "red",
        "KUBERNETES_SERVICE_HOST": "192.168.50.1",
    }
    assert wanted.items() <= found.items()
    assert not found.keys() & {"NONE", "PODIDENTITY_LAB_HOME"}


def test_arguments_expand_variables(up: Lab) -> None:
    """`args` follow `command`, with $(VAR) put in."""
    made = pod("arguments", command=["/bin/echo"], args=["hello", "$(NAME)"], env=[{"name": "NAME", "value": "world"}])
    assert up.run_pod(made) == "hello world\n"


def test_a_container_sees_nothing_of_the_machine(up: Lab, tmp_path: Path) -> None:
    """Files, processes and names of the machine are not in a pod; its programs are, read-only."""
    (tmp_path / "secret").write_text("of the machine")
    script = (
        f"cat {tmp_path}/secret; ls /tmp /run; cat /etc/hosts /etc/passwd; touch /usr/x; ls -d /proc/[0-9]*; hostname"
    )
    said = up.run_pod(pod("isolated", script))
    assert "of the machine" not in said
    assert "Read-only file system" in said
    assert Path("/etc/hostname").read_text().strip() not in said.split()
    assert f"/proc/{os.getppid()}\n" not in said
    assert said.splitlines()[-1] == "isolated"


def test_init_containers_run_in_order_before_the_others(up: Lab) -> None:
    """Each init container ends before the next begins, and they hand on files in a volume."""
    volume, mount = [{"name": "shared", "emptyDir": {}}], [{"name": "shared", "mountPath": "/shared"}]
    image = "podidentity/lab-tools:1"
    before = [
        {"name": name, "image": image, "command": ["sh", "-c", f"echo {name} >> /shared/order"], "volumeMounts": mount}
        for name in ("first", "second")
    ]
    made = with_spec(pod("ordered", "cat /shared/order", volumeMounts=mount), initContainers=before, volumes=volume)
    assert up.run_pod(made) == "first\nsecond\n"


def test_a_failed_init_container_fails_the_pod(up: Lab) -> None:
    """With restartPolicy Never the containers after it are never started."""
    before = [{"name": "broken", "image": "podidentity/lab-tools:1", "command": ["sh", "-c", "exit 3"]}]
    up.create(with_spec(pod("unlucky", "echo started"), initContainers=before))
    until(lambda: up.phase("unlucky") == "Failed", "the pod to fail")
    status = up.get("pod", "unlucky")["status"]
    assert status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    assert "running" not in status["containerStatuses"][0]["state"]


def test_a_crashing_container_is_started_again(up: Lab) -> None:
    """It waits in CrashLoopBackOff between starts, and its restarts are counted."""
    up.create(with_spec(pod("crashing", "echo crashed; exit 7"), restartPolicy="Always"))
    until(lambda: up.container("crashing").get("restartCount", 0) >= 2, "two restarts")
    until(lambda: "CrashLoopBackOff" in str(up.container("crashing")["state"]), "the pause")
    assert up.container("crashing")["lastState"]["terminated"]["exitCode"] == 7
    assert up.kubectl("logs", "crashing") == "crashed\n"


def test_the_status_follows_the_exit_code(up: Lab) -> None:
    """Succeeded and Failed, with the code that the program ended with; a signal is 128 and its number."""
    up.create(pod("well", "exit 0"), pod("badly", "exit 5"), pod("killed", "sh -c 'kill -9 $$$$'; exit $?"))
    for name, phase, code in (("well", "Succeeded", 0), ("badly", "Failed", 5), ("killed", "Failed", 137)):
        up.finished(name)
        assert (up.phase(name), up.container(name)["state"]["terminated"]["exitCode"]) == (phase, code)


def test_an_unknown_image_is_explained(up: Lab) -> None:
    """The event names the image and those there are; the pod waits in ImagePullBackOff."""
    up.create(pod("unknown", "true", image="nginx:1.27"))
    until(lambda: "ImagePullBackOff" in str(up.container("unknown")), "the refusal")
    told = next(one for one in up.events("unknown") if one.startswith("Failed: "))
    assert 'Failed to pull image "nginx:1.27": the lab reaches no registry but its own; it knows' in told
    assert "podidentity/lab-tools:*" in told


def test_a_program_that_is_not_there_is_explained(up: Lab) -> None:
    """The message names the program; the exit code is the one container runtimes use."""
    up.create(pod("no-program", command=["no-such-program"]))
    until(lambda: up.phase("no-program") == "Failed", "the pod to fail")
    ended = up.container("no-program")["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert "no-such-program" in ended["message"]


def test_a_missing_secret_is_waited_for(up: Lab) -> None:
    """The container says what it lacks and starts as soon as it is there."""
    source = {"secretKeyRef": {"name": "later", "key": "word"}}
    up.create(pod("patient", "echo $WORD", env=[{"name": "WORD", "valueFrom": source}]))
    until(lambda: 'secret "later" not found' in str(up.container("patient")["state"]), "the explanation")
    up.create(object_of("Secret", "later", {"word": "now"}))
    assert up.finished("patient") == "now\n"


def test_a_missing_volume_is_an_event(up: Lab) -> None:
    """The pod waits, and FailedMount says for what."""
    volumes = [{"name": "gone", "configMap": {"name": "not-there"}}]
    mounts = [{"name": "gone", "mountPath": "/gone"}]
    up.create(with_spec(pod("mountless", "cat /gone/x", volumeMounts=mounts), volumes=volumes))
    until(lambda: any("FailedMount" in one for one in up.events("mountless")), "the event")
    assert up.phase("mountless") == "Pending"
    up.create(object_of("ConfigMap", "not-there", {"x": "found"}))
    assert up.finished("mountless") == "found"


def test_secrets_and_tokens_are_files(up: Lab) -> None:
    """Secret volumes carry their items; the service account's three files are where every client looks."""
    up.create(object_of("Secret", "files", {"one": "1", "two": "2"}))
    volumes = [{"name": "files", "secret": {"secretName": "files", "items": [{"key": "two", "path": "deep/second"}]}}]
    mounts = [{"name": "files", "mountPath": "/files", "readOnly": True}]
    script = (
        "cat /files/deep/second; ls /files; cd /var/run/secrets/kubernetes.io/serviceaccount; ls; cat namespace; echo;"
        'curl -sS --cacert ca.crt -H "Authorization: Bearer $(cat token)" '
        "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/default/pods/x"
    )
    said = up.run_pod(with_spec(pod("files", script, volumeMounts=mounts), volumes=volumes))
    assert said.startswith("2deep\nca.crt\nnamespace\ntoken\ndefault\n")
    assert "system:serviceaccount:default:default" in said


def test_host_paths_lead_below_the_node(up: Lab) -> None:
    """A hostPath is a file of the node's own; one that would lead out of it is refused."""
    volumes: list[Json] = [{"name": "cloud", "hostPath": {"path": "/etc/kubernetes/azure.json", "type": "File"}}]
    volumes.append({"name": "work", "hostPath": {"path": "/var/lib/mine", "type": "DirectoryOrCreate"}})
    mounts = [{"name": "cloud", "mountPath": "/azure.json", "readOnly": True}, {"name": "work", "mountPath": "/mine"}]
    script = "cat /azure.json; echo was here > /mine/trace"
    said = up.run_pod(with_spec(pod("host-path", script, volumeMounts=mounts), volumes=volumes))
    assert up.variables["LAB_CLUSTER_CLIENT_ID"] in said
    assert (up.directory / "nodes/node-0/var/lib/mine/trace").read_text() == "was here\n"


@pytest.mark.parametrize("way", ["up", "link"])
def test_no_host_path_leaves_the_node(up: Lab, way: str) -> None:
    """Neither `..` nor a symbolic link that a pod left behind shows the machine's files."""
    (up.directory / "nodes/node-0/link").unlink(missing_ok=True)
    (up.directory / "nodes/node-0/link").symlink_to("/")
    path = {"up": "/../../../../../../../../etc", "link": "/link/etc"}[way]
    volumes = [{"name": "out", "hostPath": {"path": path}}]
    mounts = [{"name": "out", "mountPath": "/out"}]
    up.create(with_spec(pod(f"escape-{way}", "cat /out/hostname", volumeMounts=mounts), volumes=volumes))
    until(lambda: any("leads out of" in one for one in up.events(f"escape-{way}")), "the refusal")


def test_readiness_follows_its_probe(up: Lab) -> None:
    """A pod is not Ready before its probe says so, and no longer when it stops."""
    probe = {"exec": {"command": ["test", "-f", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
    script = "sleep 1; touch /tmp/ready; sleep 3; rm /tmp/ready; exec sleep 600"
    up.create(pod("ready", script, readinessProbe=probe))
    until(lambda: up.phase("ready") == "Running", "the pod to run")
    assert not up.is_ready("ready")
    until(lambda: up.is_ready("ready"), "the pod to be ready")
    until(lambda: not up.is_ready("ready"), "the pod to be unready again")


@pytest.mark.parametrize("kind", ["httpGet", "tcpSocket"])
def test_probes_over_the_network(up: Lab, kind: str) -> None:
    """HTTP and TCP probes reach the pod at its address, by a port's name too."""
    action: Json = {"port": "web", "path": "/"} if kind == "httpGet" else {"port": "web"}
    made = pod(
        f"probed-{kind.lower()}",
        "exec python3 -m http.server 8080",
        ports=[{"name": "web", "containerPort": 8080}],
        readinessProbe={kind: action, "periodSeconds": 1},
    )
    up.create(made)
    until(lambda: up.is_ready(made["metadata"]["name"]), "the pod to be ready")


def test_a_dead_container_is_replaced(up: Lab) -> None:
    """When the liveness probe fails, the container is ended and started again, and an event says why."""
    probe = {"exec": {"command": ["test", "-f", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1}
    made = pod("mortal", "touch /tmp/alive; sleep 2; rm /tmp/alive; exec sleep 600", livenessProbe=probe)
    up.create(with_spec(made, restartPolicy="Always", terminationGracePeriodSeconds=1))
    until(lambda: up.container("mortal").get("restartCount", 0) >= 1, "the restart")
    assert any("Liveness probe failed" in one for one in up.events("mortal"))


def test_a_pod_may_end_in_its_own_time(up: Lab) -> None:
    """SIGTERM first; a container that obeys is not killed, and what it wrote last is in its log."""
    script = "trap 'echo ended; exit 0' TERM; echo began; while :; do sleep 0.1; done"
    up.create(pod("obedient", script))
    until(lambda: "began" in up.kubectl("logs", "obedient"), "the pod to run")
    up.kubectl("delete", "pod", "obedient", "--timeout=20s")
    assert (up.directory / "logs/default_obedient_main.log").read_text() == "began\nended\n"


def test_a_pod_that_does_not_end_is_killed(up: Lab) -> None:
    """When the grace period is over the process is gone, and so is the object."""
    up.create(with_spec(pod("stubborn", "trap '' TERM; while :; do sleep 0.1; done"), terminationGracePeriodSeconds=1))
    until(lambda: up.phase("stubborn") == "Running", "the pod to run")
    up.kubectl("delete", "pod", "stubborn", "--timeout=20s")
    assert not [one for one in up.get("pods")["items"] if one["metadata"]["name"] == "stubborn"]


def test_rights_are_what_the_security_context_says(up: Lab) -> None:
    """Capabilities added and dropped, a read-only root, no new privileges."""
    script = "grep -E 'CapBnd|NoNewPrivs' /proc/self/status; touch /x; echo $?"
    context = {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}, "readOnlyRootFilesystem": True}
    said = up.run_pod(pod("rights", script, securityContext={**context, "allowPrivilegeEscalation": False}))
    assert f"CapBnd:\t{1 << 12:016x}" in said
    assert "NoNewPrivs:\t1" in said
    assert said.splitlines()[-1] != "0"


def test_an_unknown_capability_is_explained(up: Lab) -> None:
    """The container waits and its message names the capability."""
    up.create(pod("flying", "true", securityContext={"capabilities": {"add": ["FLY"]}}))
    until(lambda: "there is no capability FLY" in str(up.container("flying")["state"]), "the explanation")


@pytest.mark.skipif(os.geteuid() != 0, reason="a rootless lab has one user only")
def test_a_container_runs_as_the_user_it_asks_for(up: Lab) -> None:
    """`runAsUser`, `runAsGroup` and `fsGroup` are the process's."""
    context = {"runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456}
    said = up.run_pod(with_spec(pod("user", "id -u; id -g; id -G"), securityContext=context))
    assert said == "1234\n2345\n2345 3456\n"


def test_a_host_network_pod_is_the_node(up: Lab) -> None:
    """It has the node's address and name, not the machine's."""
    said = up.run_pod(with_spec(pod("hosted", "hostname; ip -br addr show eth0"), hostNetwork=True))
    assert said.splitlines()[0] == "node-0"
    assert "192.168.50.10/32" in said
    assert up.get("pod", "hosted")["status"]["podIP"] == "192.168.50.10"


def test_an_address_is_used_again_as_late_as_possible(up: Lab) -> None:
    """The next pod gets another address than the one that has just gone."""
    up.run_pod(pod("early", "true"))
    first = up.get("pod", "early")["status"]["podIP"]
    up.kubectl("delete", "pod", "early")
    up.run_pod(pod("early", "true"))
    assert up.get("pod", "early")["status"]["podIP"] != first


def test_logs_are_followed_to_the_end(up: Lab) -> None:
    """`kubectl logs --follow` gives all that comes and ends with the container."""
    up.create(pod("talking", "for n in 1 2 3; do echo $n; sleep 0.3; done"))
    until(lambda: up.phase("talking") != "Pending", "the pod to run")
    assert up.kubectl("logs", "--follow", "talking") == "1\n2\n3\n"
    assert up.kubectl("logs", "--tail=1", "talking") == "3\n"


def test_a_pod_the_kubelet_cannot_read_harms_no_other(up: Lab) -> None:
    """A malformed pod gets an event; the node runs on."""
    broken = pod("malformed", "true")
    broken["spec"]["containers"][0]["env"] = [{"value": "has no name"}]
    up.kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(broken))
    until(lambda: up.events("malformed"), "the event")
    assert up.run_pod(pod("healthy", "echo fine")) == "fine\n"
