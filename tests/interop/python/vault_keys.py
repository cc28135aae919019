"""Azure's key client for Python, unmodified, against a vault for roles: creates, uses, deletes and recovers keys.

Signs in with the environment's service principal and prints what it saw as one line of JSON. AZURE_KEYVAULT_NAME names
the vault; the principal of USER_CLIENT_ID and USER_CLIENT_SECRET has Key Vault Crypto User there.
"""

import hashlib
import json
import os
from importlib.metadata import version

from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.identity import ClientSecretCredential, EnvironmentCredential
from azure.keyvault.keys import JsonWebKey, KeyClient
from azure.keyvault.keys.crypto import CryptographyClient
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

VAULT = f"https://{os.environ['AZURE_KEYVAULT_NAME']}.vault.azure.net"
TEXT = b"what only the key reads"
CURVES = {"256": "P-256", "384": "P-384", "512": "P-521"}
OWNER = EnvironmentCredential()


def main() -> None:
    """Run all steps once, and print what the client returned."""
    seen: dict[str, object] = {"versions": {"azure-keyvault-keys": version("azure-keyvault-keys")}}
    with KeyClient(VAULT, OWNER) as client:
        first = client.create_rsa_key("rsa", size=3072, tags={"size": "3072"})
        client.create_rsa_key("rsa", size=2048, tags={"size": "2048"})
        seen["sizes"] = [len(key.key.n) * 8 for key in (first, client.get_key("rsa"))]
        for bits, curve in CURVES.items():
            client.create_ec_key(f"ec{bits}", curve=curve)
        seen["foreign"] = import_key(client)
        seen["keys"] = sorted(item.name for item in client.list_properties_of_keys())
        seen["tags"] = [item.tags for item in client.list_properties_of_key_versions("rsa")]
        seen["signatures"] = sorted(sign(client))
        seen["texts"] = sorted(encrypt(client))
        seen["refusals"] = refusals(client)
        seen["life"] = live(client)
    print(json.dumps(seen))


def digest(bits: str) -> bytes:
    """Return the digest of the text."""
    return hashlib.new(f"sha{bits}", TEXT).digest()


def import_key(client: KeyClient) -> str:
    """Import a key that is made here, sign with it in the vault and verify here."""
    key = rsa.generate_private_key(65537, 2048)
    numbers, public = key.private_numbers(), key.public_key().public_numbers()
    fields = {"d": numbers.d, "p": numbers.p, "q": numbers.q, "n": public.n, "e": public.e}
    fields |= {"dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp}
    values = {name: number.to_bytes((number.bit_length() + 7) // 8, "big") for name, number in fields.items()}
    name = client.import_key("foreign", JsonWebKey(kty="RSA", **values)).id
    signature = CryptographyClient(name, OWNER).sign("RS256", digest("256")).signature
    key.public_key().verify(signature, digest("256"), padding.PKCS1v15(), utils.Prehashed(hashes.SHA256()))
    return "verified"


def sign(client: KeyClient) -> list[str]:
    """Return the algorithms with which the vault signs what the SDK verifies."""
    names = []
    for bits in CURVES:
        for family, key in (("RS", "rsa"), ("PS", "rsa"), ("ES", f"ec{bits}")):
            keys = CryptographyClient(client.get_key(key), OWNER)
            signature = keys.sign(f"{family}{bits}", digest(bits)).signature
            if keys.verify(f"{family}{bits}", digest(bits), signature).is_valid:
                names.append(f"{family}{bits}")
    return names


def encrypt(client: KeyClient) -> list[str]:
    """Return the algorithms with which the vault reads what the SDK encrypts, and unwraps what it wraps."""
    names = []
    keys = CryptographyClient(client.get_key("rsa"), OWNER)
    for algorithm in ("RSA1_5", "RSA-OAEP", "RSA-OAEP-256"):
        text = keys.decrypt(algorithm, keys.encrypt(algorithm, TEXT).ciphertext).plaintext
        wrapped = keys.unwrap_key(algorithm, keys.wrap_key(algorithm, TEXT).encrypted_key).key
        if text == wrapped == TEXT:
            names.append(algorithm)
    return names


def refusals(client: KeyClient) -> list[str]:
    """Return the errors for a missing key, a wrong size, and a principal that may only use keys."""
    user = ClientSecretCredential(
        os.environ["AZURE_TENANT_ID"], os.environ["USER_CLIENT_ID"], os.environ["USER_CLIENT_SECRET"]
    )
    CryptographyClient(client.get_key("rsa").id, user).sign("RS256", digest("256"))
    errors = []
    try:
        client.get_key("nobody")
    except ResourceNotFoundError as error:
        errors.append(f"{type(error).__name__} {error.status_code} {error.error and error.error.code}")
    for vault, name, size in ((client, "small", 1024), (KeyClient(VAULT, user), "rsa", 2048)):
        try:
            vault.create_rsa_key(name, size=size)
        except HttpResponseError as error:
            errors.append(f"{type(error).__name__} {error.status_code} {error.error and error.error.code}")
    return errors


def live(client: KeyClient) -> list[str]:
    """Disable a key, delete it, recover it, purge it; return what each step showed."""
    steps = [str(client.update_key_properties("ec256", enabled=False).properties.enabled)]
    deletion = client.begin_delete_key("ec256", _polling_interval=0).result()
    steps += [deletion.name, ",".join(key.name for key in client.list_deleted_keys())]
    try:
        client.create_ec_key("ec256", curve="P-256")
    except ResourceExistsError as error:
        steps.append(f"{error.status_code} {error.error and error.error.code}")
    steps.append(client.begin_recover_deleted_key("ec256", _polling_interval=0).result().name)
    client.begin_delete_key("ec256", _polling_interval=0).wait()
    client.purge_deleted_key("ec256")
    try:
        client.get_deleted_key("ec256")
    except ResourceNotFoundError as error:
        steps.append(str(error.status_code))
    return steps


if __name__ == "__main__":
    main()
