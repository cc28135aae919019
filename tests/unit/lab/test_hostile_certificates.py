"""Keys and certificates that are imported: what is wrong or asks for years of work ends in a sentence."""

import base64
import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from podidentity_lab.azure import keyvault_crypto, keyvault_import, keyvault_x509
from podidentity_lab.azure.keyvault_crypto import BadParameterError

KEY = rsa.generate_private_key(65537, 2048)
POLICY = {"x509_props": {"subject": "CN=a"}}
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
CERTIFICATE = keyvault_x509.self_signed(POLICY, KEY, NOW)
PEM_FORM = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)


def pfx(iterations: int) -> bytes:
    """Return a PFX whose password, `secret`, is hashed as often as that."""
    form = serialization.PrivateFormat.PKCS12.encryption_builder().kdf_rounds(iterations).hmac_hash(hashes.SHA256())
    encryption = form.key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC).build(b"secret")
    return pkcs12.serialize_key_and_certificates(b"a", KEY, CERTIFICATE, None, encryption)


async def test_a_certificate_is_read_in_a_process_of_its_own() -> None:
    """It comes back as it was, with its key and with the certificates above it."""
    bundle = await keyvault_import.parse(base64.b64encode(pfx(2000)).decode(), "secret")
    assert (bundle.certificate, bundle.chain) == (CERTIFICATE, ())
    assert keyvault_crypto.to_pem(bundle.key) == keyvault_crypto.to_pem(KEY)
    text = keyvault_x509.export(keyvault_x509.Bundle(KEY, CERTIFICATE, (), keyvault_x509.PEM), with_key=True)
    assert (await keyvault_import.parse(text, "")).content_type == keyvault_x509.PEM


def der(tag: int, *parts: bytes) -> bytes:
    """Return an element of DER with less than 128 bytes of content."""
    content = b"".join(parts)
    return bytes([tag, len(content)]) + content


async def test_a_password_that_is_hashed_for_years_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of times stands in the file (RFC 8018, A.4): two thousand million."""
    monkeypatch.setattr(keyvault_import, "_SECONDS", 2)
    pbes2, pbkdf2, sha256, aes = (
        der(6, bytes.fromhex(text))
        for text in ("2a864886f70d01050d", "2a864886f70d01050c", "2a864886f70d0209", "60864801650304012a")
    )
    hashing = der(0x30, pbkdf2, der(0x30, der(4, bytes(8)), der(2, b"\x7f\xff\xff\xff"), der(0x30, sha256, der(5))))
    algorithm = der(0x30, pbes2, der(0x30, hashing, der(0x30, aes, der(4, bytes(16)))))
    key = base64.encodebytes(der(0x30, algorithm, der(4, bytes(16)))).decode()
    pem = f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{key}-----END ENCRYPTED PRIVATE KEY-----\n"
    with pytest.raises(BadParameterError, match="export it with fewer iterations"):
        await keyvault_import.parse(pem, "secret")


FOREIGN = ed25519.Ed25519PrivateKey.generate().private_bytes(*PEM_FORM, serialization.NoEncryption()).decode()
LOCKED = KEY.private_bytes(*PEM_FORM, serialization.BestAvailableEncryption(b"secret")).decode()


@pytest.mark.parametrize(
    ("value", "password"),
    [
        ("", ""),
        ("no base64", ""),
        ("AAAA", ""),
        (base64.b64encode(pfx(2000)).decode(), "wrong"),
        (base64.b64encode(pfx(2000)[:-20]).decode(), "secret"),
        (LOCKED, ""),
        (LOCKED, "wrong"),
        (keyvault_x509.to_pem(CERTIFICATE), ""),
        (FOREIGN + keyvault_x509.to_pem(CERTIFICATE), ""),
        (keyvault_crypto.to_pem(KEY), ""),
        ("-----BEGIN CERTIFICATE-----\n" * 1000, ""),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", ""),
        ("\x00" * 1000, "\x00"),
    ],
    ids=lambda text: f"{text[:12]!r} {len(text)}",
)
async def test_a_bad_certificate_is_refused(value: str, password: str) -> None:
    """Whatever the library says of it, Key Vault says that it cannot be read, or what is missing."""
    with pytest.raises(BadParameterError, match=r"\w\.$"):
        await keyvault_import.parse(value, password)


def number(bits: int) -> str:
    """Return a number of so many bits in base64url."""
    return base64.urlsafe_b64encode((2**bits - 1).to_bytes((bits + 7) // 8)).decode().rstrip("=")


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "RSA", "n": number(1_000_000), "e": "AQAB", "d": number(999_999)},
        {"kty": "RSA", "n": number(2048), "e": number(1_000_000), "d": number(2048)},
        {"kty": "RSA", "n": number(2048), "e": "AQAB", "d": number(2047)},
        {"kty": "RSA", "n": number(2048), "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": number(256), "y": number(256), "d": number(1_000_000)},
        {"kty": "EC", "crv": "secp256k1", "x": number(256), "y": number(256), "d": number(256)},
        {"kty": "oct", "k": "AAAA"},
    ],
    ids=lambda jwk: f"{jwk['kty']} {max(len(str(text)) for text in jwk.values())}",
)
def test_a_bad_key_is_refused_at_once(jwk: dict[str, Any]) -> None:
    """Numbers that are too large are not looked at: their check would take hours."""
    with pytest.raises(BadParameterError, match=r"."):
        keyvault_crypto.import_jwk(jwk)


@pytest.mark.parametrize("months", [-1, 1201, 10**30])
def test_a_certificate_has_an_end_that_a_calendar_has(months: int) -> None:
    """Zero is the default, a year."""
    policy = {"x509_props": {"subject": "CN=a", "validity_months": months}}
    with pytest.raises(BadParameterError, match="from 1 to 1200"):
        keyvault_x509.self_signed(policy, KEY, NOW)
    assert isinstance(CERTIFICATE, x509.Certificate)
