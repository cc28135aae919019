"""SDKs in pods of the lab, with the broker installed from `deploy/broker`: token and CA in volumes, by its Service."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from interop.broker.programs import SDKS, Sdk
from interop.stage import GROUP, IMAGE, LOOP, ROOT, Pod, Stage
from podidentity_lab.kubernetes import ISSUER
from waiting import until

BROKER = ROOT / "deploy" / "broker"
NAME = "podidentity-broker"
VOLUME = "/var/run/secrets/azure"


@pytest.fixture(scope="module")
def identities(stage: Stage) -> tuple[str, str]:
    """Install the broker; return two identities that trust it, of which pods in `default` may use the first."""
    tenant_id = stage.lab.variables["LAB_TENANT_ID"]
    broker = (BROKER / "broker.yaml").read_text().replace("00000000-0000-0000-0000-000000000000", tenant_id)
    drain = "            - --drain=10s\n"
    assert drain in broker
    stage.lab.kubectl(
        "create", "-f", "-", stdin=broker.replace(drain, f"{drain}            - --bundle-namespaces=default\n")
    )
    bundle = (BROKER / "bundle.yaml").read_text().replace("NAMESPACE", "default")
    stage.lab.kubectl("create", "-f", "-", stdin=bundle)
    granted, other = (_identity(stage, name) for name in ("granted", "not-granted"))
    grant = (BROKER / "grant.yaml").read_text().replace("CLIENT_ID", granted).replace("NAMESPACE", "default")
    stage.lab.kubectl("create", "-f", "-", stdin=grant)
    stage.lab.kubectl("-n", NAME, "rollout", "status", f"deployment/{NAME}", "--timeout=60s")
    return granted, other


@pytest.fixture(scope="module")
def pod(stage: Stage, identities: tuple[str, str]) -> Pod:
    """A pod that runs commands, with the environment and volumes of docs/configure/broker.md."""
    variables = {
        "AZURE_CLIENT_ID": identities[0],
        "AZURE_TENANT_ID": stage.lab.variables["LAB_TENANT_ID"],
        "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
        "AZURE_FEDERATED_TOKEN_FILE": f"{VOLUME}/token",
        "AZURE_KUBERNETES_TOKEN_PROXY": f"https://{NAME}.{NAME}.svc",
        "AZURE_KUBERNETES_CA_FILE": f"{VOLUME}/ca.crt",
    }
    token = {"serviceAccountToken": {"path": "token", "audience": "api://AKSIdentityBinding"}}
    volumes = [
        {"name": "commands", "hostPath": {"path": "/commands/workload"}},
        {"name": "azure", "projected": {"sources": [token, {"configMap": {"name": f"{NAME}-ca"}}]}},
    ]
    mounts = [{"name": "commands", "mountPath": "/commands"}, {"name": "azure", "mountPath": VOLUME, "readOnly": True}]
    container = {
        "name": "clients",
        "image": f"{IMAGE}:1",
        "command": ["/bin/sh", "-c", LOOP],
        "volumeMounts": mounts,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
    }
    spec = {"nodeName": "node-0", "containers": [container], "volumes": volumes}
    stage.lab.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "workload", "namespace": "default"}, "spec": spec}
    )
    until(lambda: stage.lab.is_ready("workload"), "the pod to be ready", 60)
    return Pod(stage.lab.directory / "nodes" / "node-0" / "commands" / "workload")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.title.replace(" ", "-"))
def test_an_sdk_in_a_pod_gets_the_token_that_was_granted(
    pod: Pod, identities: tuple[str, str], client: Callable[[str], Path], sdk: Sdk
) -> None:
    """With the pod's environment alone it gets its token; for another identity its error says what is missing."""
    directory, (granted, other) = client(sdk.client), identities
    requests = "\n".join(json.dumps(request) for request in ({}, {"client_id": other}))
    done = pod.run(f"cd {directory} && printf '%s\\n' {shlex.quote(requests)} | {shlex.join(sdk.command(directory))}")
    assert done.status == 0, f"{done.out}\n{done.err}"
    answer, refused = (json.loads(line) for line in done.out.splitlines())
    assert "token" in answer, answer
    assert jwt.decode(answer["token"], options={"verify_signature": False})["appid"] == granted
    assert f"service account default/default may not use identity {other}" in refused["message"]


def _identity(stage: Stage, name: str) -> str:
    """Create an identity that trusts the broker; return its client ID."""
    identity = stage.admin.create_identity(GROUP, name, "westeurope")
    subject = f"system:serviceaccount:{NAME}:{NAME}"
    properties = {"issuer": ISSUER, "subject": subject, "audiences": ["api://AzureADTokenExchange"]}
    path = f"{identity['id']}/federatedIdentityCredentials/broker"
    stage.admin._arm("PUT", path, "2023-01-31", {"properties": properties})
    return str(identity["properties"]["clientId"])
