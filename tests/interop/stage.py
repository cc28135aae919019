"""The lab of the interop tests: one for the session, with two pods in which clients run one after the other.

Pod `bound` has a binding, pod `unbound` has none. Commands reach a pod as files of a hostPath volume, which is a
directory of the lab's.
"""

import contextlib
import itertools
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interop import clients
from podidentity_lab.demo.admin import Admin
from system.lab.running import Json, Lab, User, lab
from waiting import until

ROOT = Path(__file__).parents[2]
IMAGE = "interop/clients"
SAMPLE = "jcorioland/keyvault-aad-pod-identity"
GROUP, VAULT, IDENTITY, SECRET, VALUE = (
    "interop",
    "interopvault",
    "interop",
    "mySecret",
    "what only the bound pod reads",
)
COMMAND_SECONDS = 300.0  # a machine may be busy with everything else
Record = Callable[[str, str, str], None]
"""Writes a row of docs/interop.md: client, version, what it did."""
LOOP = """
mkdir -p /tmp/home && export HOME=/tmp/home
while :; do
  for given in /commands/*.cmd; do
    [ -e "$given" ] || continue
    base="${given%.cmd}"
    mv "$given" "$base.sh"
    sh "$base.sh" >"$base.out" 2>"$base.err"
    echo $? >"$base.status" && mv "$base.status" "$base.done"
  done
  sleep 0.05
done
"""


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of a command."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """Return the output, decoded; the command must have succeeded."""
        assert self.status == 0, f"{self.out}\n{self.err}"
        return json.loads(self.out) if self.out.strip() else None


@dataclass
class Pod:
    """A pod that runs commands, one at a time."""

    files: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, script: str) -> Done:
        """Run a shell script in the pod, and wait for it."""
        base = self.files / f"{next(self.numbers):03}"
        base.with_suffix(".new").write_text(script)
        base.with_suffix(".new").rename(base.with_suffix(".cmd"))
        until(base.with_suffix(".done").exists, f"`{script[-200:]}` in the pod", COMMAND_SECONDS)
        out, err = (base.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err"))
        return Done(int(base.with_suffix(".done").read_text()), out, err)


@dataclass
class Stage:
    """The lab, its administrator, and the two pods."""

    lab: Lab
    admin: Admin
    bound: Pod
    unbound: Pod

    def on_host(self, script: str, **environment: str) -> Done:
        """Run a shell script as a user does after `eval "$(podidentity lab env)"`."""
        done = subprocess.run(
            ["/bin/sh", "-c", script],
            env={**self.lab.variables, **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def started(home: Path) -> Iterator[Stage]:
    """A lab with podidentity, a vault, an identity that may read it, and the two pods."""
    images = f"{IMAGE}={clients.CACHE},{SAMPLE}={clients.CLIENTS['go-autorest'].directory}"
    clients.CACHE.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.ExitStack() as opened,
        lab(home, "interop", user=User(environment={"PODIDENTITY_LAB_IMAGES": images})) as one,
    ):
        one.kubectl("create", "-f", str(ROOT / "deploy/infra/deployment-rbac.yaml"))
        admin = Admin(one.variables)
        opened.callback(admin.close)
        client_id = _azure(admin)
        for manifest in _binding(admin, client_id):
            one.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
        pods = [_pod(one, name, label) for name, label in (("bound", IDENTITY), ("unbound", ""))]
        one.kubectl("rollout", "status", "daemonset/nmi", "--timeout=60s")
        until(lambda: _assigned(one), "the bound pod's identity to be Assigned", 60)
        yield Stage(one, admin, *pods)


def _azure(admin: Admin) -> str:
    """Create in Azure what the walk-through creates, under other names; return the identity's client ID."""
    admin.create_group(GROUP, "westeurope")
    admin.create_vault(GROUP, VAULT, "westeurope")
    admin.set_secret(VAULT, SECRET, VALUE)
    identity = admin.create_identity(GROUP, IDENTITY, "westeurope")["properties"]
    admin.assign_role("Reader", identity["principalId"], admin.group(GROUP))
    admin.set_policy(GROUP, VAULT, identity["clientId"])
    admin.assign_role("Managed Identity Operator", admin.cluster_principal(), admin.identity(GROUP, IDENTITY))
    return str(identity["clientId"])


def _binding(admin: Admin, client_id: str) -> tuple[Json, Json]:
    base = {"apiVersion": "aadpodidentity.k8s.io/v1", "metadata": {"name": IDENTITY, "namespace": "default"}}
    identity = {"type": 0, "resourceID": admin.identity(GROUP, IDENTITY), "clientID": client_id}
    binding = {"azureIdentity": IDENTITY, "selector": IDENTITY}
    return (
        {**base, "kind": "AzureIdentity", "spec": identity},
        {**base, "kind": "AzureIdentityBinding", "spec": binding},
    )


def _pod(one: Lab, name: str, label: str) -> Pod:
    token = {"serviceAccountToken": {"path": "token", "audience": "api://AzureADTokenExchange"}}
    volumes: list[Mapping[str, Any]] = [
        {"name": "commands", "hostPath": {"path": f"/commands/{name}"}},
        {"name": "exchange", "projected": {"sources": [token]}},
    ]
    mounts = [{"name": "commands", "mountPath": "/commands"}, {"name": "exchange", "mountPath": "/exchange"}]
    container = {"name": "clients", "image": f"{IMAGE}:1", "command": ["/bin/sh", "-c", LOOP], "volumeMounts": mounts}
    labels = {"app": name, **({"aadpodidbinding": label} if label else {})}
    spec = {"nodeName": "node-0", "containers": [container], "volumes": volumes}
    metadata = {"name": name, "namespace": "default", "labels": labels}
    one.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    until(lambda: one.is_ready(name), f"pod {name} to be ready", 60)
    return Pod(one.directory / "nodes" / "node-0" / "commands" / name)


def _assigned(one: Lab) -> bool:
    items = one.get("azureassignedidentities", "-A")["items"]
    return [item.get("status", {}).get("status") for item in items] == ["Assigned"]
