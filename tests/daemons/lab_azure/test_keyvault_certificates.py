"""Certificates of a vault: self-signed by a policy, imported as PFX and PEM, with their key and their secret."""

import base64
import datetime as dt
import hashlib
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from starlette.testclient import TestClient

from daemons.lab_azure.vaults import Vault
from podidentity_lab.azure import Azure

POLICY = {
    "key_props": {"kty": "RSA", "key_size": 2048, "exportable": True, "reuse_key": False},
    "secret_props": {"contentType": "application/x-pkcs12"},
    "x509_props": {
        "subject": "CN=shop.example, O=Shop",
        "sans": {"dns_names": ["shop.example", "www.shop.example"], "emails": ["me@shop.example"]},
        "validity_months": 24,
        "key_usage": ["digitalSignature"],
    },
    "issuer": {"name": "Self"},
}


@pytest.fixture
def vault(azure: Azure, send: Callable[..., httpx2.Response], sign_in: Callable[..., str]) -> Vault:
    """A vault whose owner may do everything."""
    vault = Vault(azure, send, sign_in)
    vault.create(roles=False, keys=("all",), certificates=("all", "purge"))
    return vault


def create(vault: Vault, name: str = "c1", **parts: Any) -> httpx2.Response:
    """Create a certificate by `POLICY`, of which `parts` replace some."""
    return vault.ask("POST", f"/certificates/{name}/create", {"policy": {**POLICY, **parts}})


def issue(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Return a certificate of a key."""
    name = x509.Name.from_rfc4514_string("CN=own")
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    return builder.sign(key, hashes.SHA256())


def test_a_certificate_is_what_its_policy_says(vault: Vault) -> None:
    """It has the policy's names and validity; its key and secret have the same name and version."""
    operation = create(vault)
    assert (operation.status_code, operation.json()["status"]) == (202, "inProgress")
    assert vault.ask("GET", "/certificates/c1/pending").json()["status"] == "completed"
    document = vault.ask("GET", "/certificates/c1").json()
    data = base64.b64decode(document["cer"])
    certificate = x509.load_der_x509_certificate(data)
    assert certificate.subject.rfc4514_string() == "CN=shop.example,O=Shop"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["shop.example", "www.shop.example"]
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 730
    assert document["attributes"]["exp"] == int(certificate.not_valid_after_utc.timestamp())
    digest = hashlib.sha1(data, usedforsecurity=False).digest()
    assert document["x5t"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    version = document["id"].rsplit("/", 1)[1]
    assert document["kid"] == f"{vault.host}/keys/c1/{version}"
    secret = vault.ask("GET", document["sid"].removeprefix(vault.host)).json()
    archive = pkcs12.load_pkcs12(base64.b64decode(secret["value"]), None)
    assert archive.cert is not None
    assert archive.cert.certificate == certificate
    assert archive.key is not None
    assert archive.key.public_key() == certificate.public_key()
    assert (secret["contentType"], secret["managed"], secret["kid"]) == ("application/x-pkcs12", True, document["kid"])
    body = {"alg": "RS256", "value": base64.urlsafe_b64encode(hashlib.sha256(b"").digest()).rstrip(b"=").decode()}
    assert vault.ask("POST", "/keys/c1/sign", body).status_code == 200
    assert vault.ask("GET", "/certificates/c1/policy").json()["x509_props"]["validity_months"] == 24


def test_a_key_that_may_not_leave_is_not_in_the_secret(vault: Vault) -> None:
    """If the key is not exportable, the secret has the certificate alone, as PEM and as PKCS#12."""
    pem = {"contentType": "application/x-pem-file"}
    for name, exportable in (("c1", False), ("c2", True)):
        kind = {"kty": "EC", "crv": "P-384", "exportable": exportable}
        assert create(vault, name, key_props=kind, secret_props=pem).status_code == 202
        text = vault.ask("GET", f"/secrets/{name}").json()["value"]
        assert ("PRIVATE KEY" in text) is exportable
        x509.load_pem_x509_certificate(text.encode())
    create(vault, "c3", key_props={"exportable": False})
    archive = pkcs12.load_pkcs12(base64.b64decode(vault.ask("GET", "/secrets/c3").json()["value"]), None)
    assert archive.key is None


@pytest.mark.parametrize("form", ["pfx", "pem"])
def test_a_certificate_is_imported_with_its_key(vault: Vault, form: str) -> None:
    """An import as PFX with a password or as PEM is accepted; without key, certificate or password it is refused."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issue(key)
    if form == "pfx":
        lock = serialization.BestAvailableEncryption(b"open")
        archive = pkcs12.serialize_key_and_certificates(b"n", key, certificate, None, lock)
        body = {"value": base64.b64encode(archive).decode(), "pwd": "open"}
    else:
        encoding = serialization.Encoding.PEM
        private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        body = {"value": (private + certificate.public_bytes(encoding)).decode()}
    document = vault.ask("POST", "/certificates/c1/import", body).json()
    assert x509.load_der_x509_certificate(base64.b64decode(document["cer"])) == certificate
    assert document["policy"]["key_props"]["crv"] == "P-256"
    assert vault.ask("GET", "/keys/c1").json()["key"]["kty"] == "EC"
    for wrong in (
        {**body, "pwd": "shut"},
        {"value": "AAAA"},
        {"value": certificate.public_bytes(serialization.Encoding.PEM).decode()},
    ):
        refusal = vault.ask("POST", "/certificates/c2/import", wrong)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "BadParameter")


def test_what_no_vault_of_the_lab_issues_is_refused(vault: Vault) -> None:
    """Other issuers, bad subjects and usages, and kinds of keys that the lab lacks are refused."""
    properties = POLICY["x509_props"]
    assert isinstance(properties, dict)
    for parts, sentence in (
        ({"issuer": {"name": "DigiCert"}}, "The issuer is 'DigiCert'"),
        ({"x509_props": {**properties, "subject": "shop"}}, "The property 'subject' is 'shop'"),
        ({"x509_props": {**properties, "key_usage": ["all"]}}, "The property 'key_usage' has 'all'"),
        ({"key_props": {"kty": "RSA-HSM"}}, "The property 'kty' is 'RSA-HSM'"),
    ):
        refusal = create(vault, **parts)
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "BadParameter")
        assert sentence in refusal.json()["error"]["message"]
    assert vault.ask("GET", "/certificates").json()["value"] == []


def test_all_three_live_and_go_together(vault: Vault) -> None:
    """Key and secret are deleted, recovered and purged with their certificate, never alone; a name is used once."""
    create(vault)
    create(vault)
    assert len(vault.ask("GET", "/certificates/c1/versions").json()["value"]) == 2
    for kind in ("keys", "secrets"):
        assert "managed by the certificate" in vault.ask("DELETE", f"/{kind}/c1").json()["error"]["message"]
    assert vault.ask("PUT", "/secrets/c1", {"value": "v"}).status_code == 409
    vault.ask("PUT", "/secrets/taken", {"value": "v"})
    assert create(vault, "taken").status_code == 409
    assert vault.ask("DELETE", "/certificates/c1").json()["recoveryId"] == f"{vault.host}/deletedcertificates/c1"
    paths = ("/certificates/c1", "/keys/c1", "/secrets/c1")
    assert [vault.ask("GET", path).status_code for path in paths] == [404] * 3
    assert vault.ask("POST", "/deletedcertificates/c1/recover").status_code == 200
    assert [vault.ask("GET", path).status_code for path in paths] == [200] * 3
    vault.ask("DELETE", "/certificates/c1")
    assert vault.ask("DELETE", "/deletedcertificates/c1").status_code == 204
    assert create(vault).status_code == 202
    change = {"attributes": {"enabled": False}, "tags": {"a": "b"}}
    assert vault.ask("PATCH", "/certificates/c1/", change).json()["tags"] == {"a": "b"}
    assert vault.ask("PATCH", "/certificates/c1/policy", {"issuer": {"name": "Self"}}).status_code == 200
    vault.purge()
    assert vault.azure.state.certificates == {}


def test_certificates_have_a_role_of_their_own(vault: Vault) -> None:
    """Key Vault Certificates Officer creates certificates, and reads no secret."""
    properties = {"properties": {"enableRbacAuthorization": True}}
    vault.send("PATCH", f"{vault.path}{vault.api}", vault.manager, json=properties)
    refusal = create(vault)
    assert "'Microsoft.KeyVault/vaults/certificates/create/action'" in refusal.json()["error"]["message"]
    vault.give(vault.azure.settings.owner.object_id, "Key Vault Certificates Officer", vault.path)
    assert create(vault).status_code == 202
    assert [vault.ask("GET", path).status_code for path in ("/certificates/c1", "/secrets/c1")] == [200, 403]


def test_a_certificate_survives_the_lab(vault: Vault) -> None:
    """A restored Azure has the same certificate with its policy."""
    create(vault)
    document = vault.ask("GET", "/certificates/c1").json()
    text = vault.azure.save()
    later = Azure.restore(text)
    assert later.save() == text
    client = TestClient(later.app, base_url=vault.host, headers={"Authorization": f"Bearer {vault.reader}"})
    assert client.get("/certificates/c1").json() == document
