"""The chapter after the walk-through: a cluster that is not on Azure, the broker, one identity for some of its pods."""

import functools
import json
from typing import Any

from podidentity_lab.demo.stage import Stage, StepError, expect
from podidentity_lab.demo.story import GROUP, LOCATION

BROKER = "podidentity-broker"
SUBJECT = f"system:serviceaccount:{BROKER}:{BROKER}"
IDENTITY = "shared-identity"
ORDERS, GUESTS = "orders", "guests"
_TENANT = "00000000-0000-0000-0000-000000000000"
_PATH = "/spec/template/spec/containers/0/args/-"
_METADATA = """
import socket
try:
    socket.create_connection(("169.254.169.254", 80), timeout=2)
    print("somebody answers")
except OSError as error:
    print("nobody answers:", error)
"""
_ASK = """
import base64, json, logging
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import WorkloadIdentityCredential

logging.disable()
try:
    token = WorkloadIdentityCredential(enable_azure_proxy=True).get_token("https://vault.azure.net/.default").token
except ClientAuthenticationError as error:
    print(json.dumps({"message": error.message}))
else:
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    print(json.dumps({name: claims[name] for name in ("appid", "oid", "aud")}))
"""
"""Azure's own SDK, unchanged; the environment says where the broker is."""


def no_machine(stage: Stage) -> None:
    """Show the nodes: none is an Azure machine, and no pod finds a metadata service."""
    stage.kubectl("get", "nodes", "-o", "custom-columns=NODE:.metadata.name,PROVIDER:.spec.providerID")
    providers = {node["spec"].get("providerID") or "" for node in stage.get("nodes")["items"]}
    expect("providers of the nodes", right={""}, actual=providers)
    expect("what a pod finds at 169.254.169.254", right="nobody", actual=stage.run_in_pod("lost", _METADATA, {})[:6])
    stage.narrator.show_proof("no node is an Azure machine: there is nothing that could carry an identity")


def install_broker(stage: Stage) -> None:
    """Install the broker by its manifest, with its CA in two namespaces."""
    tenant = stage.environment["LAB_TENANT_ID"]
    for namespace in (ORDERS, GUESTS):
        stage.kubectl("create", "namespace", namespace)
    manifest = (stage.files / "deploy/broker/broker.yaml").read_text().replace(_TENANT, tenant)
    command = f"sed s/{_TENANT}/{tenant}/ deploy/broker/broker.yaml | kubectl apply -f -"
    stage.kubectl("apply", "-f", "-", stdin=manifest, show=command)
    bundle = (stage.files / "deploy/broker/bundle.yaml").read_text()
    for namespace in (ORDERS, GUESTS):
        command = f"sed s/NAMESPACE/{namespace}/ deploy/broker/bundle.yaml | kubectl apply -f -"
        stage.kubectl("apply", "-f", "-", stdin=bundle.replace("NAMESPACE", namespace), show=command)
    change = json.dumps([{"op": "add", "path": _PATH, "value": f"--bundle-namespaces={ORDERS},{GUESTS}"}])
    words = ("-n", BROKER, "patch", "deployment", BROKER, "--type=json", "-p")
    stage.kubectl(*words, change, show=f"kubectl {' '.join(words)} '{change}'")
    stage.rollout(f"deployment/{BROKER}", namespace=BROKER)
    for namespace in (ORDERS, GUESTS):
        stage.until(f"the broker's CA in namespace {namespace}", functools.partial(_has_bundle, stage, namespace))
    stage.narrator.show_proof("two replicas without privileges answer, and both namespaces have their CA")


def trust_and_grant(stage: Stage) -> None:
    """Create one federated credential, for the broker, and one grant, for one namespace."""
    group = stage.admin.create_group(GROUP, LOCATION)
    stage.az(f"group create -n {GROUP} -l {LOCATION}", group, "id")
    identity = stage.admin.create_identity(GROUP, IDENTITY, LOCATION)
    client_id = stage.facts["shared"] = identity["properties"]["clientId"]
    stage.az(f"identity create -n {IDENTITY} -g {GROUP}", identity, "clientId", "principalId")
    issuer = json.loads(stage.quietly("get", "--raw", "/.well-known/openid-configuration"))["issuer"]
    credential = stage.admin.create_federated_credential(GROUP, IDENTITY, BROKER, issuer, SUBJECT)
    command = f"--issuer {issuer} --subject {SUBJECT}"
    stage.az(f"identity federated-credential create -n {BROKER} --identity-name {IDENTITY} {command}", credential, "id")
    grant = (stage.files / "deploy/broker/grant.yaml").read_text()
    grant = grant.replace("CLIENT_ID", client_id).replace("NAMESPACE", ORDERS)
    command = f"sed 's/CLIENT_ID/{client_id}/; s/NAMESPACE/{ORDERS}/' deploy/broker/grant.yaml | kubectl apply -f -"
    stage.kubectl("apply", "-f", "-", stdin=grant, show=command)
    expect("whom the identity trusts", right=SUBJECT, actual=credential["properties"]["subject"])
    stage.narrator.show_proof(f"the identity trusts the broker, once for all; namespace {ORDERS} may use it")


def two_namespaces(stage: Stage) -> None:
    """Run the same pod in both namespaces: one gets a token, the other a sentence that says what is missing."""
    claims = _ask(stage, ORDERS)
    expect(f"appid in the token of {ORDERS}", right=stage.facts["shared"], actual=claims.get("appid"))
    message = str(_ask(stage, GUESTS).get("message"))
    for words in (f"{GUESTS}/default may not use identity", "use-managed-identity"):
        expect(f"whether the refusal of {GUESTS} says {words!r}", right=True, actual=words in message)
    stage.narrator.show_proof(
        "Azure's own SDK got a token on a cluster that is not on Azure; without the grant it got the reason"
    )


def _has_bundle(stage: Stage, namespace: str) -> bool:
    return bool(stage.get("configmap", f"{BROKER}-ca", "-n", namespace).get("data"))


def _ask(stage: Stage, namespace: str) -> dict[str, Any]:
    pod = _pod(stage, namespace)
    show = f"kubectl create -f -   # app, in namespace {namespace}: a pod with Azure's SDK"
    stage.kubectl("create", "-f", "-", stdin=json.dumps(pod), show=show)

    def has_ended() -> bool:
        return stage.get("pod", "app", "-n", namespace)["status"].get("phase") in {"Succeeded", "Failed"}

    stage.until(f"pod app of {namespace} to finish", has_ended)
    printed = stage.kubectl("logs", "app", "-n", namespace)
    stage.quietly("delete", "pod", "app", "-n", namespace, "--wait=false")
    try:
        result: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise StepError(f"pod app of {namespace} printed no answer but: {printed[:300]!r}") from None
    return result


def _pod(stage: Stage, namespace: str) -> Any:
    pod = stage.pod("app", _ASK, {})
    pod["metadata"]["namespace"] = namespace
    variables = {
        "AZURE_TENANT_ID": stage.environment["LAB_TENANT_ID"],
        "AZURE_CLIENT_ID": stage.facts["shared"],
        "AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/tokens/azure-identity-token",
        "AZURE_KUBERNETES_TOKEN_PROXY": f"https://{BROKER}.{BROKER}.svc",
        "AZURE_KUBERNETES_CA_FILE": "/var/run/secrets/azure/ca/ca.crt",
    }
    (container,) = pod["spec"]["containers"]
    container["env"] = [{"name": name, "value": value} for name, value in variables.items()]
    places = {"token": "/var/run/secrets/azure/tokens", "ca": "/var/run/secrets/azure/ca"}
    container["volumeMounts"] = [{"name": name, "mountPath": path, "readOnly": True} for name, path in places.items()]
    token = {"serviceAccountToken": {"audience": "api://AKSIdentityBinding", "path": "azure-identity-token"}}
    pod["spec"]["volumes"] = [
        {"name": "token", "projected": {"sources": [token]}},
        {"name": "ca", "configMap": {"name": f"{BROKER}-ca"}},
    ]
    return pod
