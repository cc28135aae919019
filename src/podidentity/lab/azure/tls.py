"""The lab's certificate authority: one root, and a leaf for whatever name a client asks for."""

import datetime as dt
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = dt.timedelta(days=30)
_PEM = serialization.Encoding.PEM


class Authority:
    """Issues leaves. The root is kept in `keys` (PEM), and made when it is not there, or about to expire.

    The ssl module takes files only, so each leaf is written once and removed.
    """

    def __init__(self, keys: dict[str, str]) -> None:
        kept = _kept(keys)
        self._key = kept[0] if kept else ec.generate_private_key(ec.SECP256R1())
        self._root = kept[1] if kept else self._made()
        keys |= {"authority": _private(self._key).decode(), "authority_certificate": self.pem.decode()}
        self._contexts: dict[str, ssl.SSLContext] = {}

    @property
    def pem(self) -> bytes:
        """The root certificate."""
        return self._root.public_bytes(_PEM)

    def context(self, default_name: str) -> ssl.SSLContext:
        """A server's context: `default_name` without SNI, else a leaf for the name that was asked for."""

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._leaf(name or default_name)

        context = self._leaf(default_name)
        context.sni_callback = choose
        return context

    def _made(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podidentity lab: Azure")])
        return (
            self._builder(name, name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
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
            .add_extension(_usage(signs_certificates=False), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "leaf.pem"
            file.touch(0o600)
            file.write_bytes(_private(key) + leaf.public_bytes(_PEM) + self.pem)
            context.load_cert_chain(file)
        return context

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        own = x509.SubjectKeyIdentifier.from_public_key(public_key)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(self._root.not_valid_after_utc if hasattr(self, "_root") else now + _VALID)
            .add_extension(own, critical=False)
            .add_extension(authority, critical=False)
        )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _kept(keys: dict[str, str]) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None:
    if "authority" not in keys:
        return None
    key = serialization.load_pem_private_key(keys["authority"].encode(), None)
    root = x509.load_pem_x509_certificate(keys["authority_certificate"].encode())
    lasts = root.not_valid_after_utc - dt.datetime.now(dt.UTC) > _VALID / 10
    return (key, root) if lasts and isinstance(key, ec.EllipticCurvePrivateKey) else None


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
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
