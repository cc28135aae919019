"""A real cluster as its users have it: `podidentity lab up --kubernetes real`, kubectl, and the lab's Azure."""

import base64
import contextlib
import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import yaml

import upstreams
import waiting
from podidentity_lab.demo.admin import Admin
from podidentity_lab.directory import Directory
from podidentity_lab.real import program
from processes import command_lines
from system.lab.running import Json, Lab, User, lab, parent_of

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy/infra"
DEFINITIONS = REPOSITORY / "charts/aad-pod-identity/crds/crd.yaml"
GROUP = "apps"
LOCATION = "westeurope"
WAIT_SECONDS = 240.0  # a whole cluster, image unpacking and a busy machine

NO_TENANT = "00000000-0000-0000-0000-000000000000"
"""What stands in manifests where the tenant's ID belongs."""

TOKEN_URL = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"


@dataclass(frozen=True)
class Identity:
    """A user-assigned identity of the lab's Azure that the cluster may use."""

    name: str
    client_id: str
    resource_id: str


class Cluster:
    """A cluster that is up."""

    def __init__(self, one: Lab) -> None:
        self.lab = one
        self.admin = Admin(one.variables)
        self.admin.create_group(GROUP, LOCATION)

    @property
    def logs(self) -> Path:
        """The directory with the logs of all components."""
        return Path(self.lab.variables["LAB_LOGS"])

    @property
    def cgroup(self) -> str:
        """The part that the paths of all its containers' control groups share."""
        return Directory(self.lab.directory).cgroup

    @cached_property
    def api(self) -> httpx2.Client:
        """A client of the API server for frequent requests.

        Each call of kubectl takes a tenth of a second of processor time.
        """
        config = yaml.safe_load(Path(self.lab.variables["KUBECONFIG"]).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        trust = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        headers = {"Authorization": f"Bearer {user['token']}"}
        return httpx2.Client(
            base_url=cluster["server"], verify=trust, headers=headers, timeout=WAIT_SECONDS, trust_env=False
        )

    def pod_status(self, name: str, namespace: str = "default") -> Json:
        """Return a pod's status."""
        answer = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}").raise_for_status()
        told: Json = answer.json()["status"]
        return told

    def requests(self) -> Iterator[Json]:
        """Return the requests of the workloads' service accounts from the audit log, oldest first.

        The last line may be incomplete.
        """
        yield from map(json.loads, (self.logs / "audit.log").read_text().rpartition("\n")[0].splitlines())

    def close(self) -> None:
        """Close the connections."""
        self.admin.close()
        self.api.close()

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl; return what it printed."""
        done = self.try_kubectl(*words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def try_kubectl(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl, whatever comes of it."""
        kubectl = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
        return subprocess.run(
            [kubectl, *words],
            env=self.lab.variables,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_SECONDS,
        )

    def create(self, *objects: Json, namespace: str = "default") -> None:
        """Run `kubectl create`."""
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(listed))

    def get(self, *words: str) -> Json:
        """Run `kubectl get ... -o json`."""
        told: Json = json.loads(self.kubectl("get", *words, "-o", "json"))
        return told

    def manifest(self, path: str) -> str:
        """Return the text of a manifest of this repository, with the tenant where its readers put theirs."""
        return (REPOSITORY / path).read_text().replace(NO_TENANT, self.lab.variables["LAB_TENANT_ID"])

    def delete(self, *words: str) -> None:
        """Run `kubectl delete` without a grace period: tests do not examine how their pods end."""
        self.kubectl("delete", "--ignore-not-found", "--grace-period=1", *words)

    def install(self, manifest: str = "deployment-rbac.yaml") -> None:
        """Install podidentity as its README says, and wait until it says that it is ready."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(DEPLOY / manifest))
        self.roll_out("daemonset/nmi")
        self.roll_out("deployment/mic")

    def take_interception_away(self) -> None:
        """Delete NMI, and what it left on the nodes, as `uninstall.yaml` says."""
        recipe = str(DEPLOY / "uninstall.yaml")
        self.kubectl("delete", "daemonset", "nmi", "--ignore-not-found", "--cascade=foreground")
        self.kubectl("create", "-f", recipe)
        self.roll_out("daemonset/nmi-uninstall")
        self.kubectl("delete", "-f", recipe)

    def uninstall(self) -> None:
        """Leave the cluster as if podidentity had never been there, for the next module."""
        if self.try_kubectl("get", "crd", f"azureidentities.{upstreams.GROUP}").returncode:
            return  # another fixture did it already
        self.kubectl("delete", "deployment", "mic", "--ignore-not-found", "--cascade=foreground")
        self.take_interception_away()
        self.delete("pod", "--all")
        self.forget()
        self.kubectl("delete", "--ignore-not-found", "-f", str(DEPLOY / "deployment-rbac.yaml"))

    def forget(self) -> None:
        """Delete the definitions with all their objects, and what leaders left."""
        held = self.try_kubectl("get", "azureassignedidentities", "-A", "-o", "json")
        for one in json.loads(held.stdout)["items"] if held.returncode == 0 else []:
            at, free = one["metadata"], '{"metadata":{"finalizers":null}}'
            where = ("azureassignedidentity", at["name"], "-n", at["namespace"])
            self.try_kubectl("patch", *where, "--type=merge", "-p", free)
        self.kubectl("delete", "--ignore-not-found", "-f", str(DEFINITIONS))
        self.delete("configmap/aad-pod-identity-config", f"endpoints/{upstreams.LOCK}", f"lease/{upstreams.LOCK}")

    def roll_out(self, what: str, namespace: str = "default") -> None:
        """Wait for a rollout."""
        self.kubectl("rollout", "status", "-n", namespace, what, f"--timeout={WAIT_SECONDS:.0f}s")

    def identity(self, name: str) -> Identity:
        """Create an identity in Azure that MIC may assign."""
        made = self.admin.create_identity(GROUP, name, LOCATION)["properties"]
        scope = self.admin.identity(GROUP, name)
        self.admin.assign_role("Managed Identity Operator", self.admin.cluster_principal(), scope)
        return Identity(name, made["clientId"], scope)

    def bind(self, identity: Identity, namespace: str = "default", selector: str | None = None) -> None:
        """Create an AzureIdentity and its binding; the selector is the identity's name unless given."""
        spec = {"type": 0, "resourceID": identity.resource_id, "clientID": identity.client_id}
        chosen = {"azureIdentity": identity.name, "selector": selector or identity.name}
        self.create(
            custom("AzureIdentity", identity.name, spec),
            custom("AzureIdentityBinding", identity.name, chosen),
            namespace=namespace,
        )

    def imds_packets(self) -> int:
        """Return how many packets of pods left a node by its uplink towards the metadata service."""
        told = self.lab.run("status", "--name", self.lab.name, "--json")
        assert told.returncode == 0, told.stderr
        packets: dict[str, int] = json.loads(told.stdout)["imds_packets"]
        return sum(packets.values())

    def pod_ip(self, name: str, namespace: str = "default") -> str:
        """Return the address of a pod that runs."""
        until(lambda: self.pod_status(name, namespace).get("podIP"), f"an address of pod {name}")
        return str(self.pod_status(name, namespace)["podIP"])

    def counts(self, name: str, namespace: str = "default") -> dict[str, int]:
        """Return what a pod that runs `KEEP_ASKING` has counted; nothing while it cannot be reached."""
        status, body = self.lab.curl(f"http://{self.pod_ip(name, namespace)}:8080/")
        counted: dict[str, int] = json.loads(body) if status == 200 else {}
        return counted

    def gap(self, name: str) -> float:
        """Return the longest time without a token of a pod that runs `KEEP_ASKING`, in seconds, since the last call."""
        status, body = self.lab.curl(f"http://{self.pod_ip(name)}:8080/gap")
        assert status == 200
        return float(body)

    def finished(self, name: str, namespace: str = "default") -> str:
        """Wait for a pod's end; return what it wrote."""
        ended = {"Succeeded", "Failed"}
        until(lambda: self.pod_status(name, namespace).get("phase") in ended, f"the end of pod {name}")
        return self.kubectl("logs", "-n", namespace, name)

    def result(self, name: str) -> str:
        """Wait for a pod's end; what it wrote. The pod is deleted: as long as it is there, it has its identity."""
        said = self.finished(name)
        self.delete(f"pod/{name}")
        return said

    def inside(self) -> int:
        """Return the lab's first process, as this machine numbers it."""
        for pid, words in command_lines().items():
            line = b" ".join(words)
            if b"podidentity_lab.inside" in line and bytes(self.lab.directory) in line and b"unshare" not in line:
                return pid
        raise AssertionError("the lab has no first process")

    def restarts(self, *components: str) -> dict[str, int]:
        """Return how often each container of `nmi`, `mic` or both was started anew, by pod.

        A pod that is being deleted does not count, nor does one whose container has not started yet: an update or a
        node that leaves may have either.
        """
        items = self.get("pods", "-l", f"component in ({', '.join(components or ('nmi', 'mic'))})")["items"]
        here = [item for item in items if "deletionTimestamp" not in item["metadata"]]
        containers = {item["metadata"]["name"]: item["status"].get("containerStatuses") for item in here}
        return {name: statuses[0]["restartCount"] for name, statuses in containers.items() if statuses}

    def processes(self, program: str, host: str = "") -> set[int]:
        """Return the cluster's processes that run a program of podidentity's image, of the pod `host` if given."""
        found = set()
        for pid, words in command_lines().items():
            process = Path("/proc", str(pid))
            with contextlib.suppress(OSError):  # the process ended meanwhile
                ours = self.cgroup in (process / "cgroup").read_text()
                if ours and f"/usr/local/bin/{program}".encode() in words:
                    variables = (process / "environ").read_bytes().split(b"\0")
                    if not host or f"HOSTNAME={host}".encode() in variables:
                        found.add(pid)
        # Until it executes another program, a child has its parent's command line; one without a parent has just ended.
        parents = {pid: parent_of(Path("/proc", str(pid))) for pid in found}
        return {pid for pid, parent in parents.items() if parent and parent not in found}

    def forget_last_address(self, node: str) -> None:
        """Make the node's next pod get the lowest free address, although it was in use just now."""
        kept = Path(f"/proc/{self.inside()}/root/run/podidentity/{node}/addresses/pods/last_reserved_ip.0")
        kept.unlink(missing_ok=True)

    def nodes(self) -> list[str]:
        """Return the names of the nodes that are there."""
        return sorted(node["metadata"]["name"] for node in self.get("nodes")["items"])


@contextlib.contextmanager
def start(home: Path, *words: str, **variables: str) -> Iterator[Cluster]:
    """Start a cluster below `home`, with these environment variables, and take it down again."""
    cache = str(program.place().parents[1])  # where Kubernetes has been built
    user = User(environment={"XDG_CACHE_HOME": cache, **variables})
    with lab(home, "cluster", "--kubernetes", "real", *words, user=user, seconds=WAIT_SECONDS) as one:
        made = Cluster(one)
        try:
            yield made
        finally:
            made.close()


def custom(kind: str, name: str, spec: Json) -> Json:
    """Return an object of podidentity's kinds."""
    return {"apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def pod(name: str, script: str, *, binding: str | None = None, node: str | None = None, **spec: Any) -> Json:
    """Return a pod that runs a Python program once."""
    labels = {"app": name} | ({"aadpodidbinding": binding} if binding else {})
    container = {"name": "main", "image": "podidentity/lab-tools:1", "command": ["python3", "-u", "-c", script]}
    where = {"nodeName": node} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **where,
            **spec,
        },
    }


def client_id(token: str) -> str:
    """Return whose token it is."""
    payload = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["appid"])


def until(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for a condition with the patience that a whole cluster needs."""
    waiting.until(condition, what, seconds)
