"""A served cluster with our manifests in it, and the command line pointed at it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemons.lab_kubernetes.conftest import kubernetes
from podidentity.cli import main as cli
from podidentity_lab.kubernetes import Kubernetes

__all__ = ["kubernetes"]

Run = Callable[..., int]
MANIFEST = Path(__file__).parents[3] / "deploy/infra/deployment-rbac.yaml"


@pytest.fixture
def podidentity(kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command against the cluster and returns its exit status."""
    assert kubernetes.admin_token
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def cluster(kubernetes: Kubernetes, tmp_path: Path) -> "Cluster":
    """The cluster, installed and with one node."""
    made = Cluster(kubernetes, tmp_path / "kubeconfig")
    made.install(MANIFEST)
    return made


class Cluster:
    """Puts objects where an administrator and kubelets would."""

    def __init__(self, kubernetes: Kubernetes, kubeconfig: Path) -> None:
        self.storage = kubernetes.storage
        self._kubeconfig = kubeconfig

    def install(self, manifest: Path) -> None:
        """Create the objects of a manifest, but for its workloads, through the API."""
        import httpx2  # noqa: PLC0415  # only here

        config = yaml.safe_load(self._kubeconfig.read_text())
        token = config["users"][0]["user"]["token"]
        cluster = config["clusters"][0]["cluster"]
        import ssl  # noqa: PLC0415  # likewise

        trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
        headers = {"Authorization": f"Bearer {token}"}
        with httpx2.Client(base_url=cluster["server"], verify=trust, headers=headers, trust_env=False) as http:
            for obj in yaml.safe_load_all(manifest.read_text()):
                if obj and obj["kind"] not in {"DaemonSet", "Deployment"}:
                    answer = http.post(_collection(obj), json=obj)
                    assert answer.status_code in {201, 409}, answer.text

    def node(self, name: str) -> None:
        """Add a node."""
        metadata = {"name": name, "labels": {"kubernetes.io/os": "linux"}}
        self.storage.create("nodes", {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}})

    def pod(self, name: str, node: str, *, labels: dict[str, str], ready: bool = True, **spec: Any) -> None:
        """Add a running pod."""
        containers = spec.pop("containers", [{"name": "app", "image": "app"}])
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}
        self.storage.create(
            "pods",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": labels},
                "spec": {"nodeName": node, "containers": containers, **spec},
                "status": status,
            },
        )

    def daemon(self, component: str, node: str, *arguments: str, ready: bool = True) -> None:
        """Add a pod of MIC or NMI."""
        self.pod(
            f"{component}-{node}",
            node,
            labels={"component": component},
            ready=ready,
            serviceAccountName=f"aad-pod-id-{component}-service-account",
            containers=[{"name": component, "image": f"podidentity/{component}:2.0.0", "args": list(arguments)}],
        )

    def healthy(self) -> None:
        """Add one node with MIC and NMI, and the lock of a MIC that leads."""
        self.node("n1")
        self.daemon("mic", "n1")
        self.daemon("nmi", "n1")
        annotation = '{"holderIdentity": "mic-n1", "leaseDurationSeconds": 15}'
        annotations = {"control-plane.alpha.kubernetes.io/leader": annotation}
        metadata = {"name": "aad-pod-identity-mic", "namespace": "default", "annotations": annotations}
        self.storage.create("endpoints", {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata})


def _collection(obj: dict[str, Any]) -> str:
    group, _, version = obj["apiVersion"].rpartition("/")
    start = f"/apis/{group}/{version}" if group else f"/api/{version}"
    namespace = obj["metadata"].get("namespace")
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{start}{inside}/{obj['kind'].lower()}s"
