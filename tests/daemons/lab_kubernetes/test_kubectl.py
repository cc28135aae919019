"""The embedded Kubernetes serves the real kubectl."""

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from podidentity_lab.kubernetes import Kubernetes

Kubectl = Callable[..., subprocess.CompletedProcess[str]]

DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: azureidentities.aadpodidentity.k8s.io}
spec:
  group: aadpodidentity.k8s.io
  scope: Namespaced
  names: {kind: AzureIdentity, listKind: AzureIdentityList, plural: azureidentities, singular: azureidentity}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              type: {type: integer, enum: [0, 1, 2]}
              clientID: {type: string}
              ClientID: {type: string}
"""
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: nmi}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nmi}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: nmi}
subjects: [{kind: ServiceAccount, name: nmi, namespace: default}]
"""
IDENTITY: dict[str, Any] = {
    "apiVersion": "aadpodidentity.k8s.io/v1",
    "kind": "AzureIdentity",
    "metadata": {"name": "reader"},
    "spec": {"type": 0, "ClientID": "c"},
}
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web", "image": "x:1"}]}},
    },
}


def good(done: subprocess.CompletedProcess[str]) -> str:
    """Return the output of a command that must succeed."""
    assert done.returncode == 0, done.stderr
    return done.stdout


def add_node(kubernetes: Kubernetes, name: str) -> None:
    """Register a node, as a kubelet does."""
    kubernetes.storage.create(
        "nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {}}, "spec": {}}
    )


def make_ready(kubernetes: Kubernetes) -> None:
    """Play all kubelets: every pod on a node runs and is ready."""

    def run(pod: dict[str, Any]) -> None:
        pod["status"] |= {
            "phase": "Running",
            "podIP": "10.244.1.2",
            "conditions": [{"type": "Ready", "status": "True"}],
        }

    for pod in kubernetes.storage.list("pods"):
        if pod["spec"].get("nodeName"):
            kubernetes.storage.change("pods", pod["metadata"]["namespace"], pod["metadata"]["name"], run)


def test_a_custom_resource_is_served_once_it_is_defined(kubectl: Kubectl) -> None:
    """Objects of the new kind are created, labelled, patched and deleted, with all fields of the schema."""
    good(kubectl("create", "-f", "-", stdin=DEFINITION))
    good(kubectl("wait", "--for=condition=Established", "crd/azureidentities.aadpodidentity.k8s.io", "--timeout=10s"))
    good(kubectl("create", "-f", "-", stdin=json.dumps(IDENTITY)))
    good(kubectl("label", "azureidentity", "reader", "team=a"))
    good(kubectl("patch", "azureidentity", "reader", "--type=merge", "-p", '{"spec":{"clientID":"new"}}'))
    stored = json.loads(good(kubectl("get", "azureidentities", "-l", "team=a", "-o", "json")))["items"]
    assert stored[0]["spec"] == {"type": 0, "ClientID": "c", "clientID": "new"}
    good(kubectl("delete", "azureidentity", "reader"))
    assert "not found" in kubectl("get", "azureidentity", "reader").stderr


def test_apply_creates_and_then_changes(kubectl: Kubectl) -> None:
    """`kubectl apply` creates an object, and a second `apply` changes it."""
    good(kubectl("apply", "-f", "-", stdin=DEFINITION))
    assert "created" in good(kubectl("apply", "-f", "-", stdin=json.dumps(IDENTITY)))
    changed = {**IDENTITY, "spec": {"type": 0, "clientID": "d"}}
    assert "configured" in good(kubectl("apply", "-f", "-", stdin=json.dumps(changed)))
    stored = json.loads(good(kubectl("get", "azureidentity", "reader", "-o", "json")))
    assert stored["spec"] == {"type": 0, "clientID": "d"}


def test_an_unknown_field_is_named(kubectl: Kubectl) -> None:
    """With strict validation, kubectl's default, it is refused by name; without, it is dropped."""
    good(kubectl("create", "-f", "-", stdin=DEFINITION))
    wrong = {**IDENTITY, "spec": {"CLIENTID": "c"}}
    assert 'unknown field "spec.CLIENTID"' in kubectl("create", "-f", "-", stdin=json.dumps(wrong)).stderr
    good(kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(wrong)))
    assert json.loads(good(kubectl("get", "azureidentity", "reader", "-o", "json")))["spec"] == {}


def test_a_value_outside_the_schema_is_refused(kubectl: Kubectl) -> None:
    """The refusal names the field whose value is outside the schema."""
    good(kubectl("create", "-f", "-", stdin=DEFINITION))
    wrong = {**IDENTITY, "spec": {"type": 7}}
    refused = kubectl("create", "-f", "-", stdin=json.dumps(wrong))
    assert refused.returncode != 0
    assert "spec.type" in refused.stderr


def test_a_deployment_becomes_pods_on_all_nodes(kubectl: Kubectl, kubernetes: Kubernetes) -> None:
    """A Deployment's pods are scheduled on both nodes, and `rollout status` waits until they are ready."""
    add_node(kubernetes, "n1")
    add_node(kubernetes, "n2")
    good(kubectl("create", "-f", "-", stdin=json.dumps(DEPLOYMENT)))
    done = threading.Event()

    def play() -> None:
        while not done.wait(0.05):
            make_ready(kubernetes)

    kubelets = threading.Thread(target=play)
    kubelets.start()
    try:
        assert "successfully rolled out" in good(kubectl("rollout", "status", "deployment/web", "--timeout=20s"))
    finally:
        done.set()
        kubelets.join()
    pods = json.loads(good(kubectl("get", "pods", "-l", "app=web", "-o", "json")))["items"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"n1", "n2"}
    name = pods[0]["metadata"]["name"]
    assert good(kubectl("logs", name)) == f"{name}/web\nsecond\n"


def test_a_load_balancer_gets_an_address(kubectl: Kubectl, kubernetes: Kubernetes) -> None:
    """The Service has a cluster IP and an external IP."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"app": "web"}},
    }
    good(kubectl("create", "-f", "-", stdin=json.dumps(service)))
    good(kubectl("wait", "service/web", "--for=jsonpath={.status.loadBalancer.ingress}", "--timeout=10s"))
    stored = kubernetes.storage.get("services", "default", "web")
    assert stored["status"]["loadBalancer"]["ingress"][0]["ip"].startswith("10.98.0.")
    assert stored["spec"]["clusterIP"].startswith("10.96.")


def test_a_stale_write_is_a_conflict(kubectl: Kubectl, kubernetes: Kubernetes) -> None:
    """An object that has changed since it was read cannot be replaced with what was read."""
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    good(kubectl("create", "-f", "-", stdin=json.dumps(made)))
    stale = json.loads(good(kubectl("get", "configmap", "c", "-o", "json")))
    kubernetes.storage.change("configmaps", "default", "c", lambda obj: obj["data"].update(a="2"))
    refused = kubectl("replace", "-f", "-", stdin=json.dumps(stale))
    assert "the object has been modified" in refused.stderr


def test_a_service_account_may_do_what_its_role_says(kubectl: Kubectl, kubernetes: Kubernetes) -> None:
    """With a pod's token kubectl lists what the role allows, and nothing else."""
    good(kubectl("create", "-f", "-", stdin=ROLE))
    pod = kubernetes.storage.create("pods", {"metadata": {"name": "p", "namespace": "default"}, "spec": {}})
    bound = {"name": "p", "uid": pod["metadata"]["uid"]}
    token = kubernetes.service_account_token("default", "nmi", bound)
    good(kubectl("get", "pods", f"--token={token}"))
    refused = kubectl("get", "secrets", f"--token={token}")
    assert 'User "system:serviceaccount:default:nmi" cannot list resource "secrets"' in refused.stderr


def test_what_it_does_not_do_names_the_real_one(kubectl: Kubectl) -> None:
    """The refusal of what the embedded Kubernetes lacks names `--kubernetes=real`."""
    refused = kubectl("create", "ingress", "web", "--rule=example.com/=web:80")
    assert "--kubernetes=real" in refused.stderr
    refused = kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(DEPLOYMENT))
    assert "--kubernetes=real" in refused.stderr
