"""Secrets of vaults in ARM, `Microsoft.KeyVault/vaults/secrets`, as templates make them. ARM shows no values."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, arm_resources, arm_vaults, roles
from podidentity_lab.azure.keyvault_objects import Shelf
from podidentity_lab.azure.keyvault_secrets import Secrets
from podidentity_lab.azure.state import Json, Principal, SecretVersion, State

TYPE = f"{arm_vaults.TYPE}/secrets"


async def serve(request: Request, caller: Principal, path: str, state: State, clock: Callable[[], float]) -> Response:
    """Answer GET and PUT of a secret, and GET of all secrets of a vault."""
    parts = path.split("/")
    action = "read" if request.method == "GET" else "write"
    roles.require(state, caller, f"{TYPE}/{action}", path)
    vault = arm_resources.find(state.vaults, "/".join(parts[:9]))
    if len(parts) > 11 or request.method not in {"GET", "PUT"} or (request.method == "PUT" and len(parts) == 10):
        raise answers.arm(405, "MethodNotAllowed", "Secrets of vaults take GET and PUT in ARM.")
    secrets = Secrets(Shelf("secret", state.secrets, state.deleted_secrets), clock)
    shelf = secrets.shelf
    if len(parts) == 10:
        entries = [_document(vault, name, shelf.find(vault, name)) for name in shelf.names(vault)]
        return JSONResponse({"value": entries})
    name = parts[10]
    if request.method == "GET":
        return JSONResponse(_document(vault, name, shelf.find(vault, name)))
    body = await request.json()
    new = not shelf.versions(vault, name)
    secret = secrets.add_version(vault, name, {**body["properties"], "tags": body.get("tags")})
    return JSONResponse(_document(vault, name, secret), 201 if new else 200)


def _document(vault: Json, name: str, secret: SecretVersion) -> Json:
    uri = f"{vault['properties']['vaultUri']}secrets/{name}"
    attributes = {"enabled": secret.enabled, "created": secret.created_at, "updated": secret.created_at}
    return {
        "id": f"{vault['id']}/secrets/{name}",
        "name": name,
        "type": TYPE,
        "location": vault["location"],
        "tags": secret.tags,
        "properties": {"attributes": attributes, "secretUri": uri, "secretUriWithVersion": f"{uri}/{secret.version}"},
    }
