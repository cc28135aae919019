"""Files of ConfigMaps and Secrets in a pod of the lab change with their objects."""

import base64
from pathlib import Path
from typing import Any

import pytest

from contract.servers import TwoLines
from podidentity_lab.fabric import NodeNetwork
from podidentity_lab.kubelet import Cluster, Node, volumes
from podidentity_lab.kubelet.object_files import ObjectFiles
from podidentity_lab.kubernetes import Kubernetes
from podidentity_lab.oci.library import Library
from podidentity_lab.oci.store import Store

Json = dict[str, Any]
PROJECTED = {"projected": {"defaultMode": 0o600, "sources": [{"configMap": {"name": "ca"}}]}}


def write(kubernetes: Kubernetes, data: dict[str, str]) -> None:
    """Write the ConfigMap and the Secret `ca`."""
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
    for resource, content in (("configmaps", data), ("secrets", encoded)):
        if any(item["metadata"]["name"] == "ca" for item in kubernetes.storage.list(resource, "default")):
            kubernetes.storage.delete(resource, "default", "ca")
        kubernetes.storage.create(resource, {"metadata": {"name": "ca", "namespace": "default"}, "data": content})


@pytest.mark.parametrize("volume", [{"configMap": {"name": "ca"}}, {"secret": {"secretName": "ca"}}, PROJECTED])
def test_files_follow_their_object(tmp_path: Path, volume: Json) -> None:
    """Changed values, new keys and removed keys show in the files, whose mode stays.

    The files stay when their object is deleted.
    """
    kubernetes = Kubernetes(TwoLines())
    token, library = kubernetes.service_account_token, Library(Store(tmp_path))
    cluster = Cluster(kubernetes.storage, token, library, "", "", tmp_path, bridge=False, rootless=True)
    node = Node(NodeNetwork("node-0", 0), "", tmp_path, cluster)
    pod = {"metadata": {"name": "p", "namespace": "default"}, "spec": {"volumes": [{"name": "v", **volume}]}}
    write(kubernetes, {"ca.crt": "one", "other": "x"})
    paths = volumes.prepare(node, pod, tmp_path / "volumes")
    files = ObjectFiles(node, pod, paths)
    file = paths["v"] / "ca.crt"
    mode = file.stat().st_mode
    with file.open() as reader:
        write(kubernetes, {"ca.crt": "two", "new": "y"})
        files.refresh()
        assert reader.read() == "one"  # an open file keeps its content
    assert {path.name: path.read_text() for path in paths["v"].iterdir()} == {"ca.crt": "two", "new": "y"}
    assert file.stat().st_mode == mode
    kubernetes.storage.delete("configmaps", "default", "ca")
    kubernetes.storage.delete("secrets", "default", "ca")
    files.refresh()
    assert file.read_text() == "two"


def test_a_pod_without_such_volumes_is_not_looked_after(tmp_path: Path) -> None:
    """A pod without such volumes has no files to refresh."""
    kubernetes = Kubernetes(TwoLines())
    token, library = kubernetes.service_account_token, Library(Store(tmp_path))
    cluster = Cluster(kubernetes.storage, token, library, "", "", tmp_path, bridge=False, rootless=True)
    node = Node(NodeNetwork("node-0", 0), "", tmp_path, cluster)
    pod = {"metadata": {"name": "p", "namespace": "default"}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    assert not ObjectFiles(node, pod, volumes.prepare(node, pod, tmp_path / "volumes"))
