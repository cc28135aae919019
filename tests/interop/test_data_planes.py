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
GROUP, VAULT, ACCOUNT = "planes", "planesvault", "planesstore"
Find = Callable[[str], Path]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def variables(stage: Stage) -> dict[str, str]:
    """Create a vault and a storage account; return the programs' environment. The cluster may only use objects."""
    admin, own = stage.admin, stage.lab.variables
    admin.create_group(GROUP, "westeurope")
    vault = str(admin.create_role_vault(GROUP, VAULT, "westeurope")["id"])
    admin.assign_role("Key Vault Crypto Officer", admin.owner_principal(), vault)
    admin.assign_role("Key Vault Certificates Officer", admin.owner_principal(), vault)
    admin.assign_role("Key Vault Secrets User", admin.owner_principal(), vault)
    admin.assign_role("Key Vault Crypto User", admin.cluster_principal(), vault)
    account = str(admin.create_account(GROUP, ACCOUNT, "westeurope")["id"])
    admin.assign_role("Storage Blob Data Contributor", admin.owner_principal(), account)
    admin.assign_role("Storage Blob Data Reader", admin.cluster_principal(), account)
    return {
        "AZURE_TENANT_ID": own["LAB_TENANT_ID"],
        "AZURE_CLIENT_ID": own["LAB_OWNER_CLIENT_ID"],
        "AZURE_CLIENT_SECRET": own["LAB_OWNER_CLIENT_SECRET"],
        "AZURE_KEYVAULT_NAME": VAULT,
        "STORAGE_ACCOUNT": ACCOUNT,
        "USER_CLIENT_ID": own["LAB_CLUSTER_CLIENT_ID"],
        "USER_CLIENT_SECRET": cluster_secret(stage),
    }


@pytest.fixture(scope="module")
def az(stage: Stage, client: Find, tmp_path_factory: pytest.TempPathFactory) -> Az:
    """azure-cli on the host, signed in as the owner."""
    return signed_in(stage, client("az"), WAYS[1], tmp_path_factory.mktemp("az"))


def run(stage: Stage, client: Find, program: str, variables: dict[str, str]) -> dict[str, Any]:
    """Run one of the Python programs on the host; return its output."""
    seen: dict[str, Any] = stage.on_host(f"{client('python')}/bin/python {HERE}/python/{program}", **variables).json()
    return seen


def test_the_key_client_makes_and_uses_keys(
    stage: Stage, client: Find, record: Record, variables: dict[str, str]
) -> None:
    """Python's key client uses every algorithm, versions, deletion and recovery, and gets errors of its own types."""
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
    """azure-cli creates, shows, lists and deletes a key, and signs, verifies, encrypts and decrypts with it."""
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


def test_the_certificate_client_makes_and_imports_certificates(
    stage: Stage, client: Find, record: Record, variables: dict[str, str]
) -> None:
    """Python's client creates certificates, imports PFX and PEM, and finds the key in the secret."""
    seen = run(stage, client, "certificates.py", variables)
    version = seen["versions"]["azure-keyvault-certificates"]
    record("Python azure-keyvault-certificates", version, "creates, reads, imports, deletes and recovers certificates")
    assert (seen["subject"], seen["own"], seen["same"]) == ("CN=sdk.example", True, True)
    assert seen["names"] == ["copy", "pem", "pfx", "sdk"]
    assert (seen["operation"], seen["life"]) == ("completed", ["sdk", "sdk"])
    assert seen["missing"] == "ResourceNotFoundError CertificateNotFound"


def test_azure_cli_makes_and_shows_certificates(az: Az, record: Record, variables: dict[str, str]) -> None:
    """azure-cli creates a certificate by its own default policy, which is self-signed, and shows the policy."""
    record("azure-cli, on the host", VERSION, "keyvault certificate create with the default policy, show, list")
    vault = f"--vault-name {variables['AZURE_KEYVAULT_NAME']}"
    creation = f'az keyvault certificate create {vault} -n cli -p "$(az keyvault certificate get-default-policy)"'
    assert az.json(creation)["status"] == "completed"
    shown = az.json(f"az keyvault certificate show {vault} -n cli")
    assert shown["policy"]["x509CertificateProperties"]["subject"] == "CN=CLIGetDefaultPolicy"
    assert "cli" in [item["name"] for item in az.json(f"az keyvault certificate list {vault}")]


def test_the_blob_client_puts_and_reads_blobs(
    stage: Stage, client: Find, record: Record, variables: dict[str, str]
) -> None:
    """Python's blob client uses blocks, ranges, pages and conditions, and gets errors of its own types."""
    seen = run(stage, client, "blobs.py", variables)
    version = seen["versions"]["azure-storage-blob"]
    record(
        "Python azure-storage-blob", version, "puts, reads, lists and deletes blobs, also block by block; reads by role"
    )
    assert seen["containers"] == ["box"]
    assert (seen["read"], seen["same"]) == ("text", [True, True, True])
    assert seen["properties"] == [4, "text/plain", {"kind": "small"}]
    assert seen["exists"] == [True, False]
    assert seen["names"] == ["empty", "large", "texts/a b"]
    assert sorted(seen["folders"]) == ["empty", "large", "texts/"]
    assert seen["blocks"] == 8
    assert seen["refusals"] == [
        "ResourceExistsError 409 BlobAlreadyExists",
        "ResourceModifiedError 412 ConditionNotMet",
        "HttpResponseError 403 AuthorizationPermissionMismatch",
        "HttpResponseError 403 KeyBasedAuthenticationNotPermitted",
        "ResourceNotFoundError 404 BlobNotFound",
    ]
    assert (seen["left"], seen["gone"]) == (["empty", "texts/a b"], False)


def test_azure_cli_puts_and_reads_blobs(az: Az, record: Record, tmp_path: Path) -> None:
    """With --auth-mode login azure-cli creates containers and blobs and reads them; an account has no keys."""
    record(
        "azure-cli, on the host", VERSION, "storage account, container and blob create, upload, list, download, delete"
    )
    group, name = "clistore", "clistore1"
    az.type(f"az group create -n {group} -l westeurope")
    account = az.json(f"az storage account create -g {group} -n {name} -l westeurope --sku Standard_LRS")
    assert az.json(f"az storage account show -g {group} -n {name}")["primaryEndpoints"]["blob"] == (
        f"https://{name}.blob.core.windows.net/"
    )
    role = "--role 'Storage Blob Data Contributor' --assignee {owner}".format(**az.ids)
    az.json(f"az role assignment create {role} --scope {account['id']}")
    access = f"--account-name {name} --auth-mode login"
    assert az.json(f"az storage container create -n box {access}")["created"] is True
    content = tmp_path / "content"
    content.write_bytes(bytes(range(256)))
    az.json(f"az storage blob upload -c box -n a/b -f {content} --no-progress {access}")
    assert [item["name"] for item in az.json(f"az storage blob list -c box {access}")] == ["a/b"]
    az.json(f"az storage blob download -c box -n a/b -f {tmp_path}/copy --no-progress {access}")
    assert (tmp_path / "copy").read_bytes() == content.read_bytes()
    az.json(f"az storage blob delete -c box -n a/b {access}")
    assert az.json(f"az storage blob exists -c box -n a/b {access}")["exists"] is False
    refusal = az(f"az storage account keys list -g {group} -n {name}")
    assert "KeyBasedAuthenticationNotPermitted" in refusal.err
    az.type(f"az storage account delete -g {group} -n {name} --yes\naz group delete -n {group} --yes")
