"""The keys that sign service accounts' tokens, and their rotation, during which no token fails.

A rotation has three steps, with time between them for whoever keeps published keys: publish the next key, sign with
it, withdraw the old one (kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin).
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from podidentity.errors import LabError

Json = dict[str, Any]
_SIGNATURE_ONLY: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}


@dataclass(frozen=True, slots=True)
class _Key:
    private: rsa.RSAPrivateKey = field(
        default_factory=lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048), repr=False
    )

    @property
    def kid(self) -> str:
        """As kube-apiserver names keys: SHA-256 of the public key's DER."""
        der = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


class SigningKeys:
    """All published keys; one of them signs."""

    def __init__(self) -> None:
        self._signing = _Key()
        self._published = [self._signing]

    def rotate(self, phase: str) -> list[str]:
        """Take one step, `publish`, `sign` or `withdraw`; return the published key IDs. Raises `LabError`."""
        fresh = self._published[-1] is not self._signing
        match phase:
            case "publish" if len(self._published) == 1:
                self._published.append(_Key())
            case "sign" if fresh:
                self._signing = self._published[-1]
            case "withdraw" if len(self._published) > 1 and not fresh:
                self._published = [self._signing]
            case _:
                raise LabError(f"issuer key: it cannot {phase} now; the order is publish, sign, withdraw")
        return [key.kid for key in self._published]

    def private_pem(self) -> bytes:
        """Return the key that signs, for kube-apiserver's --service-account-signing-key-file."""
        return self._signing.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def public_pem(self) -> bytes:
        """Return all published keys, one after another, for kube-apiserver's --service-account-key-file."""
        return b"".join(
            key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            for key in self._published
        )

    def key_set(self) -> Json:
        """Return what verifies the tokens, as the API publishes it at /openid/v1/jwks."""
        return {"keys": [_document(key) for key in self._published]}

    def sign(self, claims: Json) -> str:
        """Return a token."""
        return jwt.encode(claims, self._signing.private, "RS256", headers={"kid": self._signing.kid, "typ": None})

    def verify(self, token: str) -> Json | None:
        """Return the claims of a token that a published key signed, whatever its times and audience; else None."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = next(key for key in self._published if key.kid == kid)
            claims: Json = jwt.decode(token, key.private.public_key(), ["RS256"], options=_SIGNATURE_ONLY)
        except (jwt.InvalidTokenError, StopIteration):
            return None
        return claims


def _document(key: _Key) -> Json:
    public: Json = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.private.public_key()))
    return {**public, "use": "sig", "alg": "RS256", "kid": key.kid}
