"""Key Vault's secrets."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers
from podidentity_lab.azure.keyvault_objects import Objects, attributes_of, change_attributes, object_id
from podidentity_lab.azure.state import Json, SecretVersion, new_id

_LONGEST_VALUE = 25_000  # learn.microsoft.com/azure/key-vault/secrets/about-secrets: 25 kB


class Secrets(Objects[SecretVersion]):
    """The secrets of all vaults."""

    async def serve(self, request: Request, vault: Json, parts: list[str]) -> Response:
        """Answer one request: a PUT sets a secret, all others are those of every kind."""
        if request.method == "PUT" and len(parts) == 1:
            secret = self.add_version(vault, parts[0], await request.json())
            return JSONResponse(self.document(request, parts[0], secret))
        return await super().serve(request, vault, parts)

    def document(self, request: Request, name: str, item: SecretVersion) -> Json:
        """Return a secret with its value, and the key of the certificate that manages it."""
        secret_id = object_id(request, "secrets", name, item.version)
        kind: Json = {"contentType": item.content_type} if item.content_type else {}
        if item.managed:
            kind |= {"managed": True, "kid": object_id(request, "keys", name, item.version)}
        return {"value": item.value, "id": secret_id, "attributes": attributes_of(item), "tags": item.tags, **kind}

    def summary(self, document: Json) -> Json:
        """Return a document without its value."""
        return {key: value for key, value in document.items() if key != "value"}

    def entry(self, document: Json) -> Json:
        """Return the same."""
        return self.summary(document)

    def change(self, item: SecretVersion, body: Json) -> None:
        """Carry out a PATCH, or what a PUT says besides the value."""
        change_attributes(item, body)
        item.content_type = str(body.get("contentType") or item.content_type)

    def read(self, vault: Json, name: str, version: str) -> SecretVersion:
        """Return a version that is enabled."""
        return self.shelf.find_usable(vault, name, version, "get")

    def add_version(self, vault: Json, name: str, body: Json) -> SecretVersion:
        """Set a secret to the `value` of a body, with what else the body says. Refuses a name that is not free."""
        self.shelf.check_free(vault, name)
        value = body["value"]
        if not isinstance(value, str):
            raise answers.arm(400, "BadParameter", "The property 'value' must be a text.")
        if len(value) > _LONGEST_VALUE:
            raise answers.arm(400, "BadParameter", f"The secret's value is longer than {_LONGEST_VALUE} characters.")
        secret = SecretVersion(new_id().replace("-", ""), value, int(self._clock()))
        self.change(secret, body)
        self.shelf.add(vault, name, secret)
        return secret
