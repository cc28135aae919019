"""Azure's certificate client for Python, unmodified: creates, reads, imports, deletes and recovers certificates.

Signs in with the environment's service principal and prints what it saw as one line of JSON. AZURE_KEYVAULT_NAME names
a vault where that principal has Key Vault Certificates Officer and Secrets User.
"""

import base64
import json
import os
from importlib.metadata import version

from azure.core.exceptions import HttpResponseError
from azure.identity import EnvironmentCredential
from azure.keyvault.certificates import CertificateClient, CertificateContentType, CertificatePolicy
from azure.keyvault.secrets import SecretClient
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

VAULT = f"https://{os.environ['AZURE_KEYVAULT_NAME']}.vault.azure.net"
LOCK = BestAvailableEncryption(b"open")


def main() -> None:
    """Run all steps once, and print what the client returned."""
    seen: dict[str, object] = {"versions": {"azure-keyvault-certificates": version("azure-keyvault-certificates")}}
    credential = EnvironmentCredential()
    policy = CertificatePolicy(issuer_name="Self", subject="CN=sdk.example", san_dns_names=["sdk.example"])
    with CertificateClient(VAULT, credential) as client, SecretClient(VAULT, credential) as secrets:
        made = client.begin_create_certificate("sdk", policy, _polling_interval=0).result()
        certificate = x509.load_der_x509_certificate(bytes(made.cer))
        seen["subject"] = certificate.subject.rfc4514_string()
        key = pkcs12.load_pkcs12(base64.b64decode(secrets.get_secret("sdk").value or ""), None).key
        assert isinstance(key, rsa.RSAPrivateKey)
        seen["own"] = key.public_key() == certificate.public_key()
        data = pkcs12.serialize_key_and_certificates(b"sdk", key, certificate, None, LOCK)
        client.import_certificate("pfx", data, password="open")
        pem = CertificatePolicy(issuer_name="Self", subject="CN=pem.example", content_type=CertificateContentType.pem)
        client.begin_create_certificate("pem", pem, _polling_interval=0).wait()
        text = (secrets.get_secret("pem").value or "").encode()
        client.import_certificate("copy", text, policy=pem)
        seen["same"] = client.get_certificate("copy").cer == client.get_certificate("pem").cer
        seen["names"] = sorted(str(item.name) for item in client.list_properties_of_certificates())
        seen["operation"] = client.get_certificate_operation("sdk").status
        deletion = client.begin_delete_certificate("sdk", _polling_interval=0).result()
        recovery = client.begin_recover_deleted_certificate("sdk", _polling_interval=0).result()
        seen["life"] = [deletion.name, recovery.name]
        try:
            client.get_certificate("nobody")
        except HttpResponseError as error:
            seen["missing"] = f"{type(error).__name__} {error.error and error.error.code}"
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
