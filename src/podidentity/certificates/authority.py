"""X.509, through `cryptography`: makes CAs and serving certificates, and reads a CA as it was stored.

Keys are ECDSA P-256, which every TLS client knows. A CA that an administrator stored may have an RSA key.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from podidentity.core.certificates.replacement import Validity

CLOCK_SECONDS = 300.0
"""By how much a client's clock may be behind ours: certificates are valid from as long ago, as Kubernetes' own are."""
_COMMON_NAME_LIMIT = 64  # RFC 5280, appendix A.1: ub-common-name
_NAME_CHARACTERS = 40
_PEM = serialization.Encoding.PEM

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and the key that signs."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return render_certificate(self.certificate)

    @property
    def key_pem(self) -> bytes:
        """The private key as PEM (PKCS#8), not encrypted."""
        return _render_key(self.key)


@dataclass(frozen=True, slots=True)
class ServingCertificate:
    """A server's certificate with the certificates that it sends along, and its key, both as PEM."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)


def new_authority(name: str, validity: Validity) -> Authority:
    """Return a new CA. Its subject is `name` with a number, so that no client takes one CA for another."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"{name[:_NAME_CHARACTERS]} {secrets.token_hex(8)}")
    certificate = _authority_builder(
        subject, subject, key.public_key(), key.public_key(), validity, path_length=1
    ).sign(key, hashes.SHA256())
    return Authority(certificate, key)


def cross_certificate(authority: Authority, predecessor: Authority) -> bytes:
    """Return, as PEM, a certificate of `authority` that `predecessor` signs: who trusts only that one can go on."""
    overlap = Validity(
        max(validity_of(authority.certificate).start, validity_of(predecessor.certificate).start),
        min(validity_of(authority.certificate).end, validity_of(predecessor.certificate).end),
    )
    certificate = _authority_builder(
        authority.certificate.subject,
        predecessor.certificate.subject,
        authority.key.public_key(),
        predecessor.key.public_key(),
        overlap,
        path_length=0,
    ).sign(predecessor.key, hashes.SHA256())
    return render_certificate(certificate)


def sign_serving(
    authority: Authority, dns_names: Sequence[str], validity: Validity, intermediates: bytes = b""
) -> ServingCertificate:
    """Return a new key with a certificate for `dns_names`; servers send `intermediates` (PEM) along."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(
            _subject(dns_names[0][:_COMMON_NAME_LIMIT]),
            authority.certificate.subject,
            key.public_key(),
            authority.key.public_key(),
            validity,
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    return ServingCertificate(render_certificate(certificate) + intermediates, _render_key(key))


def read_authority(certificate_pem: bytes, key_pem: bytes) -> Authority:
    """Return the CA that was stored. Raises ValueError, whose text says what is wrong."""
    certificates = read_certificates(certificate_pem)
    if len(certificates) != 1:
        raise ValueError(f"{len(certificates)} certificates instead of one")
    certificate = certificates[0]
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as error:
        raise ValueError("the key is no private key in PEM without a password") from error
    if not isinstance(key, PrivateKey):
        raise ValueError("the key is neither an elliptic curve's nor RSA")  # noqa: TRY004  # a text in a Secret is wrong, not a type
    if key.public_key() != certificate.public_key():
        raise ValueError("the key is not the certificate's")
    return Authority(certificate, key)


def read_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the CA certificates in a PEM text. Raises ValueError when one is not that of a self-signed CA."""
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
        are_authorities = all(
            certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            for certificate in certificates
        )
        for certificate in certificates:
            certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature) as error:
        raise ValueError("no certificate of a self-signed CA in PEM") from error
    if not are_authorities:
        raise ValueError("a certificate is not that of a CA")
    return certificates


def render_certificate(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(_PEM)


def validity_of(certificate: x509.Certificate) -> Validity:
    """Return from when to when a certificate is valid, without the time for clocks that are behind."""
    return Validity(
        certificate.not_valid_before_utc.timestamp() + CLOCK_SECONDS, certificate.not_valid_after_utc.timestamp()
    )


def _authority_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey,
    issuer_key: PublicKey,
    validity: Validity,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        _builder(subject, issuer, key, issuer_key, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, issuer_key: PublicKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(validity.start - CLOCK_SECONDS, UTC))
        .not_valid_after(datetime.fromtimestamp(validity.end, UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _render_key(key: PrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
