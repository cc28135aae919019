"""Certificates of a vault without HTTP: self-signed by a policy, and PFX and PEM, which are imported and exported.

Policies have the form of learn.microsoft.com/rest/api/keyvault/certificates. What Key Vault answers with 400 raises
`BadParameterError`.
"""

import base64
import datetime as dt
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from podidentity_lab.azure import keyvault_crypto
from podidentity_lab.azure.keyvault_crypto import BadParameterError, PrivateKey
from podidentity_lab.azure.state import Json

PFX, PEM = "application/x-pkcs12", "application/x-pem-file"
_SERVER_AND_CLIENT = ("1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2")
_MOST_MONTHS = 1200
_USAGES = {
    "digitalSignature": "digital_signature",
    "nonRepudiation": "content_commitment",
    "keyEncipherment": "key_encipherment",
    "dataEncipherment": "data_encipherment",
    "keyAgreement": "key_agreement",
    "keyCertSign": "key_cert_sign",
    "cRLSign": "crl_sign",
    "encipherOnly": "encipher_only",
    "decipherOnly": "decipher_only",
}
UNREADABLE = (
    "The specified PKCS#12 X.509 certificate or PEM content can not be read. Please check the password as well."
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A certificate with its private key, the certificates above it, and the type that it came as: PFX or PEM."""

    key: PrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    content_type: str


def self_signed(policy: Json, key: PrivateKey, now: dt.datetime) -> x509.Certificate:
    """Return a certificate of `key` by a policy's `x509_props`, valid from `now` on."""
    properties = policy.get("x509_props") or {}
    subject = _subject(str(properties.get("subject") or ""))
    months = int(properties.get("validity_months") or 12)
    if not 1 <= months <= _MOST_MONTHS:
        raise BadParameterError(f"The property 'validity_months' is {months}; it is from 1 to {_MOST_MONTHS}.")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=months * 365 // 12))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_usage(properties.get("key_usage") or ["digitalSignature", "keyEncipherment"]), critical=True)
    )
    purposes = [x509.ObjectIdentifier(text) for text in properties.get("ekus") or _SERVER_AND_CLIENT]
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    names = _alternative_names(properties.get("sans") or {})
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


def parse(value: str, password: str) -> Bundle:
    """Return what an import brings: base64 of PFX, or PEM, as it is or in base64, with a private key."""
    try:
        data = value.encode() if "-----BEGIN" in value else base64.b64decode(value, validate=True)
        secret = password.encode() if password else None
        if b"-----BEGIN" in data:
            private_key = serialization.load_pem_private_key(data, secret)
            certificates = x509.load_pem_x509_certificates(data)
            return _bundle(private_key, certificates, PEM)
        archive = pkcs12.load_pkcs12(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise BadParameterError(UNREADABLE) from None
    entries = [archive.cert, *archive.additional_certs]
    return _bundle(archive.key, [entry.certificate for entry in entries if entry is not None], PFX)


def export(bundle: Bundle, *, with_key: bool) -> str:
    """Return a certificate as the value of its secret: PFX in base64 without a password, or PEM; the key if it may."""
    if bundle.content_type == PEM:
        key_text = keyvault_crypto.to_pem(bundle.key) if with_key else ""
        certificates = (bundle.certificate, *bundle.chain)
        return key_text + "".join(to_pem(certificate) for certificate in certificates)
    key = bundle.key if with_key else None
    lock = serialization.NoEncryption()
    return base64.b64encode(
        pkcs12.serialize_key_and_certificates(None, key, bundle.certificate, list(bundle.chain) or None, lock)
    ).decode()


def to_pem(certificate: x509.Certificate) -> str:
    """Return a certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def thumbprint(certificate: x509.Certificate) -> str:
    """Return `x5t`: the certificate's SHA-1 in base64url (RFC 7515, 4.1.7)."""
    digest = certificate.fingerprint(hashes.SHA1())  # noqa: S303  # the RFC's
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _bundle(key: object, certificates: list[x509.Certificate], content_type: str) -> Bundle:
    """Return the bundle of a key and certificates, one of which is the key's."""
    if key is None:
        raise BadParameterError("The certificate has no private key: import it together with its key.")
    private_key = keyvault_crypto.check(key)
    leaves = [certificate for certificate in certificates if certificate.public_key() == private_key.public_key()]
    if not leaves:
        raise BadParameterError("None of the certificates is of the private key.")
    chain = tuple(certificate for certificate in certificates if certificate not in leaves)
    return Bundle(private_key, leaves[0], chain, content_type)


def _subject(text: str) -> x509.Name:
    try:
        subject = x509.Name.from_rfc4514_string(re.sub(r",\s+", ",", text.strip()))
    except ValueError:
        subject = x509.Name([])
    if not subject.rdns:
        raise BadParameterError(f"The property 'subject' is '{text}'; give a name such as CN=example.com, O=Example.")
    return subject


def _alternative_names(names: Json) -> list[x509.GeneralName]:
    return [
        *(x509.DNSName(text) for text in names.get("dns_names") or ()),
        *(x509.RFC822Name(text) for text in names.get("emails") or ()),
    ]


def _usage(names: list[str]) -> x509.KeyUsage:
    unknown_names = [name for name in names if name not in _USAGES]
    if unknown_names:
        raise BadParameterError(f"The property 'key_usage' has '{unknown_names[0]}'; it takes {', '.join(_USAGES)}.")
    return x509.KeyUsage(**{argument: name in names for name, argument in _USAGES.items()})
