"""Key Vault's algorithms: OpenSSL's primitives verify and decrypt what a key signs and encrypts."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt import get_algorithm_by_name
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from podidentity_lab.azure import keyvault_crypto
from podidentity_lab.azure.keyvault_crypto import BadParameterError

RSA_KEY = keyvault_crypto.generate("RSA", 2048, "")
EC_KEYS = {curve: keyvault_crypto.generate("EC", 0, curve) for curve in keyvault_crypto.CURVES}
DIGESTS = {bits: hashlib.new(f"sha{bits}", b"text").digest() for bits in ("256", "384", "512")}
TEXT = b"what nobody else reads"


def key_for(algorithm: str) -> keyvault_crypto.PrivateKey:
    """Return the key that fits a signature algorithm."""
    return EC_KEYS[{"256": "P-256", "384": "P-384", "512": "P-521"}[algorithm[2:]]] if algorithm[0] == "E" else RSA_KEY


@pytest.mark.parametrize("algorithm", [f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in DIGESTS])
def test_a_signature_is_of_its_digest_alone(algorithm: str) -> None:
    """PyJWT's implementation verifies each signature; another digest or signature is refused."""
    key, digest = key_for(algorithm), DIGESTS[algorithm[2:]]
    signature = keyvault_crypto.sign(key, algorithm, digest)
    assert keyvault_crypto.verify(key, algorithm, digest, signature)
    assert not keyvault_crypto.verify(key, algorithm, bytes(len(digest)), signature)
    assert not keyvault_crypto.verify(key, algorithm, digest, signature[:-1])
    assert get_algorithm_by_name(algorithm).verify(b"text", key.public_key(), signature)


@pytest.mark.parametrize("algorithm", ["RSA1_5", "RSA-OAEP", "RSA-OAEP-256"])
def test_what_is_encrypted_is_read_with_the_same_key_and_algorithm(algorithm: str) -> None:
    """A ciphertext is decrypted to its text; a text that is too long is refused."""
    ciphertext = keyvault_crypto.encrypt(RSA_KEY, algorithm, TEXT)
    assert TEXT not in ciphertext
    assert keyvault_crypto.decrypt(RSA_KEY, algorithm, ciphertext) == TEXT
    with pytest.raises(BadParameterError, match="257 bytes are too many"):
        keyvault_crypto.encrypt(RSA_KEY, algorithm, bytes(257))


def test_a_ciphertext_of_another_key_is_refused() -> None:
    """With OAEP, decryption with another key is an error."""
    other_key = keyvault_crypto.generate("RSA", 2048, "")
    with pytest.raises(BadParameterError, match="cannot be decrypted"):
        keyvault_crypto.decrypt(RSA_KEY, "RSA-OAEP", keyvault_crypto.encrypt(other_key, "RSA-OAEP", TEXT))


@pytest.mark.parametrize(
    ("key", "algorithm", "digest", "sentence"),
    [
        (RSA_KEY, "HS256", DIGESTS["256"], "'HS256' is not supported"),
        (RSA_KEY, "ES256", DIGESTS["256"], "Key is of type 'RSA', algorithm is 'ES256'"),
        (EC_KEYS["P-256"], "ES384", DIGESTS["384"], "Key is of type 'EC P-256', algorithm is 'ES384'"),
        (RSA_KEY, "RS256", b"short", "5 bytes. RS256 requires 32 bytes"),
    ],
)
def test_an_algorithm_must_fit_key_and_digest(
    key: keyvault_crypto.PrivateKey, algorithm: str, digest: bytes, sentence: str
) -> None:
    """The refusal names what does not fit."""
    with pytest.raises(BadParameterError, match=sentence):
        keyvault_crypto.sign(key, algorithm, digest)


def test_only_rsa_encrypts_and_only_by_its_algorithms() -> None:
    """An EC key and an unknown name are refused."""
    with pytest.raises(BadParameterError, match="needs an RSA key"):
        keyvault_crypto.encrypt(EC_KEYS["P-256"], "RSA-OAEP", TEXT)
    with pytest.raises(BadParameterError, match="'A256GCM' is not supported"):
        keyvault_crypto.decrypt(RSA_KEY, "A256GCM", TEXT)


@pytest.mark.parametrize("key", [RSA_KEY, *EC_KEYS.values()], ids=["RSA", *EC_KEYS])
def test_a_key_comes_back_from_its_jwk_and_its_pem(key: keyvault_crypto.PrivateKey) -> None:
    """A key has the same public numbers after import; a public JSON Web Key cannot be imported."""
    if isinstance(key, rsa.RSAPrivateKey):
        jwk = RSAAlgorithm.to_jwk(key, as_dict=True)
    else:
        jwk = ECAlgorithm.to_jwk(key, as_dict=True)
    public = keyvault_crypto.public_jwk(key)
    assert keyvault_crypto.public_jwk(keyvault_crypto.import_jwk(jwk)) == public
    assert keyvault_crypto.public_jwk(keyvault_crypto.from_pem(keyvault_crypto.to_pem(key))) == public
    assert not {"d", "p", "q", "dp", "dq", "qi"} & public.keys()
    with pytest.raises(BadParameterError, match="no private part"):
        keyvault_crypto.import_jwk(public)


@pytest.mark.parametrize(
    ("kind", "size", "curve", "sentence"),
    [
        ("RSA", 1024, "", "'key_size' is 1024; an RSA key has 2048, 3072, 4096 bits"),
        ("EC", 0, "P-256K", "'crv' is 'P-256K'"),
        ("RSA-HSM", 2048, "", "'kty' is 'RSA-HSM'; the lab's vaults have RSA and EC keys, in software only"),
    ],
)
def test_a_key_that_vaults_do_not_have_is_refused(kind: str, size: int, curve: str, sentence: str) -> None:
    """The refusal names the types, curves and sizes that there are."""
    with pytest.raises(BadParameterError, match=sentence):
        keyvault_crypto.generate(kind, size, curve)


def test_what_is_no_key_of_a_vault_is_not_imported() -> None:
    """Another type, malformed numbers, and a curve or size that vaults lack are refused."""
    with pytest.raises(BadParameterError, match="'kty' is 'oct'"):
        keyvault_crypto.import_jwk({"kty": "oct", "k": "AA"})
    with pytest.raises(BadParameterError, match="The parameter key is invalid"):
        keyvault_crypto.import_jwk({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "d": "AA"})
    for key in (ec.generate_private_key(ec.SECP256K1()), rsa.generate_private_key(65537, 1024)):  # noqa: S505
        with pytest.raises(BadParameterError, match="neither RSA of 2048, 3072, 4096 bits nor EC"):
            keyvault_crypto.check(key)
