"""Which objects stand in which file, and what its header tells the reader. Called by `manifests`."""

from dataclasses import dataclass, replace

from deployment import crds, demo, mic, nmi, rights
from deployment.settings import Images, Installation, Json


@dataclass(frozen=True, slots=True)
class File:
    """One generated file: path below the repository, what it is for, its objects in order."""

    path: str
    about: str
    objects: tuple[Json, ...]


def all_files(images: Images) -> tuple[File, ...]:
    """Every generated file."""
    with_rbac = Installation(images)
    without = replace(with_rbac, rbac=False)
    return (
        File("deploy/infra/deployment-rbac.yaml", _RBAC, _standard(with_rbac)),
        File("deploy/infra/deployment.yaml", _NO_RBAC, _standard(without)),
        File(
            "deploy/infra/noazurejson/deployment-rbac.yaml",
            _NO_AZURE_JSON,
            _standard(replace(with_rbac, azure_json=False)),
        ),
        File("deploy/infra/noazurejson/deployment.yaml", _NEITHER, _standard(replace(without, azure_json=False))),
        File("deploy/infra/managed-mode-deployment.yaml", _MANAGED, _managed(with_rbac)),
        File("deploy/infra/mic-exception.yaml", _EXCEPTIONS, tuple(mic.exceptions(with_rbac))),
        File("deploy/infra/uninstall.yaml", _UNINSTALL, (nmi.uninstaller(with_rbac),)),
        File("deploy/demo/aadpodidentity.yaml", _IDENTITY, (demo.identity(),)),
        File("deploy/demo/aadpodidentitybinding.yaml", _BINDING, (demo.binding(),)),
        File("deploy/demo/deployment.yaml", _DEMO, (demo.deployment(images),)),
        File("charts/aad-pod-identity/crds/crd.yaml", _CHART, crds.all_definitions()),
        File("charts/aad-pod-identity/files/rights.yaml", _CHART_RIGHTS, (rights.chart_rules(),)),
    )


def _standard(installation: Installation) -> tuple[Json, ...]:
    secret = () if installation.azure_json else (mic.credentials(installation),)
    return (
        *crds.all_definitions(),
        *(rights.nmi_rights(installation) if installation.rbac else ()),
        nmi.daemon_set(installation),
        *(rights.mic_rights(installation) if installation.rbac else ()),
        *secret,
        mic.deployment(installation),
        mic.disruption_budget(installation),
    )


def _managed(standard: Installation) -> tuple[Json, ...]:
    installation = replace(standard, managed=True, namespace="kube-system")
    return (
        crds.binding(),
        crds.identity(),
        crds.exception(),
        *rights.nmi_rights(installation),
        nmi.daemon_set(installation),
    )


_RBAC = "Installs NMI and MIC on a cluster with RBAC: kubectl create -f deploy/infra/deployment-rbac.yaml"
_NO_RBAC = """\
Installs NMI and MIC on a cluster without RBAC: kubectl create -f deploy/infra/deployment.yaml
MIC uses the kubeconfig and the certificates of its node."""
_NO_AZURE_JSON = """\
Installs NMI and MIC where nodes have no azure.json: fill in the Secret, then kubectl create -f this file."""
_NEITHER = """\
Installs NMI and MIC on a cluster without RBAC where nodes have no azure.json: fill in the Secret, then
kubectl create -f this file. MIC uses the kubeconfig and the certificates of its node."""
_MANAGED = """\
Installs NMI alone, in managed mode: identities are put on the nodes by you, bindings decide which pod uses which.
kubectl create -f deploy/infra/managed-mode-deployment.yaml"""
_EXCEPTIONS = "Lets MIC and the add-ons of AKS ask the node's metadata service: kubectl create -f this file."
_UNINSTALL = """\
Removes the interception from every node. Delete the DaemonSet nmi first, or it puts the interception up again:
  kubectl delete daemonset nmi --cascade=foreground
  kubectl create -f deploy/infra/uninstall.yaml
  kubectl rollout status daemonset/nmi-uninstall
  kubectl delete -f deploy/infra/uninstall.yaml"""
_IDENTITY = "An AzureIdentity to fill in: replace the words in capitals."
_BINDING = "Binds pods with the label aadpodidbinding=demo to the AzureIdentity demo-aad1."
_DEMO = "A pod that asks for a token of its identity: replace the words in capitals."
_CHART = "The custom resource definitions. Helm installs them once and never upgrades them; kubectl apply does."
_CHART_RIGHTS = "The rules of the chart's roles, read by templates/rbac.yaml: the same as in deploy/."
