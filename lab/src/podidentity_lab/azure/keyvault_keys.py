"""Key Vault's keys: creating, importing and using them. Private keys never leave a vault."""

import asyncio
import base64
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, keyvault_crypto
from podidentity_lab.azure.keyvault_crypto import BadParameterError
from podidentity_lab.azure.keyvault_objects import Objects, attributes_of, change_attributes, object_id
from podidentity_lab.azure.state import Json, KeyVersion, new_id

_Use = Callable[[keyvault_crypto.PrivateKey, str, bytes], bytes]
_USES: dict[str, _Use] = {
    "sign": keyvault_crypto.sign,
    "encrypt": keyvault_crypto.encrypt,
    "decrypt": keyvault_crypto.decrypt,
    "wrapKey": keyvault_crypto.encrypt,
    "unwrapKey": keyvault_crypto.decrypt,
}
_OPERATIONS = {name.lower(): name for name in (*_USES, "verify")}
# What was signed or encrypted in time stays readable: learn.microsoft.com/azure/key-vault/keys/about-keys.
_OUTLIVE_EXPIRY = ("verify", "decrypt", "unwrapKey")


class Keys(Objects[KeyVersion]):
    """The keys of all vaults."""

    id_field = "kid"

    async def serve(self, request: Request, vault: Json, parts: list[str]) -> Response:
        """Answer one request: create, import, an operation, or what every kind answers."""
        try:
            match request.method, parts:
                case "POST", [name, "create"]:
                    return JSONResponse(await self._create(request, vault, name))
                case "PUT", [name]:
                    return JSONResponse(self._import(request, vault, name, await request.json()))
                case "POST", [name, *version, operation] if operation.lower() in _OPERATIONS and len(version) < 2:
                    names = (name, version[0] if version else "", _OPERATIONS[operation.lower()])
                    return JSONResponse(self._use(request, vault, names, await request.json()))
        except BadParameterError as error:
            raise answers.arm(400, "BadParameter", str(error)) from None
        return await super().serve(request, vault, parts)

    def document(self, request: Request, name: str, item: KeyVersion) -> Json:
        """Return a key's public part."""
        key_id = object_id(request, "keys", name, item.version)
        public = keyvault_crypto.public_jwk(keyvault_crypto.from_pem(item.pem))
        document = {"key": {"kid": key_id, **public, "key_ops": item.operations}, "attributes": attributes_of(item)}
        return {**document, "tags": item.tags, **({"managed": True} if item.managed else {})}

    def summary(self, document: Json) -> Json:
        """Return a document as it is: nothing of it is secret."""
        return document

    def entry(self, document: Json) -> Json:
        """Return a document without the key's numbers."""
        return {"kid": document["key"]["kid"], **{key: value for key, value in document.items() if key != "key"}}

    def change(self, item: KeyVersion, body: Json) -> None:
        """Carry out a PATCH."""
        operations = body.get("key_ops") or item.operations
        if not (isinstance(operations, list) and all(isinstance(name, str) for name in operations)):
            raise BadParameterError("The property 'key_ops' must be a list of names of operations.")
        change_attributes(item, body)
        item.operations = list(operations)

    async def _create(self, request: Request, vault: Json, name: str) -> Json:
        body = await request.json()
        self.shelf.check_free(vault, name)
        size, curve = int(body.get("key_size") or 2048), str(body.get("crv") or "P-256")
        key = await asyncio.to_thread(keyvault_crypto.generate, str(body["kty"]), size, curve)
        self.shelf.check_free(vault, name)  # somebody may have deleted the key meanwhile
        return self._add(request, vault, name, (key, body))

    def _import(self, request: Request, vault: Json, name: str, body: Json) -> Json:
        self.shelf.check_free(vault, name)
        jwk = body["key"]
        return self._add(
            request, vault, name, (keyvault_crypto.import_jwk(jwk), {"key_ops": jwk.get("key_ops"), **body})
        )

    def _add(self, request: Request, vault: Json, name: str, source: tuple[keyvault_crypto.PrivateKey, Json]) -> Json:
        key, body = source
        item = new_version(key, int(self._clock()))
        self.change(item, body)
        self.shelf.add(vault, name, item)
        return self.document(request, name, item)

    def _use(self, request: Request, vault: Json, names: tuple[str, str, str], body: Json) -> Json:
        name, version, operation = names
        item = self.shelf.find_usable(vault, name, version, operation)
        _check_use(item, operation, self._clock())
        key = keyvault_crypto.from_pem(item.pem)
        algorithm = str(body["alg"])
        if operation == "verify":
            digest, signature = (_decode(body[field]) for field in ("digest", "value"))
            return {"value": keyvault_crypto.verify(key, algorithm, digest, signature)}
        value = _USES[operation](key, algorithm, _decode(body["value"]))
        return {"kid": object_id(request, "keys", name, item.version), "value": _encode(value)}


def new_version(key: keyvault_crypto.PrivateKey, now: int, version: str = "") -> KeyVersion:
    """Return a new version with all operations that its type has; a certificate says which `version`."""
    operations = list(keyvault_crypto.OPERATIONS[keyvault_crypto.key_type(key)])
    return KeyVersion(version or new_id().replace("-", ""), keyvault_crypto.to_pem(key), now, operations)


def _check_use(item: KeyVersion, operation: str, now: float) -> None:
    """Refuse with 403 an operation that the key is not for, and a new one outside of the key's time."""
    if operation not in item.operations:
        message, code = f"Operation {operation} is not permitted on this key.", "KeyOperationForbidden"
    elif item.not_before > now:
        message, code = f"Operation {operation} is not allowed on a key that is not yet valid.", "KeyNotYetValid"
    elif 0 < item.expires <= now and operation not in _OUTLIVE_EXPIRY:
        message, code = f"Operation {operation} is not allowed on an expired key.", "KeyExpired"
    else:
        return
    raise answers.arm(403, "Forbidden", message, innererror={"code": code})


def _decode(text: str) -> bytes:
    """Return the bytes of base64url text without padding (RFC 7515, 2)."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise BadParameterError("A value of the request is not base64url.") from None


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
