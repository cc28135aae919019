"""Keys of a vault by plain requests: roles and access policies, operations, versions, deletion, restoring."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from daemons.lab_azure.vaults import Vault
from podidentity_lab.azure import Azure

DIGEST = base64.urlsafe_b64encode(hashlib.sha256(b"text").digest()).rstrip(b"=").decode()


@pytest.fixture
def vault(azure: Azure, send: Callable[..., httpx2.Response], sign_in: Callable[..., str]) -> Vault:
    """A vault that does not exist yet, with its owner's tokens."""
    return Vault(azure, send, sign_in)


def code(response: httpx2.Response) -> tuple[int, str, str]:
    """Return a refusal's status, code and inner code."""
    error = response.json()["error"]
    return response.status_code, error["code"], error.get("innererror", {}).get("code", "")


def sign(vault: Vault, path: str = "/keys/k1", **options: Any) -> httpx2.Response:
    """Sign a digest with RS256."""
    return vault.ask("POST", f"{path}/sign", {"alg": "RS256", "value": DIGEST}, **options)


def test_a_vault_for_roles_asks_for_roles_on_keys(vault: Vault) -> None:
    """Crypto Officer creates keys; Crypto User uses the one key it has, and neither creates nor deletes keys."""
    vault.create(roles=True)
    refusal = vault.ask("POST", "/keys/k1/create", {"kty": "RSA"})
    assert code(refusal) == (403, "Forbidden", "ForbiddenByRbac")
    assert "'Microsoft.KeyVault/vaults/keys/create/action'" in refusal.json()["error"]["message"]
    vault.give(vault.azure.settings.owner.object_id, "Key Vault Crypto Officer", vault.group)
    for name in ("k1", "k2"):
        assert vault.ask("POST", f"/keys/{name}/create", {"kty": "RSA"}).status_code == 200
    assert vault.ask("GET", "/secrets").status_code == 403
    vault.give(vault.azure.settings.cluster.object_id, "Key Vault Crypto User", f"{vault.path}/keys/k1")
    assert sign(vault, token=vault.stranger).status_code == 200
    assert vault.ask("GET", "/keys/k1", token=vault.stranger).status_code == 200
    assert sign(vault, "/keys/k2", token=vault.stranger).status_code == 403
    assert vault.ask("POST", "/keys/k1/create", {"kty": "RSA"}, token=vault.stranger).status_code == 403
    assert vault.ask("DELETE", "/keys/k1", token=vault.stranger).status_code == 403


def test_an_access_policy_gives_permissions_on_keys_alone(vault: Vault) -> None:
    """`wrapKey`, in any case, does not allow `unwrapKey`; permissions on secrets do not count for keys."""
    vault.create(roles=False, permissions=("all", "purge"), keys=("create", "WRAPKEY"))
    assert vault.ask("POST", "/keys/k1/create", {"kty": "RSA"}).status_code == 200
    body = {"alg": "RSA-OAEP", "value": "AAAA"}
    assert vault.ask("POST", "/keys/k1/wrapkey", body).status_code == 200
    refusal = vault.ask("POST", "/keys/k1/unwrapkey", body)
    assert code(refusal) == (403, "Forbidden", "AccessDenied")
    assert "does not have keys unwrapKey permission on key vault 'kv1;" in refusal.json()["error"]["message"]
    assert vault.ask("PUT", "/secrets/s1", {"value": "v"}).status_code == 200


def test_operations_follow_the_keys_type_its_operations_and_its_time(vault: Vault) -> None:
    """Keys sign, verify, wrap and unwrap, unless key_ops, attributes or the algorithm forbid it."""
    vault.create(roles=False, keys=("all",))
    times = {"nbf": 4_000_000_000}
    vault.ask("POST", "/keys/k1/create", {"kty": "RSA", "key_size": 2048})
    vault.ask("POST", "/keys/signs/create", {"kty": "RSA", "key_ops": ["sign"], "attributes": times})
    vault.ask("POST", "/keys/old/create", {"kty": "EC", "attributes": {"exp": 1}})
    signature = sign(vault).json()["value"]
    for value, is_valid in ((signature, True), ("A" * len(signature), False)):
        body = {"alg": "RS256", "digest": DIGEST, "value": value}
        assert vault.ask("POST", "/keys/k1/verify", body).json() == {"value": is_valid}
    wrapped = vault.ask("POST", "/keys/k1/wrapkey", {"alg": "RSA-OAEP-256", "value": "c2VjcmV0"}).json()
    body = {"alg": "RSA-OAEP-256", "value": wrapped["value"]}
    key_id = wrapped["kid"].removeprefix(vault.host)
    assert vault.ask("POST", f"{key_id}/unwrapkey", body).json()["value"] == "c2VjcmV0"
    assert code(vault.ask("POST", "/keys/signs/wrapkey", body)) == (403, "Forbidden", "KeyOperationForbidden")
    assert code(sign(vault, "/keys/signs")) == (403, "Forbidden", "KeyNotYetValid")
    ec_body = {"alg": "ES256", "value": DIGEST}
    assert code(vault.ask("POST", "/keys/old/sign", ec_body)) == (403, "Forbidden", "KeyExpired")
    vault.ask("PATCH", "/keys/k1/", {"attributes": {"enabled": False}})
    assert code(sign(vault)) == (403, "Forbidden", "KeyDisabled")
    vault.ask("PATCH", "/keys/k1/", {"attributes": {"enabled": True}, "key_ops": ["decrypt"]})
    assert code(sign(vault)) == (403, "Forbidden", "KeyOperationForbidden")
    assert code(vault.ask("POST", "/keys/k1/decrypt", {"alg": "RSA-OAEP", "value": "*"})) == (400, "BadParameter", "")


def test_a_key_lives_as_a_secret_does(vault: Vault) -> None:
    """Keys have versions, can be deleted, recovered and purged, and end with their vault; lists have no numbers."""
    vault.create(roles=False, keys=("all", "purge"))
    versions = [vault.ask("POST", "/keys/K1/create", {"kty": "EC", "crv": "P-384"}).json() for _ in range(2)]
    assert vault.ask("GET", "/keys/k1").json()["key"]["x"] == versions[1]["key"]["x"]
    old = versions[0]["key"]["kid"].rsplit("/", 1)[1]
    assert vault.ask("GET", f"/keys/k1/{old}").json()["key"]["x"] == versions[0]["key"]["x"]
    entries = vault.ask("GET", "/keys").json()["value"]
    assert [(entry["kid"], "key" in entry) for entry in entries] == [(f"{vault.host}/keys/k1", False)]
    assert len(vault.ask("GET", "/keys/k1/versions").json()["value"]) == 2
    assert vault.ask("DELETE", "/keys/k1").json()["recoveryId"] == f"{vault.host}/deletedkeys/k1"
    assert code(vault.ask("GET", "/keys/k1")) == (404, "KeyNotFound", "")
    refusal = vault.ask("POST", "/keys/k1/create", {"kty": "EC"})
    assert code(refusal) == (409, "Conflict", "ObjectIsDeletedButRecoverable")
    assert [entry["kid"] for entry in vault.ask("GET", "/deletedkeys").json()["value"]] == [f"{vault.host}/keys/k1"]
    assert vault.ask("POST", "/deletedkeys/k1/recover").json()["key"]["x"] == versions[1]["key"]["x"]
    vault.ask("DELETE", "/keys/k1")
    assert vault.ask("DELETE", "/deletedkeys/k1").status_code == 204
    assert code(vault.ask("GET", "/deletedkeys/k1")) == (404, "KeyNotFound", "")
    vault.ask("POST", "/keys/k2/create", {"kty": "EC"})
    vault.purge()
    assert vault.azure.state.vault_keys == {}


def test_what_no_vault_takes_is_refused(vault: Vault) -> None:
    """Bad names, types, sizes, methods and paths are refused with Azure's codes."""
    vault.create(roles=False, keys=("all",))
    assert code(vault.ask("POST", "/keys/a_b/create", {"kty": "RSA"})) == (400, "BadParameter", "")
    assert code(vault.ask("POST", "/keys/k1/create", {"kty": "oct-HSM"})) == (400, "BadParameter", "")
    assert code(vault.ask("POST", "/keys/k1/create", {"kty": "RSA", "key_size": 1024})) == (400, "BadParameter", "")
    assert code(vault.ask("PUT", "/keys/k1", {"key": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}))[0] == 400
    assert code(vault.ask("POST", "/keys/k1/melt", {}))[0] == 405
    assert code(vault.ask("POST", "/keys/k1/v1/create", {"kty": "RSA"}))[0] == 405
    assert code(vault.ask("GET", "/ponies"))[0] == 404


def test_a_key_survives_the_lab(vault: Vault) -> None:
    """A restored Azure verifies an earlier signature; no repr shows the private key."""
    vault.create(roles=False, keys=("all",))
    vault.ask("POST", "/keys/k1/create", {"kty": "RSA"})
    signature = sign(vault).json()["value"]
    text = vault.azure.save()
    later = Azure.restore(text)
    assert later.save() == text
    client = TestClient(later.app, base_url=vault.host, headers={"Authorization": f"Bearer {vault.reader}"})
    body = {"alg": "RS256", "digest": DIGEST, "value": signature}
    assert client.post("/keys/k1/verify", json=body).json() == {"value": True}
    assert "PRIVATE KEY" not in repr(later.state.vault_keys)


def test_the_log_says_who_used_which_key(vault: Vault) -> None:
    """The log has a line for the use of a key, without the signed text's digest."""
    vault.create(roles=False, keys=("all",))
    vault.ask("POST", "/keys/k1/create", {"kty": "RSA"})
    sign(vault)
    entry = vault.azure.log.entries[-1]
    assert (entry.service, entry.method, entry.target, entry.status) == ("keyvault", "POST", "/keys/k1/sign", 200)
    assert entry.client_id == vault.azure.settings.owner.client_id
    assert DIGEST not in str(entry)
