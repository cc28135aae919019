"""Every manifest of `deploy/` and of the walk-through through the real kubectl, with its validation on."""

from pathlib import Path

import pytest

from daemons.lab_kubernetes.conftest import Kubectl
from podidentity_lab.kubernetes import Kubernetes

REPOSITORY = Path(__file__).parents[3]
EXAMPLE = REPOSITORY / "examples" / "keyvault-app"
DEFINITIONS = str(REPOSITORY / "charts" / "aad-pod-identity" / "crds" / "crd.yaml")
INSTALLATIONS = sorted(path for path in (REPOSITORY / "deploy" / "infra").rglob("*deployment*.yaml"))
OTHERS = [
    *sorted((REPOSITORY / "deploy" / "demo").glob("*.yaml")),
    REPOSITORY / "deploy" / "infra" / "mic-exception.yaml",
    REPOSITORY / "deploy" / "infra" / "uninstall.yaml",
]


@pytest.mark.parametrize("path", INSTALLATIONS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_an_empty_cluster_takes_each_installation(kubectl: Kubectl, path: Path) -> None:
    """`kubectl create -f` of each manifest succeeds without a warning, as a dry run and then really."""
    for dry in (["--dry-run=client"], []):
        done = kubectl("create", *dry, "-f", str(path))
        assert (done.returncode, done.stderr) == (0, "")


def test_the_demo_the_exceptions_and_the_uninstaller_are_taken(kubectl: Kubectl) -> None:
    """They are created after an installation, as their users do it."""
    assert kubectl("create", "namespace", "kube-system").returncode in {0, 1}
    assert kubectl("create", "-f", DEFINITIONS).returncode == 0
    for path in OTHERS:
        done = kubectl("create", "-f", str(path))
        assert (done.returncode, done.stderr) == (0, ""), path


def test_the_walk_throughs_manifests_are_kept_as_they_are(kubectl: Kubectl, kubernetes: Kubernetes) -> None:
    """Their spelling of 2018 passes strict validation, and none of their fields is pruned."""
    assert kubectl("create", "-f", DEFINITIONS).returncode == 0
    for name in ("azureidentity", "azureidentitybinding", "keyvaultsample"):
        done = kubectl("apply", "--validate=strict", "-f", str(EXAMPLE / f"{name}.yaml"))
        assert (done.returncode, done.stderr) == (0, "")
    identity = kubernetes.storage.get("azureidentities.aadpodidentity.k8s.io", "default", "keyvaultsampleidentity")
    assert identity["spec"].keys() == {"type", "ResourceID", "ClientID"}
    binding = kubernetes.storage.get(
        "azureidentitybindings.aadpodidentity.k8s.io", "default", "keyvaultsampleidentity-binding"
    )
    assert binding["spec"] == {"AzureIdentity": "keyvaultsampleidentity", "Selector": "keyvaultsampleidentity"}
