"""Objects that are wrong, in a lab with podidentity: an answer or event names the thing, and nobody else suffers."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from podidentity_lab.demo.admin import Admin
from system.lab.running import Json, Lab, lab
from waiting import until

pytestmark = pytest.mark.root
MANIFEST = Path(__file__).parents[3] / "deploy/infra/deployment-rbac.yaml"
API = "aadpodidentity.k8s.io/v1"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab in which MIC and NMI run."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "wrong", "--nodes", "1") as one:
        one.kubectl("create", "-f", str(MANIFEST))
        one.kubectl("rollout", "status", "daemonset/nmi", "--timeout=60s")
        one.kubectl("rollout", "status", "deployment/mic", "--timeout=60s")
        yield one


def identity(name: str, **spec: object) -> Json:
    """Return an AzureIdentity."""
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": API, "kind": "AzureIdentity", "metadata": metadata, "spec": spec}


def binding(name: str, of: str) -> Json:
    """Return an AzureIdentityBinding that selects pods labelled with its name."""
    metadata = {"name": name, "namespace": "default"}
    spec = {"azureIdentity": of, "selector": name}
    return {"apiVersion": API, "kind": "AzureIdentityBinding", "metadata": metadata, "spec": spec}


def bound_pod(name: str, selector: str) -> Json:
    """Return a pod that uses a binding."""
    container = {"name": "main", "image": "podidentity/lab-tools:1", "command": ["sleep", "3600"]}
    metadata = {"name": name, "namespace": "default", "labels": {"aadpodidbinding": selector}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def refused(up: Lab, obj: Json, *words: str) -> str:
    """Return what kubectl says to an object that is not taken."""
    with pytest.raises(AssertionError) as raised:
        up.kubectl("create", *words, "-f", "-", stdin=json.dumps(obj))
    return str(raised.value)


def test_a_field_that_does_not_exist_is_named(up: Lab) -> None:
    """A misspelt field is refused by name, before anything is stored."""
    said = refused(up, identity("misspelt", type=0, resourceId="/x", clientID="c"))
    assert 'unknown field "spec.resourceId"' in said


@pytest.mark.parametrize("spec", [{"type": "zero"}, {"type": 0, "clientID": 5}])
def test_a_value_of_the_wrong_kind_is_named(up: Lab, spec: dict[str, object]) -> None:
    """Also when kubectl's own validation is off, the API refuses it and names the field."""
    said = refused(up, identity("odd", **spec), "--validate=false")
    assert "spec.type" in said or "spec.clientID" in said


def test_wrong_identities_get_events_and_good_ones_work(up: Lab) -> None:
    """An identity that Azure does not have, one that nobody made, a broken resource ID: each is told at its binding."""
    with contextlib.closing(Admin(up.variables)) as admin:
        admin.create_group("wrong", "westeurope")
        made = admin.create_identity("wrong", "good", "westeurope")
        admin.assign_role("Managed Identity Operator", admin.cluster_principal(), admin.identity("wrong", "good"))
        nowhere = admin.identity("wrong", "nowhere")
    up.create(
        identity("good", type=0, resourceID=made["id"], clientID=made["properties"]["clientId"]),
        identity("nowhere", type=0, resourceID=nowhere, clientID="b3a0c1a4-9d0f-4c4e-a5a8-0d2b8d5f5a11"),
        binding("good", "good"),
        binding("nowhere", "nowhere"),
        binding("missing", "nobody-made-this"),
        bound_pod("uses-nowhere", "nowhere"),
        bound_pod("uses-missing", "missing"),
        bound_pod("uses-good", "good"),
    )
    until(lambda: states(up) == {"good": "Assigned", "nowhere": "Created"}, "the good identity to be Assigned")
    until(lambda: any("nowhere" in one for one in up.events("nowhere")), "an event about the identity nowhere")
    until(lambda: any("nobody-made-this" in one for one in up.events("missing")), "an event about the missing one")


def states(up: Lab) -> dict[str, str]:
    """Return the state of each assigned identity, by the name of its AzureIdentity."""
    items = up.get("azureassignedidentities", "-A")["items"]
    return {
        one["spec"]["azureIdentityRef"]["metadata"]["name"]: one.get("status", {}).get("status", "") for one in items
    }


def test_an_application_whose_vault_does_not_exist_says_so(up: Lab) -> None:
    """The sample application names the vault that it could not reach, and goes on serving."""
    example = Path(__file__).parents[3] / "examples/keyvault-app/keyvaultsample.yaml"
    up.kubectl("create", "-f", "-", stdin=example.read_text().replace("value: keyvaultk8s", "value: no-such-vault"))
    up.kubectl("rollout", "status", "deployment/keyvaultsample", "--timeout=60s")
    address = up.get("service", "keyvaultsample")["status"]["loadBalancer"]["ingress"][0]["ip"]
    told: list[tuple[int, str]] = []

    def answered() -> bool:
        told.append(up.curl(f"http://{address}/keyvault"))
        return "no-such-vault" in told[-1][1]

    until(answered, f"an answer that names the vault: {told}")
    assert told[-1][0] >= 500
    assert "Traceback" not in told[-1][1]
