"""Key Vault's certificates: created self-signed or imported, with the key and the secret of the same name."""

import asyncio
import base64
import datetime as dt
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, keyvault_crypto, keyvault_import, keyvault_keys, keyvault_x509
from podidentity_lab.azure.keyvault_crypto import BadParameterError
from podidentity_lab.azure.keyvault_objects import Objects, Shelf, attributes_of, change_attributes, object_id
from podidentity_lab.azure.keyvault_x509 import Bundle
from podidentity_lab.azure.state import CertificateVersion, Json, KeyVersion, SecretVersion, new_id

_ENTRY_FIELDS = ("id", "x5t", "attributes", "tags")


class Certificates(Objects[CertificateVersion]):
    """The certificates of all vaults. A version has the same ID as its key and its secret."""

    def __init__(
        self,
        shelf: Shelf[CertificateVersion],
        clock: Callable[[], float],
        keys: Shelf[KeyVersion],
        secrets: Shelf[SecretVersion],
    ) -> None:
        super().__init__(shelf, clock)
        self._keys = keys
        self._secrets = secrets

    async def serve(self, request: Request, vault: Json, parts: list[str]) -> Response:
        """Answer one request: create, import, the operation and the policy, or what every kind answers."""
        try:
            match request.method, parts:
                case "POST", [name, "create"]:
                    return JSONResponse(await self._create(request, vault, name), 202)
                case "POST", [name, "import"]:
                    return JSONResponse(await self._import(request, vault, name, await request.json()))
                case "GET", [name, "pending"]:
                    self.shelf.find(vault, name)
                    return JSONResponse(_operation(request, name, "completed"))
                case "GET", [name, "policy"]:
                    return JSONResponse(_policy_document(request, name, self.shelf.find(vault, name)))
                case "PATCH", [name, "policy"]:
                    item = self.shelf.find(vault, name)
                    item.policy = {**item.policy, **(await request.json())}
                    return JSONResponse(_policy_document(request, name, item))
        except BadParameterError as error:
            raise answers.arm(400, "BadParameter", str(error)) from None
        return await super().serve(request, vault, parts)

    def document(self, request: Request, name: str, item: CertificateVersion) -> Json:
        """Return a certificate with its policy, and where its key and its secret are."""
        certificate = x509.load_pem_x509_certificate(item.pem.encode())
        return {
            "id": object_id(request, "certificates", name, item.version),
            "kid": object_id(request, "keys", name, item.version),
            "sid": object_id(request, "secrets", name, item.version),
            "x5t": keyvault_x509.thumbprint(certificate),
            "cer": base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode(),
            "attributes": attributes_of(item),
            "tags": item.tags,
            "policy": _policy_document(request, name, item),
        }

    def summary(self, document: Json) -> Json:
        """Return a document as it is: nothing of it is secret."""
        return document

    def entry(self, document: Json) -> Json:
        """Return a document without certificate and policy."""
        return {name: document[name] for name in _ENTRY_FIELDS}

    def delete(self, vault: Json, name: str) -> None:
        """Delete a certificate with its key and its secret."""
        self.shelf.find(vault, name)
        for shelf in self._shelves():
            shelf.delete(vault, name, self._clock())

    def recover(self, vault: Json, name: str) -> None:
        """Recover all three."""
        for shelf in self._shelves():
            shelf.recover(vault, name)

    def purge(self, vault: Json, name: str) -> None:
        """Purge all three."""
        for shelf in self._shelves():
            shelf.purge(vault, name)

    def _shelves(self) -> tuple[Shelf[CertificateVersion], Shelf[KeyVersion], Shelf[SecretVersion]]:
        return self.shelf, self._keys, self._secrets

    async def _create(self, request: Request, vault: Json, name: str) -> Json:
        """Create a self-signed certificate at once; the operation that the answer describes is over when it is read."""
        body = await request.json()
        policy = body.get("policy") or {}
        issuer = str((policy.get("issuer") or {}).get("name") or "")
        if issuer.lower() != "self":
            message = f"The issuer is '{issuer}'; the lab's vaults sign certificates themselves only: use Self."
            raise BadParameterError(message)
        self._check_free(vault, name)
        properties = policy.get("key_props") or {}
        kind = (str(properties.get("kty") or "RSA"), int(properties.get("key_size") or 2048))
        key = await asyncio.to_thread(keyvault_crypto.generate, *kind, str(properties.get("crv") or "P-256"))
        self._check_free(vault, name)  # somebody may have deleted it meanwhile
        now = dt.datetime.fromtimestamp(int(self._clock()), dt.UTC)
        content_type = str((policy.get("secret_props") or {}).get("contentType") or keyvault_x509.PFX)
        bundle = Bundle(key, keyvault_x509.self_signed(policy, key, now), (), content_type)
        self._add(vault, name, bundle, body)
        return _operation(request, name, "inProgress")

    async def _import(self, request: Request, vault: Json, name: str, body: Json) -> Json:
        self._check_free(vault, name)
        bundle = await keyvault_import.parse(str(body["value"]), str(body.get("pwd") or ""))
        self._check_free(vault, name)  # as in `_create`
        item = self._add(vault, name, bundle, {"policy": _policy_of(bundle), **_present(body)})
        return self.document(request, name, item)

    def _check_free(self, vault: Json, name: str) -> None:
        self.shelf.check_free(vault, name, managed=True)
        self._keys.check_free(vault, name, managed=True)
        self._secrets.check_free(vault, name, managed=True)

    def _add(self, vault: Json, name: str, bundle: Bundle, body: Json) -> CertificateVersion:
        """Add a version of certificate, key and secret."""
        now, version, policy = int(self._clock()), new_id().replace("-", ""), body["policy"]
        item = CertificateVersion(version, keyvault_x509.to_pem(bundle.certificate), now, policy)
        key = keyvault_keys.new_version(bundle.key, now, version)
        is_exportable = (policy.get("key_props") or {}).get("exportable", True)
        value = keyvault_x509.export(bundle, with_key=bool(is_exportable))
        secret = SecretVersion(version, value, now, content_type=bundle.content_type)
        times = {
            "nbf": bundle.certificate.not_valid_before_utc.timestamp(),
            "exp": bundle.certificate.not_valid_after_utc.timestamp(),
        }
        attributes = {**(body.get("attributes") or {}), **times}
        for version_item in (item, key, secret):
            change_attributes(version_item, {"attributes": attributes, "tags": body.get("tags")})
            version_item.managed = True
        self.shelf.add(vault, name, item)
        self._keys.add(vault, name, key)
        self._secrets.add(vault, name, secret)
        return item


def _present(body: Json) -> Json:
    """Return the fields of a body that are not null."""
    return {name: value for name, value in body.items() if value is not None}


def _policy_of(bundle: Bundle) -> Json:
    """Return the policy that an import without one gets."""
    public = keyvault_crypto.public_jwk(bundle.key)
    kind = {"crv": public["crv"]} if "crv" in public else {"key_size": bundle.key.key_size}
    return {
        "key_props": {"exportable": True, "kty": public["kty"], "reuse_key": False, **kind},
        "secret_props": {"contentType": bundle.content_type},
        "x509_props": {"subject": bundle.certificate.subject.rfc4514_string()},
        "issuer": {"name": "Unknown"},
    }


def _policy_document(request: Request, name: str, item: CertificateVersion) -> Json:
    """Return a policy without null fields, which the SDKs send and Key Vault does not answer."""
    return {**_present(item.policy), "id": f"https://{request.headers['host']}/certificates/{name}/policy"}


def _operation(request: Request, name: str, status: str) -> Json:
    """Return the creation of a certificate as an operation: inProgress or completed."""
    base = f"https://{request.headers['host']}/certificates/{name}"
    content = {"id": f"{base}/pending", "issuer": {"name": "Self"}, "cancellation_requested": False, "status": status}
    return {**content, "request_id": new_id().replace("-", ""), **({"target": base} if status == "completed" else {})}
