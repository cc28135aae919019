"""`podidentity migrate` on a cluster with both predecessors' objects: the API server accepts what it writes."""

from typing import TYPE_CHECKING

import pytest
import yaml

import make
from podidentity.core.model import crd

if TYPE_CHECKING:
    from daemons.cli.conftest import Cluster, Run

WRITER = "bbbbbbbb-bbbb-cccc-dddd-eeeeeeeeeeee"
IDENTITIES = "azureidentities.aadpodidentity.k8s.io"


def both(cluster: "Cluster") -> None:
    """Add a bound pod, and a service account of workload identity."""
    cluster.healthy()
    cluster.pod("web", "n1", labels={"aadpodidbinding": "reader"}, serviceAccountName="app")
    cluster.storage.create(IDENTITIES, crd.render_identity(make.identity()))
    cluster.storage.create("azureidentitybindings.aadpodidentity.k8s.io", crd.render_binding(make.binding()))
    annotations = {"azure.workload.identity/client-id": WRITER}
    metadata = {"name": "modern", "namespace": "default", "annotations": annotations}
    cluster.storage.create("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})


def test_what_it_writes_makes_the_grants(
    cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]
) -> None:
    """The standard output has nothing but YAML: the identity, and a role and binding for each grant."""
    both(cluster)
    assert podidentity("migrate", "--to", "broker") == 0
    manifests = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [item["kind"] for item in manifests] == [
        "AzureIdentity",
        *("ClusterRole", "ClusterRoleBinding", "ClusterRole", "ClusterRoleBinding"),
    ]
    for item in manifests[1:]:
        cluster.storage.create(f"{item['kind'].lower()}s.rbac.authorization.k8s.io", item)


def test_check_only_reports(cluster: "Cluster", podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` reports a pod that no controller owns, with exit status 1 and without a manifest."""
    both(cluster)
    assert podidentity("migrate", "--to", "token-file", "--check", "-o", "json") == 1
    output = capsys.readouterr().out
    assert '"kind": "Migration"' in output
    assert "Pod default/web: its pods need" in output
    assert podidentity("migrate", "--to", "direct") == 0
    captured = capsys.readouterr()
    assert "podidentity credential create --identity client-of-reader" in captured.err
    assert [item["kind"] for item in yaml.safe_load_all(captured.out)] == ["ServiceAccount"]


def test_a_cluster_without_either(podidentity: "Run", capsys: pytest.CaptureFixture[str]) -> None:
    """On a cluster with neither predecessor the command says that no pod is bound to an identity."""
    assert podidentity("migrate", "--to", "broker", "--check") == 0
    assert "no pod is bound to an identity" in capsys.readouterr().out
