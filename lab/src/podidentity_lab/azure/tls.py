"""The lab's certificate authority: one root, and a server certificate for whatever name a client asks for."""

import datetime as dt
import os
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

JAVA_PASSWORD = "changeit"  # noqa: S105  # Java's usual one: what it locks is public, but Java wants a lock
_VALID = dt.timedelta(days=30)
_PEM = serialization.Encoding.PEM


class Authority:
    """Issues server certificates. Its root is in `keys` (PEM); a new one is made when that is missing or expires soon.

    It keeps one TLS context for each name that was asked for.
    """

    def __init__(self, keys: dict[str, str]) -> None:
        key_and_root = _stored_root(keys)
        self._key = key_and_root[0] if key_and_root else ec.generate_private_key(ec.SECP256R1())
        self._root = key_and_root[1] if key_and_root else self._new_root()
        keys |= {"authority": _private(self._key).decode(), "authority_certificate": self.pem.decode()}
        self._contexts: dict[str, ssl.SSLContext] = {}

    @property
    def pem(self) -> bytes:
        """The root certificate, in PEM."""
        return self._root.public_bytes(_PEM)

    @property
    def java_trust_store(self) -> bytes:
        """The root certificate as a PKCS#12 archive that Java takes as `javax.net.ssl.trustStore`."""
        certificate = pkcs12.PKCS12Certificate(self._root, b"lab")
        lock = serialization.BestAvailableEncryption(JAVA_PASSWORD.encode())
        return pkcs12.serialize_java_truststore([certificate], lock)

    def context(self, default_name: str) -> ssl.SSLContext:
        """Return a server's context, with a certificate for the name in SNI, or for `default_name` without SNI."""

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._leaf(name or default_name)

        context = self._leaf(default_name)
        context.sni_callback = choose
        return context

    def _new_root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podidentity lab: Azure")])
        return (
            self._builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def _leaf(self, name: str) -> ssl.SSLContext:
        if name not in self._contexts:
            self._contexts[name] = self._issue(name)
        return self._contexts[name]

    def _issue(self, name: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        leaf = (
            self._builder(subject, self._root.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_pem(context, _private(key) + leaf.public_bytes(_PEM) + self.pem)
        return context

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        key_identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(self._root.not_valid_after_utc if hasattr(self, "_root") else now + _VALID)
            .add_extension(key_identifier, critical=False)
            .add_extension(authority, critical=False)
        )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _stored_root(keys: dict[str, str]) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None:
    if "authority" not in keys:
        return None
    key = serialization.load_pem_private_key(keys["authority"].encode(), None)
    root = x509.load_pem_x509_certificate(keys["authority_certificate"].encode())
    lasts = root.not_valid_after_utc - dt.datetime.now(dt.UTC) > _VALID / 10
    return (key, root) if lasts and isinstance(key, ec.EllipticCurvePrivateKey) else None


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Give a server's context its key and certificates.

    The ssl module reads files only. This one is in memory: a lab that is killed meanwhile leaves no key on the disk.
    """
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return what a key may be used for. An authority must say it (RFC 5280, 4.2.1.3), which Python 3.13 enforces."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
