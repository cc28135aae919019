"""Keys, certificates and blobs: Azure's own libraries and azure-cli, unmodified, with tokens and roles."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interop.stage import Record, Stage
from interop.test_az import VERSION, WAYS, Az, signed_in
from interop.test_management import cluster_secret

HERE = Path(__file__).parent
GROUP, VAULT = "planes", "planesvault"
Find = Callable[[str], Path]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def variables(stage: Stage) -> dict[str, str]:
    """A vault for roles and the environment of the programs: the owner makes objects, the cluster only uses keys."""
    admin, own = stage.admin, stage.lab.variables
    admin.create_group(GROUP, "westeurope")
    vault = str(admin.create_role_vault(GROUP, VAULT, "westeurope")["id"])
    admin.assign_role("Key Vault Crypto Officer", admin.owner_principal(), vault)
    admin.assign_role("Key Vault Crypto User", admin.cluster_principal(), vault)
    return {
        "AZURE_SUBSCRIPTION_ID": own["LAB_SUBSCRIPTION_ID"],
        "AZURE_TENANT_ID": own["LAB_TENANT_ID"],
        "AZURE_CLIENT_ID": own["LAB_OWNER_CLIENT_ID"],
        "AZURE_CLIENT_SECRET": own["LAB_OWNER_CLIENT_SECRET"],
        "AZURE_KEYVAULT_NAME": VAULT,
        "GROUP": GROUP,
        "USER_CLIENT_ID": own["LAB_CLUSTER_CLIENT_ID"],
        "USER_CLIENT_SECRET": cluster_secret(stage),
    }


@pytest.fixture(scope="module")
def az(stage: Stage, client: Find, tmp_path_factory: pytest.TempPathFactory) -> Az:
    """azure-cli on the host, signed in as the owner."""
    return signed_in(stage, client("az"), WAYS[1], tmp_path_factory.mktemp("az"))


def run(stage: Stage, client: Find, program: str, variables: dict[str, str]) -> dict[str, Any]:
    """Run one of the Python programs on the host; return what it saw."""
    seen: dict[str, Any] = stage.on_host(f"{client('python')}/bin/python {HERE}/python/{program}", **variables).json()
    return seen


def test_the_key_client_makes_and_uses_keys(
    stage: Stage, client: Find, record: Record, variables: dict[str, str]
) -> None:
    """Every algorithm, an imported key, versions, deletion and recovery; errors have their types and codes."""
    seen = run(stage, client, "vault_keys.py", variables)
    version = seen["versions"]["azure-keyvault-keys"]
    record("Python azure-keyvault-keys", version, "makes, imports, uses, deletes and recovers keys; signs by role")
    assert seen["sizes"] == [3072, 2048]
    assert seen["foreign"] == "verified"
    assert seen["keys"] == ["ec256", "ec384", "ec512", "foreign", "rsa"]
    assert seen["tags"] == [{"size": "3072"}, {"size": "2048"}]
    assert seen["signatures"] == sorted(f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512))
    assert seen["texts"] == ["RSA-OAEP", "RSA-OAEP-256", "RSA1_5"]
    assert seen["refusals"] == [
        "ResourceNotFoundError 404 KeyNotFound",
        "HttpResponseError 400 BadParameter",
        "HttpResponseError 403 Forbidden",
    ]
    assert seen["life"] == ["False", "ec256", "ec256", "409 Conflict", "ec256", "404"]


def test_azure_cli_makes_and_uses_keys(az: Az, record: Record, variables: dict[str, str]) -> None:
    """Create, show, list, sign, verify, encrypt, decrypt, delete."""
    record("azure-cli, on the host", VERSION, "keyvault key create, show, list, sign, verify, encrypt, decrypt, delete")
    vault = f"--vault-name {variables['AZURE_KEYVAULT_NAME']}"
    key = az.json(f"az keyvault key create {vault} -n typed --kty RSA --size 2048")["key"]
    assert az.json(f"az keyvault key show {vault} -n typed")["key"]["n"] == key["n"]
    assert "typed" in [item["name"] for item in az.json(f"az keyvault key list {vault}")]
    digest = base64.b64encode(hashlib.sha256(b"text").digest()).decode()
    use = f"{vault} -n typed --algorithm RS256 --digest '{digest}'"
    signature = az.json(f"az keyvault key sign {use}")["signature"]
    assert az.json(f"az keyvault key verify {use} --signature '{signature}'")["isValid"] is True
    use = f"{vault} -n typed --algorithm RSA-OAEP-256 --data-type plaintext"
    text = az.json(f"az keyvault key encrypt {use} --value hello")["result"]
    assert az.json(f"az keyvault key decrypt {use} --value '{text}'")["result"] == "hello"
    az.json(f"az keyvault key delete {vault} -n typed")
