"""One node of the real cluster: its containerd, kubelet and kube-proxy, and the files each is told to use.

A node is the network namespace that the fabric made, and a mount namespace in which /etc and /var are the machine's
with the node's own laid over them: a hostPath leads to the node's azure.json, and nothing is written to the machine.
"""

import asyncio
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podidentity.errors import LabError
from podidentity.linux.commands import run
from podidentity_lab import cgroups
from podidentity_lab.fabric import BRIDGE, FABRIC_ADDRESS, POD_NETWORK
from podidentity_lab.linux.namespaces import NAMESPACES_DIRECTORY
from podidentity_lab.oci.library import REGISTRY_NAMES
from podidentity_lab.orchestrator import NodePlan
from podidentity_lab.real import kubeconfig, pki
from podidentity_lab.real.pki import Pki
from podidentity_lab.real.processes import finish
from podidentity_lab.real.program import Program

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins are."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
REGISTRY_PORT = 5000
"""Of the lab's registry, to pull from, on the fabric's address."""
PAUSE_IMAGE = "localhost/podidentity/pause:1"

_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_OTHER_SNAPSHOTTERS = ("aufs", "btrfs", "devmapper", "zfs")
_OVERLAID = ("etc", "var")
_LOOK_SECONDS = 0.05
_START_SECONDS = 120.0  # one second when nothing else runs


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What all nodes share. `state` is a directory in memory that they write; `cgroup` the parent of their groups.

    `registry_port` is in the names of images of the lab's registry: `localhost:PORT/app:tag`.
    """

    program: Program
    keys: Pki
    state: Path
    logs: Path
    azure_ca: str
    bridge: bool
    cgroup: str
    registry_port: int


class Machine:
    """One node."""

    def __init__(self, plan: NodePlan, settings: ClusterSettings) -> None:
        self._plan = plan
        self.is_late = plan.late
        self._settings = settings
        self.name = plan.network.name
        self.root = settings.state / self.name
        """What the node has of its own; `nodes.write_files` fills it in."""
        self._holder: asyncio.subprocess.Process
        self._socket = self.root / "containerd.sock"

    async def prepare(self) -> None:
        """Make the mount namespace and all files. Raises `HostError`."""
        await self._make_namespaces()
        base = json.loads(await run("ctr", "oci", "spec"))
        bundle = self.root / "azure-ca.pem"
        bundle.write_text(self._settings.azure_ca)
        for name, content in (
            ("base-spec.json", trusting(base, bundle)),
            ("cni/10-pods.conflist", self._pod_network()),
            ("kubelet.yaml", self._kubelet()),
            ("kube-proxy.yaml", self._kube_proxy()),
        ):
            file = self.root / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(content, indent=1))  # JSON is YAML
        (self.root / "containerd.toml").write_text(self._containerd())
        for host, text in registry_hosts(self._settings.registry_port).items():
            file = self.root / "registries" / host / "hosts.toml"
            file.parent.mkdir(parents=True)
            file.write_text(text)
        (self.root / "resolv.conf").write_text(f"nameserver {FABRIC_ADDRESS}\n")

    def containerd(self) -> Sequence[str]:
        """Return the command that runs the node's containerd."""
        return self._inside("containerd", "--config", str(self.root / "containerd.toml"))

    def kubelet(self, taints: Sequence[str]) -> Sequence[str]:
        """Return the command that runs the node's kubelet, which registers the node with these taints."""
        return self._inside(
            self._settings.program.component("kubelet"),
            f"--config={self.root / 'kubelet.yaml'}",
            f"--kubeconfig={kubeconfig.write(self._settings.keys, pki.node_user(self.name), self.root)}",
            f"--root-dir={self.root / 'kubelet'}",
            f"--cert-dir={self.root / 'certificates'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self._plan.network.address}",
            *([f"--register-with-taints={','.join(taints)}"] if taints else []),
        )

    def kube_proxy(self) -> Sequence[str]:
        """Return the command that runs the node's kube-proxy."""
        return self._inside(self._settings.program.component("kube-proxy"), f"--config={self.root / 'kube-proxy.yaml'}")

    async def import_images(self, archives: Sequence[Path]) -> None:
        """Wait for containerd, and give it the images of every archive. Raises `LabError`."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not self._socket.exists():  # noqa: ASYNC110  # containerd makes it
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            log = self._settings.logs / self.name / "containerd.log"
            raise LabError(f"containerd on {self.name} does not start within {_START_SECONDS:g} s; see {log}") from None
        for archive in archives:
            into = ("ctr", "--address", str(self._socket), "-n", "k8s.io", "images", "import", str(archive))
            await finish(self._inside(*into))

    async def _make_namespaces(self) -> None:
        """Start a process that holds the mount and cgroup namespaces. Raises `LabError`.

        A file cannot hold a mount namespace beside named network namespaces: the kernel refuses with EINVAL.
        """
        groups = cgroups.make(self._settings.cgroup, self.name)
        enter = [f"echo $$ >{group}/cgroup.procs" for group in groups]  # what a process is in is its namespace's root
        inside = ["set -e"]
        for group, hierarchy in groups.items():
            inside += [f"echo $$ >{hierarchy}/cgroup.procs", f"mount --bind {group} {hierarchy}"]
        for name in _OVERLAID:
            work = self.root / f"{name}.work"
            work.mkdir()
            options = f"lowerdir=/{name},upperdir={self.root / name},workdir={work}"
            inside.append(f"mount -t overlay node-{name} -o {options} /{name}")
        script = shlex.quote("\n".join([*inside, "echo ok", "exec sleep infinity"]))
        entering = ["set -e", *enter, f"exec unshare --mount --propagation private --cgroup -- sh -c {script}"]
        self._holder = await asyncio.create_subprocess_exec(
            *("sh", "-c", "\n".join(entering)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = await self._holder.stdout.readline() if self._holder.stdout else b""
        if output.strip() != b"ok":
            raise LabError(f"the namespaces of {self.name} cannot be made: {output.decode(errors='replace').strip()}")

    def _inside(self, *command: str) -> tuple[str, ...]:
        # Not `ip netns exec`: it shows another /sys, without the control groups.
        namespaces = f"/proc/{self._holder.pid}/ns"
        network = NAMESPACES_DIRECTORY / self.name
        return (
            "nsenter",
            f"--net={network}",
            f"--cgroup={namespaces}/cgroup",
            f"--mount={namespaces}/mnt",
            "--",
            *command,
        )

    def _pod_network(self) -> dict[str, Any]:
        addresses = {
            "type": "host-local",
            "dataDir": str(self.root / "addresses"),
            "ranges": [[{"subnet": self._plan.network.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        if self._settings.bridge:
            plugin = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": addresses}
        else:
            plugin = {"type": "ptp", "ipam": addresses}
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "providerID": self._plan.provider_id,
            "clusterDNS": [FABRIC_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.root / "resolv.conf"),
            "podLogsDir": str(self._settings.logs / self.name / "pods"),
            "volumePluginDir": str(self.root / "volume-plugins"),
            "maxPods": 250,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": self._settings.keys.path("ca.crt")},
            },
            "authorization": {"mode": "AlwaysAllow"},  # for whoever has the API server's certificate
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,  # the machine is not the lab's alone: nothing is divided by guaranteed shares
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "localStorageCapacityIsolation": False,
            "makeIPTablesUtilChains": False,
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "registryPullQPS": 0,
        }

    def _kube_proxy(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": kubeconfig.write(self._settings.keys, pki.PROXY, self.root)},
            "hostnameOverride": self.name,
            "clusterCIDR": POD_NETWORK,
            # The machine's own limits stay: they are not a network namespace's to set.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }

    def _containerd(self) -> str:
        root = self.root
        return f"""\
version = 2
root = "{root}/images"
state = "{root}/containers"
disabled_plugins = [{", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in _OTHER_SNAPSHOTTERS)}]
[grpc]
  address = "{self._socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{root}/registries"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{root}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{root}/base-spec.json"
"""


def registry_hosts(port: int) -> dict[str, str]:
    """Return containerd's file for each name of the lab's registry, and for all others: there is no other to reach.

    A node's own loopback is not the host's. The form, `_default` included, is that of
    github.com/containerd/containerd/blob/main/docs/hosts.md.
    """
    url = f"http://{FABRIC_ADDRESS}:{REGISTRY_PORT}"
    text = f'server = "{url}"\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'
    return dict.fromkeys((*(f"{name}:{port}" for name in REGISTRY_NAMES), "_default"), text)


def trusting(spec: dict[str, Any], bundle: Path) -> dict[str, Any]:
    """Return a container that also trusts the lab's Azure, as AKS lets a node trust its users' own authorities.

    The images stay what they are: the certificate comes from the node, at the usual place and in the usual variables.
    """
    bundle_mount = {"destination": CERTIFICATES, "type": "bind", "source": str(bundle), "options": ["rbind", "ro"]}
    process = spec["process"]
    variables = [*process.get("env", []), *(f"{name}={CERTIFICATES}" for name in _CERTIFICATE_VARIABLES)]
    return {**spec, "mounts": [*spec["mounts"], bundle_mount], "process": {**process, "env": variables}}
