"""Key sets (RFC 7517) of public keys in PEM files, as kube-apiserver and azwi name the keys."""

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from podidentity.errors import ConfigurationError

_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----", re.DOTALL)


def key_set_of(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the key set of all keys in the files, each key once. Raises ConfigurationError, which names the file."""
    keys: dict[str, dict[str, str]] = {}
    for path in paths:
        for key in _read(path):
            item = _render(key)
            keys[item["kid"]] = item
    return {"keys": list(keys.values())}


def _read(path: Path) -> list[RSAPublicKey]:
    try:
        blocks = [(match[1].decode(), match[0]) for match in _BLOCK.finditer(path.read_bytes())]
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name a file with public keys in PEM") from None
    if not blocks:
        raise ConfigurationError(f"{path}: no key in PEM; name a file with public keys")
    keys = []
    for name, block in blocks:
        if "PRIVATE" in name:
            raise ConfigurationError(f"{path}: it holds a private key; give the public one: openssl rsa -pubout")
        if name == "CERTIFICATE":
            raise ConfigurationError(
                f"{path}: it holds a certificate; give its public key: openssl x509 -noout -pubkey"
            )
        try:
            key = load_pem_public_key(block)
        except ValueError:
            raise ConfigurationError(f"{path}: a {name} cannot be read; give public keys in PEM") from None
        if not isinstance(key, RSAPublicKey):
            raise ConfigurationError(f"{path}: a key is not RSA, and Entra ID takes RS256 alone; sign with an RSA key")
        keys.append(key)
    return keys


def _render(key: RSAPublicKey) -> dict[str, str]:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    numbers = key.public_numbers()
    return {
        "use": "sig",
        "kty": "RSA",
        "kid": _base64url(hashlib.sha256(der).digest()),
        "alg": "RS256",
        "n": _number(numbers.n),
        "e": _number(numbers.e),
    }


def _number(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
