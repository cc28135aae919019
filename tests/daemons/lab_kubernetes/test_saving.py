"""Objects of one embedded Kubernetes are saved and restored in another."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.servers import embedded
from podidentity.errors import LabError
from podidentity_lab.kubernetes import Kubernetes
from waiting import until

OBJECTS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: wishes.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Wish, listKind: WishList, plural: wishes, singular: wish}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {a: {type: string}, b: {type: string}}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: shop}
stringData: {value: hidden}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: outside, namespace: shop}
subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 80}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: shop}
spec: {nodeName: n1, containers: [{name: main, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: finished, namespace: shop}
spec: {containers: [{name: main, image: x}]}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: lock, namespace: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "x:1"}]}}
"""
WISH: dict[str, Any] = {
    "apiVersion": "example.com/v1",
    "kind": "Wish",
    "metadata": {"name": "one", "namespace": "shop"},
}


def kubectl(kubeconfig: Path, *words: str, stdin: str = "") -> str:
    """Run a kubectl command that must succeed; return its output."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("kubectl")), *words],
        input=stdin,
        env={"KUBECONFIG": str(kubeconfig), "HOME": str(kubeconfig.parent), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def uids(cluster: Kubernetes, *resources: str) -> dict[str, str]:
    """Return the UIDs of a namespace's objects by kind and name."""
    objects = [(resource, obj["metadata"]) for resource in resources for obj in cluster.storage.list(resource, "shop")]
    return {f"{resource}/{metadata['name']}": metadata["uid"] for resource, metadata in objects}


def test_objects_go_on_and_what_the_cluster_derives_is_made_anew(tmp_path: Path) -> None:
    """Objects keep their UIDs; a Deployment's pods are created anew by its ReplicaSet, which is the same."""
    kept = ("secrets", "services", "deployments.apps", "replicasets.apps", "wishes.example.com", "serviceaccounts")
    with embedded(tmp_path) as (kubeconfig, first):
        kubectl(kubeconfig, "create", "-f", "-", stdin=OBJECTS)
        wish = json.dumps({**WISH, "spec": {"a": "1", "b": "2"}})
        kubectl(kubeconfig, "apply", "--server-side", "-f", "-", stdin=wish)
        first.storage.change("pods", "shop", "finished", lambda pod: pod["status"].update(phase="Succeeded"))
        until(lambda: len(first.storage.list("pods", "shop")) == 4, "the Deployment's pods")
        until(lambda: "serviceaccounts/default" in uids(first, "serviceaccounts"), "the service account")
        earlier, pods = uids(first, *kept), uids(first, "pods")
        saved = json.loads(json.dumps(first.save()))
    with embedded(tmp_path, backup=saved) as (kubeconfig, second):
        assert uids(second, *kept) == earlier
        until(lambda: len(second.storage.list("pods", "shop")) == 3, "pods of the Deployment in the second cluster")
        until(lambda: len(second.storage.list("endpoints", "shop")) == 2, "Endpoints")
        assert uids(second, *kept) == earlier
        assert pods.items() & uids(second, "pods").items() == {("pods/alone", pods["pods/alone"])}
        alone = second.storage.get("pods", "shop", "alone")
        assert (alone["spec"].get("nodeName"), alone["status"]) == (None, {"phase": "Pending"})
        assert second.storage.get("endpoints", "shop", "outside")["subsets"][0]["addresses"] == [{"ip": "192.0.2.1"}]
        assert second.storage.list("leases.coordination.k8s.io") == []
        kubectl(kubeconfig, "apply", "--server-side", "-f", "-", stdin=json.dumps({**WISH, "spec": {"a": "1"}}))
        spec = json.loads(kubectl(kubeconfig, "get", "wish", "one", "-n", "shop", "-o", "json"))["spec"]
        assert spec == {"a": "1"}, "what its manager no longer applies is gone"


@pytest.mark.parametrize("saved", [{}, {"format": 0, "objects": []}, {"format": 1, "objects": [{"resource": "x"}]}])
def test_what_is_no_saved_kubernetes_is_a_sentence(tmp_path: Path, saved: dict[str, Any]) -> None:
    """The sentence says that the saved Kubernetes cannot be used, and to start a fresh lab."""
    with pytest.raises(LabError, match=r"^the saved Kubernetes .*start a fresh lab"), embedded(tmp_path, backup=saved):
        pass
