"""The manifests against a real API server: what they say is understood and kept, and mistakes are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.harness import DEFINITIONS, DEPLOY, REPOSITORY, Cluster, custom

EXAMPLE = REPOSITORY / "examples/keyvault-app"
MANIFESTS = sorted([*DEPLOY.rglob("*.yaml"), *(REPOSITORY / "deploy/demo").glob("*.yaml"), *EXAMPLE.glob("*.yaml")])

GOOD_ID = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"


@pytest.fixture(scope="module", autouse=True)
def _definitions(cluster: Cluster) -> None:
    """The custom resource definitions, and nothing else."""
    cluster.kubectl("apply", "--server-side", "-f", str(DEFINITIONS))
    cluster.kubectl("wait", "--for=condition=Established", "-f", str(DEFINITIONS), "--timeout=60s")


@pytest.mark.parametrize("way", ["client-side", "server-side"])
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_kubectl_accepts_all_and_the_server_keeps_all(cluster: Cluster, manifest: Path, way: str) -> None:
    """Strict validation finds no unknown field, and the server would store every field."""
    words = ["--server-side", "--force-conflicts"] if way == "server-side" else []
    applied = cluster.kubectl(
        "apply", *words, "--dry-run=server", "--validate=strict", "-o", "json", "-f", str(manifest)
    )
    stored = json.loads(applied)
    by_name = {_name(one): one for one in (stored["items"] if stored["kind"] == "List" else [stored])}
    for written in yaml.safe_load_all(manifest.read_text()):
        lost = list(_lost(written, by_name[_name(written)]))
        assert lost == [], f"{_name(written)} loses {lost}"


@pytest.mark.parametrize("way", ["client-side", "server-side"])
def test_the_objects_of_2018_are_stored_as_they_were_written(cluster: Cluster, way: str) -> None:
    """The capitalised field names of the walk-through are not pruned."""
    words = ["--server-side"] if way == "server-side" else []
    for name in ("azureidentity.yaml", "azureidentitybinding.yaml"):
        written = yaml.safe_load((EXAMPLE / name).read_text())
        text = (EXAMPLE / name).read_text().replace("{YourSubscriptionID}", "s").replace("<clientid>", "c")
        cluster.kubectl("apply", *words, "--validate=strict", "-f", "-", stdin=text)
        kind = written["kind"].lower()
        stored = cluster.get(kind, written["metadata"]["name"])
        assert stored["spec"] == yaml.safe_load(text)["spec"]
        cluster.delete(kind, written["metadata"]["name"])


@pytest.mark.parametrize(
    ("kind", "spec", "sentence"),
    [
        ("AzureIdentity", {"type": 3}, "spec.type must be 0 (user-assigned managed identity), 1 (service principal"),
        ("AzureIdentity", {"type": 0, "resourceID": "reader"}, "must have the form /subscriptions/SUBSCRIPTION/"),
        ("AzureIdentity", {"type": 0, "ResourceID": "reader"}, "must have the form /subscriptions/SUBSCRIPTION/"),
        ("AzureIdentityBinding", {"azureIdentity": "a", "selector": ""}, "must be the value of the pods' label"),
        ("AzureIdentityBinding", {"azureIdentity": "", "selector": "a"}, "must name an AzureIdentity"),
        ("AzureIdentityBinding", {"AzureIdentity": "a", "Selector": ""}, "must be the value of the pods' label"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    cluster: Cluster, kind: str, spec: dict[str, Any], sentence: str
) -> None:
    """The API server refuses the object, and kubectl prints what to write instead."""
    done = cluster.try_kubectl("create", "-f", "-", stdin=json.dumps(custom(kind, "wrong", spec)))
    assert done.returncode != 0
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("AzureIdentity", {"type": 0, "resourceID": GOOD_ID.upper(), "clientID": "c"}),
        ("AzureIdentity", {"type": 1, "tenantID": "t", "clientID": "c", "clientPassword": {"name": "n"}}),
        ("AzureIdentityBinding", {"azureIdentity": "a", "selector": "b"}),
        ("AzurePodIdentityException", {"podLabels": {"app": "mic"}}),
    ],
)
def test_what_can_work_is_accepted(cluster: Cluster, kind: str, spec: dict[str, Any]) -> None:
    """The rules accept what users of upstream have."""
    cluster.kubectl(
        "create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(custom(kind, "r", spec))
    )


def test_columns_say_what_a_reader_looks_for(cluster: Cluster) -> None:
    """`kubectl get` shows the client ID of an identity, and pod, node and state of an assigned one."""
    cluster.create(custom("AzureIdentity", "shown", {"type": 0, "resourceID": GOOD_ID, "clientID": "the-client"}))
    reference = {"podNamespace": "default", "pod": "web-0", "nodename": "node-0"}
    assigned = custom("AzureAssignedIdentity", "shown", reference) | {"status": {"status": "Assigned"}}
    cluster.create(assigned)
    try:
        assert "the-client" in cluster.kubectl("get", "azureidentity", "shown")
        line = cluster.kubectl("get", "azureassignedidentity", "shown", "--no-headers").split()
        assert line[1:5] == ["web-0", "default", "node-0", "Assigned"]
    finally:
        cluster.delete("azureidentity/shown", "azureassignedidentity/shown")


def _name(obj: dict[str, Any]) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


def _lost(written: Any, stored: Any, path: str = "") -> Any:
    """Yield the paths of what is in `written` and not in `stored`."""
    if isinstance(written, dict):
        for key, value in written.items():
            if not isinstance(stored, dict) or key not in stored:
                if value not in (None, {}, []) and path + f".{key}" != ".stringData":  # the server keeps it as data
                    yield f"{path}.{key}"
            else:
                yield from _lost(value, stored[key], f"{path}.{key}")
    elif isinstance(written, list):
        if not isinstance(stored, list) or len(stored) != len(written):
            yield path
        else:
            for index, (ours, theirs) in enumerate(zip(written, stored, strict=True)):
                yield from _lost(ours, theirs, f"{path}[{index}]")
    elif str(written) != str(stored) and not path.startswith((".spec.containers", ".spec.template")):
        yield f"{path}={written!r} (stored {stored!r})"
