"""The real cluster's keys: one authority, the API server's certificates, and a token for each who talks to it.

Files below one directory, in memory like all state. Called by `cluster`.
"""

import base64
import datetime as dt
import hashlib
import ipaddress
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from podidentity.lab.fabric import FABRIC_ADDRESS
from podidentity.lab.services import KUBERNETES_ADDRESS

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

    def path(self, name: str) -> str:
        """One of: ca.crt, api.crt, api.key, kubelet-client.crt, kubelet-client.key, accounts.key, accounts.pub."""
        return str(self.folder / name)

    def token_keys(self) -> dict[str, Any]:
        """What verifies service accounts' tokens: the key set that kube-apiserver publishes at /openid/v1/jwks."""
        text = (self.folder / "accounts.pub").read_bytes()
        public = cast("rsa.RSAPublicKey", serialization.load_pem_public_key(text))
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        # kube-apiserver names a key after itself: pkg/serviceaccount/jwt.go, keyIDFromPublicKey.
        kid = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
        shown = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(public))
        return {"keys": [{**shown, "use": "sig", "alg": "RS256", "kid": kid}]}

    @property
    def token_file(self) -> str:
        """What kube-apiserver reads."""
        return self.path("tokens.csv")


def node_user(node: str) -> str:
    """The user that a node's kubelet is."""
    return f"system:node:{node}"


def make(folder: Path, nodes: Iterable[str]) -> Pki:
    """Make all keys below `folder`."""
    folder.mkdir(parents=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("podidentity lab: Kubernetes")
    root = _sign(name, name, key, key, [(x509.BasicConstraints(ca=True, path_length=0), True)])
    hosts: list[x509.GeneralName] = [x509.DNSName(one) for one in _NAMES]
    hosts += [x509.IPAddress(ipaddress.ip_address(one)) for one in _ADDRESSES]
    serving = [(x509.SubjectAlternativeName(hosts), False), _purpose(ExtendedKeyUsageOID.SERVER_AUTH)]
    calling = [_purpose(ExtendedKeyUsageOID.CLIENT_AUTH)]
    for called, subject, extensions in (
        ("api", "kube-apiserver", serving),
        ("kubelet-client", "kube-apiserver", calling),
    ):
        own = ec.generate_private_key(ec.SECP256R1())
        _write(folder / f"{called}.key", _private(own))
        _write(folder / f"{called}.crt", _sign(_name(subject), name, own, key, extensions).public_bytes(_PEM))
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write(folder / "accounts.key", _private(accounts))
    public = accounts.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write(folder / "accounts.pub", public)
    pki = Pki(folder, root.public_bytes(_PEM), {})
    _write(folder / "ca.crt", pki.ca_pem)
    users = {ADMIN: "system:masters", CONTROLLERS: "", SCHEDULER: "", PROXY: ""}
    users |= {node_user(node): "system:nodes" for node in nodes}
    pki.tokens.update({user: secrets.token_urlsafe(24) for user in users})
    lines = [f'{pki.tokens[user]},{user},{user},"{group}"\n' for user, group in users.items()]
    _write(folder / "tokens.csv", "".join(lines).encode())
    return pki


Extension = tuple[x509.ExtensionType, bool]
"""And whether it is critical."""


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    own: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePrivateKey,
    extensions: Iterable[Extension],
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(authority, hashes.SHA256())


def _purpose(usage: x509.ObjectIdentifier) -> Extension:
    return x509.ExtendedKeyUsage([usage]), False


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)
