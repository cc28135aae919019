"""The real cluster's keys: one authority, the API server's certificates, and a token for each of its clients.

Files below one directory, in memory like all state.
"""

import datetime as dt
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from podidentity_lab.azure.tls import key_usage
from podidentity_lab.fabric import FABRIC_ADDRESS
from podidentity_lab.kubernetes.signing import SigningKeys
from podidentity_lab.services import KUBERNETES_ADDRESS

ADMIN = "kubernetes-admin"
CONTROLLERS, SCHEDULER, PROXY = "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"

_VALID = dt.timedelta(days=30)
_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
_ADDRESSES = ("127.0.0.1", FABRIC_ADDRESS, KUBERNETES_ADDRESS)
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Pki:
    """Where the keys are. `tokens` are the users' bearer tokens, by user."""

    folder: Path
    ca_pem: bytes
    tokens: dict[str, str]
    accounts: SigningKeys = field(default_factory=SigningKeys, repr=False)

    def path(self, name: str) -> str:
        """Return the path of ca.crt, {api,kubelet-client}.{crt,key} or accounts.{key,pub}."""
        return str(self.folder / name)

    def token_keys(self) -> dict[str, Any]:
        """Return the key set of service accounts' tokens, as kube-apiserver publishes it at /openid/v1/jwks."""
        return self.accounts.key_set()

    def write_account_keys(self) -> None:
        """Write the keys of service accounts' tokens, which their readers read when they start."""
        _write(self.folder / "accounts.key", self.accounts.private_pem())
        _write(self.folder / "accounts.pub", self.accounts.public_pem())

    @property
    def token_file(self) -> str:
        """The file in which kube-apiserver finds the bearer tokens."""
        return self.path("tokens.csv")


def node_user(node: str) -> str:
    """Return the user name of a node's kubelet."""
    return f"system:node:{node}"


def make(folder: Path, nodes: Iterable[str]) -> Pki:
    """Make all keys below `folder`."""
    folder.mkdir(parents=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("podidentity lab: Kubernetes")
    constraints: Extension = (x509.BasicConstraints(ca=True, path_length=0), True)
    root = _sign(name, name, key, key, [constraints, (key_usage(signs_certificates=True), True)])
    hosts: list[x509.GeneralName] = [x509.DNSName(name) for name in _NAMES]
    hosts += [x509.IPAddress(ipaddress.ip_address(address)) for address in _ADDRESSES]
    serving = [(x509.SubjectAlternativeName(hosts), False), _purpose(ExtendedKeyUsageOID.SERVER_AUTH)]
    calling = [_purpose(ExtendedKeyUsageOID.CLIENT_AUTH)]
    for file_name, subject, extensions in (
        ("api", "kube-apiserver", serving),
        ("kubelet-client", "kube-apiserver", calling),
    ):
        subject_key = ec.generate_private_key(ec.SECP256R1())
        _write(folder / f"{file_name}.key", _private(subject_key))
        _write(
            folder / f"{file_name}.crt", _sign(_name(subject), name, subject_key, key, extensions).public_bytes(_PEM)
        )
    pki = Pki(folder, root.public_bytes(_PEM), {})
    pki.write_account_keys()
    _write(folder / "ca.crt", pki.ca_pem)
    users = {ADMIN: "system:masters", CONTROLLERS: "", SCHEDULER: "", PROXY: ""}
    users |= {node_user(node): "system:nodes" for node in nodes}
    pki.tokens.update({user: secrets.token_urlsafe(24) for user in users})
    lines = [f'{pki.tokens[user]},{user},{user},"{group}"\n' for user, group in users.items()]
    _write(folder / "tokens.csv", "".join(lines).encode())
    return pki


Extension = tuple[x509.ExtensionType, bool]
"""An extension of a certificate, and whether it is critical."""


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    subject_key: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePrivateKey,
    extensions: Iterable[Extension],
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(subject_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject_key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(authority, hashes.SHA256())


def _purpose(usage: x509.ObjectIdentifier) -> Extension:
    return x509.ExtendedKeyUsage([usage]), False


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)
