"""Which objects stand in which file, and what the file's header says."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from deployment import broker, crds, demo, mic, rights, webhook, workloads
from deployment.settings import NMI_ACCOUNT, Images, Installation, Json


@dataclass(frozen=True, slots=True)
class File:
    """A generated file: its path below the repository, its header, and its objects in order."""

    path: str
    header: str
    objects: tuple[Json, ...]


def all_files(images: Images) -> tuple[File, ...]:
    """Return every generated file."""
    return (
        *_replacing(Installation(images)),
        *_new(images),
        *_broker(images),
        *_webhook(images),
        *_demo_and_chart(images),
    )


def _replacing(with_rbac: Installation) -> Iterator[File]:
    """Yield the files that replace aad-pod-identity, with its file names, namespace and defaults."""
    without = replace(with_rbac, rbac=False)
    yield File("deploy/infra/deployment-rbac.yaml", _RBAC, _standard(with_rbac))
    yield File("deploy/infra/deployment.yaml", _NO_RBAC, _standard(without))
    no_azure_json = replace(with_rbac, azure_json=False)
    yield File("deploy/infra/noazurejson/deployment-rbac.yaml", _NO_AZURE_JSON, _standard(no_azure_json))
    yield File("deploy/infra/noazurejson/deployment.yaml", _NEITHER, _standard(replace(without, azure_json=False)))
    managed = replace(with_rbac, managed=True, namespace="kube-system")
    yield File("deploy/infra/managed-mode-deployment.yaml", _MANAGED, _managed(managed))
    yield File("deploy/infra/mic-exception.yaml", _EXCEPTIONS, tuple(mic.exceptions(with_rbac)))
    yield File("deploy/infra/uninstall.yaml", _UNINSTALL, (workloads.uninstaller(with_rbac),))
    taint = tuple(workloads.startup_taint(replace(with_rbac, startup_taint=True)))
    yield File("deploy/infra/startup-taint.yaml", _STARTUP_TAINT, taint)


def _new(images: Images) -> Iterator[File]:
    """Yield the files of a new installation: its own namespace, namespaced, only rights that everybody needs."""
    new = Installation(images, namespace=NAMESPACE, namespaced=True, every_secret=False)
    yield File("deploy/podidentity/standard.yaml", _NEW, (_namespace(), *_standard(new)))
    no_azure_json = replace(new, azure_json=False)
    yield File("deploy/podidentity/no-azure-json.yaml", _NEW_NO_AZURE_JSON, (_namespace(), *_standard(no_azure_json)))
    managed = replace(new, managed=True)
    yield File("deploy/podidentity/managed.yaml", _NEW_MANAGED, (_namespace(), *_managed(managed)))
    with_broker = replace(managed, broker=True)
    yield File("deploy/podidentity/broker.yaml", _NEW_BROKER, (_namespace(), *_managed(with_broker)))
    yield File("deploy/podidentity/uninstall.yaml", _NEW_UNINSTALL, (workloads.uninstaller(new),))
    yield File("deploy/podidentity/secrets.yaml", _SECRETS, tuple(rights.secret_reader(new, "NAMESPACE")))
    taint = tuple(workloads.startup_taint(replace(new, startup_taint=True)))
    yield File("deploy/podidentity/startup-taint.yaml", _STARTUP_TAINT, taint)


def _broker(images: Images) -> Iterator[File]:
    yield File("deploy/broker/broker.yaml", _BROKER, broker.installation(images))
    yield File("deploy/broker/bundle.yaml", _BUNDLE, broker.bundle(images))
    yield File("deploy/broker/nmi.yaml", _BROKER_FOR_NMI, broker.nmi(images, NAMESPACE, NMI_ACCOUNT))
    yield File("deploy/broker/grant.yaml", _GRANT, broker.grant())


def _webhook(images: Images) -> Iterator[File]:
    yield File("deploy/webhook/webhook.yaml", _WEBHOOK, webhook.installation(images))


def _demo_and_chart(images: Images) -> Iterator[File]:
    yield File("deploy/demo/aadpodidentity.yaml", _IDENTITY, (demo.identity(),))
    yield File("deploy/demo/aadpodidentitybinding.yaml", _BINDING, (demo.binding(),))
    yield File("deploy/demo/deployment.yaml", _DEMO, (demo.deployment(images),))
    yield File("charts/aad-pod-identity/crds/crd.yaml", _CHART, crds.all_definitions())
    yield File("charts/aad-pod-identity/files/rights.yaml", _CHART_RIGHTS, (rights.chart_rules(),))


def _standard(installation: Installation) -> tuple[Json, ...]:
    secret = () if installation.azure_json else (mic.credentials(installation),)
    return (
        *crds.all_definitions(),
        *(rights.nmi_rights(installation) if installation.rbac else ()),
        workloads.daemon_set(installation),
        *(rights.mic_rights(installation) if installation.rbac else ()),
        *secret,
        workloads.deployment(installation),
        workloads.disruption_budget(installation),
    )


def _managed(installation: Installation) -> tuple[Json, ...]:
    return (
        crds.binding(),
        crds.identity(),
        crds.exception(),
        *rights.nmi_rights(installation),
        workloads.daemon_set(installation),
    )


def _namespace() -> Json:
    """Return the namespace, `privileged` in Pod Security: NMI uses the node's network, MIC reads a file of the node."""
    labels = {f"pod-security.kubernetes.io/{mode}": "privileged" for mode in ("enforce", "audit", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


NAMESPACE = "podidentity-system"
_NEW = """\
Installs NMI and MIC where there was no aad-pod-identity: kubectl apply -f deploy/podidentity/standard.yaml
Pods use identities of their own namespace. For who has aad-pod-identity: deploy/infra."""
_NEW_NO_AZURE_JSON = """\
The same where nodes have no azure.json: fill in the Secret, then kubectl apply -f this file."""
_NEW_MANAGED = """\
Installs NMI alone, in managed mode: identities are put on the nodes by you, bindings decide which pod uses which.
kubectl apply -f deploy/podidentity/managed.yaml"""
_NEW_BROKER = """\
Installs NMI alone where tokens come from the broker (deploy/broker), on any Kubernetes: no Azure machine, no MIC. It
answers the metadata address, and serves the token-file door on port 2580 of each node.
kubectl apply -f deploy/podidentity/broker.yaml
Then tell the broker of it: deploy/broker/nmi.yaml."""
_NEW_UNINSTALL = """\
Removes the interception from every node. Delete the DaemonSet nmi first, or it puts the interception up again:
  kubectl -n podidentity-system delete daemonset nmi --cascade=foreground
  kubectl create -f deploy/podidentity/uninstall.yaml
  kubectl -n podidentity-system rollout status daemonset/nmi-uninstall
  kubectl delete -f deploy/podidentity/uninstall.yaml
From then on every pod reaches the metadata service, and gets tokens of whatever identity its machine has: take those
off first (docs/troubleshoot/install.md)."""
_SECRETS = """\
Lets NMI read the Secrets of one namespace, for AzureIdentities of type 1 and 2: put its name for NAMESPACE, and apply.
One RoleBinding for each such namespace."""
_STARTUP_TAINT = """\
Lets NMI take the taint podidentity.io/starting off its own node, and change nothing else of any node: the right, and a
ValidatingAdmissionPolicy (Kubernetes 1.30 and newer) that cuts it. See docs/configure/startup-taint.md."""
_RBAC = """\
Replaces aad-pod-identity on a cluster with RBAC: kubectl apply -f deploy/infra/deployment-rbac.yaml
Object names, selectors and defaults are its own. For a new installation: deploy/podidentity."""
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
_EXCEPTIONS = """\
Lets pods with MIC's labels, and the add-ons of AKS, ask the node's metadata service: kubectl create -f this file.
MIC does not need it. With it, who may create pods in `default` may use every identity of a node."""
_UNINSTALL = """\
Removes the interception from every node. Delete the DaemonSet nmi first, or it puts the interception up again:
  kubectl delete daemonset nmi --cascade=foreground
  kubectl create -f deploy/infra/uninstall.yaml
  kubectl rollout status daemonset/nmi-uninstall
  kubectl delete -f deploy/infra/uninstall.yaml
From then on every pod reaches the metadata service, and gets tokens of whatever identity its machine has: take those
off first (docs/troubleshoot/install.md)."""
_BROKER = f"""\
Installs the broker in the namespace {broker.NAME}. Put your tenant's ID in:
  sed s/{broker.TENANT}/TENANT_ID/ deploy/broker/broker.yaml | kubectl apply -f -
Then let each identity trust system:serviceaccount:{broker.NAME}:{broker.NAME}: docs/configure/broker.md."""
_BUNDLE = """\
Brings the broker's CA into one namespace, where its pods can mount it: put its name for NAMESPACE, apply, and tell the
broker (of several namespaces with commas between, once for all):
  kubectl -n podidentity-broker patch deployment podidentity-broker --type=json -p \\
    '[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--bundle-namespaces=NAMESPACE"}]'"""
_BROKER_FOR_NMI = f"""\
Lets NMI of {NAMESPACE} use the broker, which may look at pods then, and keeps its CA there. Apply, and tell
it:
  kubectl -n {broker.NAME} patch deployment {broker.NAME} --type=json -p \\
    '[{{"op": "add", "path": "/spec/template/spec/containers/0/args/-",
       "value": "--nmi-service-accounts={NAMESPACE}/{NMI_ACCOUNT}"}},
      {{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--bundle-namespaces={NAMESPACE}"}}]'
Where other namespaces have the bundle, too, give all of them in one --bundle-namespaces, with commas between."""
_GRANT = """\
Lets all service accounts of one namespace use one identity through the broker: put the identity's client ID for
CLIENT_ID and the namespace for NAMESPACE, and apply. For one service account: kind ServiceAccount as the subject."""
_WEBHOOK = f"""\
Installs workload identity's webhook in the namespace {webhook.NAMESPACE}. Put your tenant's ID in:
  sed s/{webhook.TENANT}/TENANT_ID/ deploy/webhook/webhook.yaml | kubectl apply -f -
Object names are azure-workload-identity's: docs/configure/webhook.md says how to replace it."""
_IDENTITY = "An AzureIdentity to fill in: replace the words in capitals."
_BINDING = "Binds pods with the label aadpodidbinding=demo to the AzureIdentity demo-aad1."
_DEMO = "A pod that asks for a token of its identity: replace the words in capitals."
_CHART = "The custom resource definitions. Helm installs them once and never upgrades them; kubectl apply does."
_CHART_RIGHTS = "The rules of the chart's roles, read by templates/rbac.yaml: the same as in deploy/."
