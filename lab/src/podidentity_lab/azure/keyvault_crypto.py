"""Key Vault's cryptography without HTTP: RSA and EC keys, and what they sign, verify, encrypt and decrypt.

Algorithms have their names of learn.microsoft.com/azure/key-vault/keys/about-keys-details, which are those of RFC 7518.
Keys are JSON Web Keys outside (RFC 7517) and PEM in the state. Digests, signatures and ciphertexts are bytes. Every
function raises `BadParameterError` for what Key Vault answers with 400.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from jwt import InvalidKeyError
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from podidentity_lab.azure.state import Json

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

RSA_SIZES = (2048, 3072, 4096)
CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_NUMBERS = ("n", "e", "d", "p", "q", "dp", "dq", "qi", "x", "y")
_LONGEST_NUMBER = 700  # characters of base64url, for 4096 bits: a key is checked, which takes hours for large numbers
OPERATIONS = {
    "RSA": ("encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"),
    "EC": ("sign", "verify"),
}
_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVE_OF = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_SIGNATURES = tuple(f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in _HASHES)
_PADDINGS: dict[str, padding.AsymmetricPadding] = {
    "RSA1_5": padding.PKCS1v15(),
    "RSA-OAEP": padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None),  # noqa: S303  # RFC 7518, 4.3
    "RSA-OAEP-256": padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None),
}


class BadParameterError(Exception):
    """A request that Key Vault refuses with 400 BadParameter; the text is its message."""


def generate(key_type: str, size: int, curve: str) -> PrivateKey:
    """Return a new key: RSA of `size` bits, or EC on `curve`. A large RSA key takes seconds."""
    if key_type == "RSA" and size in RSA_SIZES:
        return rsa.generate_private_key(65537, size)
    if key_type == "EC" and curve in CURVES:
        return ec.generate_private_key(CURVES[curve])
    raise BadParameterError(_unsupported(key_type, size, curve))


def import_jwk(jwk: Json) -> PrivateKey:
    """Return the private key that a JSON Web Key holds."""
    key_type = str(jwk.get("kty", ""))
    if key_type not in OPERATIONS:
        raise BadParameterError(_unsupported(key_type, 0, ""))
    if any(len(str(number)) > _LONGEST_NUMBER for name, number in jwk.items() if name in _NUMBERS):
        raise BadParameterError(f"The parameter key is too large: RSA keys have {_listing(RSA_SIZES)} bits.")
    try:
        key = (RSAAlgorithm if key_type == "RSA" else ECAlgorithm).from_jwk({**jwk})
    except (InvalidKeyError, ValueError) as error:
        raise BadParameterError(f"The parameter key is invalid: {error}") from None
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise BadParameterError("The parameter key has no private part: send d, and for RSA p, q, dp, dq and qi.")
    return check(key)


def check(key: object) -> PrivateKey:
    """Return `key` when it is one that Key Vault takes."""
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size in RSA_SIZES:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and curve_name(key) in CURVES:
        return key
    raise BadParameterError(f"The key is neither RSA of {_listing(RSA_SIZES)} bits nor EC on {_listing(CURVES)}.")


def public_jwk(key: PrivateKey) -> Json:
    """Return the public part of a key as a JSON Web Key, with `kty` and its numbers only."""
    if isinstance(key, rsa.RSAPrivateKey):
        jwk = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {name: jwk[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in jwk}


def to_pem(key: PrivateKey) -> str:
    """Return a key in PEM (PKCS#8), without a password."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


def from_pem(pem: str) -> PrivateKey:
    """Return the key that `to_pem` wrote."""
    return check(serialization.load_pem_private_key(pem.encode(), None))


def key_type(key: PrivateKey) -> str:
    """Return `kty`: RSA or EC."""
    return "RSA" if isinstance(key, rsa.RSAPrivateKey) else "EC"


def curve_name(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the curve's name in a JSON Web Key, or "" for one that Key Vault does not have."""
    return next((name for name, curve in CURVES.items() if curve.name == key.curve.name), "")


def sign(key: PrivateKey, algorithm: str, digest: bytes) -> bytes:
    """Return the signature of a digest: for EC both numbers one after the other (RFC 7518, 3.4)."""
    algorithm_hash = _hash_of(key, algorithm, digest)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(digest, _signature_padding(algorithm, algorithm_hash), utils.Prehashed(algorithm_hash))
    r, s = utils.decode_dss_signature(key.sign(digest, ec.ECDSA(utils.Prehashed(algorithm_hash))))
    length = _number_length(key)
    return r.to_bytes(length) + s.to_bytes(length)


def verify(key: PrivateKey, algorithm: str, digest: bytes, signature: bytes) -> bool:
    """Whether `signature` is one of `digest` by this key."""
    algorithm_hash = _hash_of(key, algorithm, digest)
    try:
        if isinstance(key, rsa.RSAPrivateKey):
            rsa_padding = _signature_padding(algorithm, algorithm_hash)
            key.public_key().verify(signature, digest, rsa_padding, utils.Prehashed(algorithm_hash))
        else:
            length = _number_length(key)
            if len(signature) != 2 * length:
                return False
            numbers = (int.from_bytes(signature[:length]), int.from_bytes(signature[length:]))
            encoded = utils.encode_dss_signature(*numbers)
            key.public_key().verify(encoded, digest, ec.ECDSA(utils.Prehashed(algorithm_hash)))
    except InvalidSignature:
        return False
    return True


def encrypt(key: PrivateKey, algorithm: str, plaintext: bytes) -> bytes:
    """Return `plaintext` encrypted: what `encrypt` and `wrapKey` do."""
    rsa_key, rsa_padding = _encryption(key, algorithm)
    try:
        return rsa_key.public_key().encrypt(plaintext, rsa_padding)
    except ValueError:
        message = f"Invalid length of 'value': {len(plaintext)} bytes are too many for {algorithm} with this key."
        raise BadParameterError(message) from None


def decrypt(key: PrivateKey, algorithm: str, ciphertext: bytes) -> bytes:
    """Return what `encrypt` encrypted: what `decrypt` and `unwrapKey` do."""
    rsa_key, rsa_padding = _encryption(key, algorithm)
    try:
        return rsa_key.decrypt(ciphertext, rsa_padding)
    except ValueError:
        raise BadParameterError("The parameter is incorrect: the value cannot be decrypted with this key.") from None


def _encryption(key: PrivateKey, algorithm: str) -> tuple[rsa.RSAPrivateKey, padding.AsymmetricPadding]:
    if algorithm not in _PADDINGS:
        raise BadParameterError(f"Encryption algorithm '{algorithm}' is not supported; use {_listing(_PADDINGS)}.")
    if not isinstance(key, rsa.RSAPrivateKey):
        raise BadParameterError(f"Key and encryption algorithm are incompatible: {algorithm} needs an RSA key.")
    return key, _PADDINGS[algorithm]


def _hash_of(key: PrivateKey, algorithm: str, digest: bytes) -> hashes.HashAlgorithm:
    """Return the hash of a signature algorithm that fits the key and the length of the digest."""
    if algorithm not in _SIGNATURES:
        raise BadParameterError(f"Signing algorithm '{algorithm}' is not supported; use {_listing(_SIGNATURES)}.")
    if isinstance(key, rsa.RSAPrivateKey):
        fits = not algorithm.startswith("ES")
    else:
        fits = _CURVE_OF.get(algorithm) == curve_name(key)
    if not fits:
        kind = key_type(key) if isinstance(key, rsa.RSAPrivateKey) else f"EC {curve_name(key)}"
        message = f"Key and signing algorithm are incompatible. Key is of type '{kind}', algorithm is '{algorithm}'."
        raise BadParameterError(message)
    algorithm_hash = _HASHES[algorithm[2:]]
    if len(digest) != algorithm_hash.digest_size:
        message = (
            f"Invalid length of 'value': {len(digest)} bytes. {algorithm} requires {algorithm_hash.digest_size} bytes, "
            "encoded with base64url."
        )
        raise BadParameterError(message)
    return algorithm_hash


def _signature_padding(algorithm: str, algorithm_hash: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
    if algorithm.startswith("RS"):
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(algorithm_hash), algorithm_hash.digest_size)  # RFC 7518, 3.5


def _number_length(key: ec.EllipticCurvePrivateKey) -> int:
    return (key.curve.key_size + 7) // 8


def _unsupported(key_type_name: str, size: int, curve: str) -> str:
    if key_type_name == "RSA":
        return f"The property 'key_size' is {size}; an RSA key has {_listing(RSA_SIZES)} bits."
    if key_type_name == "EC":
        return f"The property 'crv' is '{curve}'; the lab's curves are {_listing(CURVES)}."
    return f"The property 'kty' is '{key_type_name}'; the lab's vaults have RSA and EC keys, in software only."


def _listing(values: object) -> str:
    return ", ".join(str(value) for value in values)  # type: ignore[attr-defined]
