"""Key Vault as `https://NAME.vault.azure.net` serves it: finds the vault, checks who asks, and hands on by kind.

The vaults themselves are made through ARM (`arm_vaults`); who may do what is decided in `keyvault_rights`.
"""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from podidentity_lab.azure import answers, keyvault_rights
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.keyvault_certificates import Certificates
from podidentity_lab.azure.keyvault_keys import Keys
from podidentity_lab.azure.keyvault_objects import Objects, Shelf
from podidentity_lab.azure.keyvault_secrets import Secrets
from podidentity_lab.azure.state import Json, State

SUFFIX = ".vault.azure.net"


class KeyVault:
    """All vaults; the host name of a request says which one."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._state = state
        self._faults = faults
        self._rights = keyvault_rights.Rights(state, entra)
        secrets = Shelf("secret", state.secrets, state.deleted_secrets)
        keys = Shelf("key", state.vault_keys, state.deleted_vault_keys)
        certificates = Shelf("certificate", state.certificates, state.deleted_certificates)
        self._kinds: dict[str, Objects[Any]] = {
            "secrets": Secrets(secrets, clock),
            "keys": Keys(keys, clock),
            "certificates": Certificates(certificates, clock, keys, secrets),
        }

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        vault = self._vault(request.headers["host"].split(":")[0])
        caller = self._rights.caller(request)
        request.state.client_id, request.state.name = caller.client_id, caller.name
        if self._faults.keyvault_statuses:
            raise answers.asked_for(self._faults.keyvault_statuses.pop(0), self._faults.headers())
        first, *parts = [part for part in request.url.path.split("/") if part] or [""]
        is_deleted = first.lower().startswith("deleted")
        kind = first.lower().removeprefix("deleted")
        if kind not in self._kinds:
            message = f"The lab's vaults hold {', '.join(self._kinds)} only, not '{request.url.path}'."
            raise answers.arm(404, "NotFound", message)
        permission = keyvault_rights.permission_of(kind, request.method, parts, is_deleted=is_deleted)
        self._rights.require(vault, caller, f"{kind}/{permission}", parts[0] if parts else "")
        objects = self._kinds[kind]
        return await (objects.serve_deleted if is_deleted else objects.serve)(request, vault, parts)

    def _vault(self, host: str) -> Json:
        name = host.lower().removesuffix(SUFFIX)
        vault = next(
            (candidate for candidate in self._state.vaults.values() if candidate["name"].lower() == name), None
        )
        if vault is None:
            raise answers.arm(404, "VaultNotFound", f"There is no vault '{name}' in the lab.")
        return vault
