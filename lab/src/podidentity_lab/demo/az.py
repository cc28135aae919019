"""The lab's administrator by the real `az`: each command as the walk-through has it, each answer read back.

Used when `az` is on PATH. It goes through the lab's proxy like everything else, and keeps its sign-in in the lab's
directory.
"""

import shutil
import subprocess
from collections.abc import Mapping

from podidentity.errors import LabError
from podidentity_lab.demo.admin import CREDENTIAL_VERSION, EXCHANGE_AUDIENCE, Admin, Json, once_free

COMMAND_SECONDS = 120.0  # az takes one second; on a loaded machine many


def find() -> str | None:
    """Return the path of `az`; None when PATH has none."""
    return shutil.which("az")


class AzAdmin(Admin):
    """`Admin` by means of `az`, which makes all changes. What is only read is read by requests, as in `Admin`."""

    def __init__(self, environment: Mapping[str, str], program: str) -> None:
        super().__init__(environment)
        quiet = {"AZURE_CORE_COLLECT_TELEMETRY": "false", "AZURE_CORE_OUTPUT": "none", "AZURE_CORE_NO_COLOR": "true"}
        self._variables = {**environment, **quiet}
        self._program = program
        self._signed_in = False

    def create_group(self, name: str, location: str) -> Json:
        """`az group create`."""
        self._az("group", "create", "-n", name, "-l", location)
        return self._arm("GET", self.group(name), "2024-11-01")

    def create_vault(self, group: str, name: str, location: str) -> Json:
        """`az keyvault create --enable-rbac-authorization false`."""
        self._az("keyvault", "create", "-n", name, "-g", group, "-l", location, "--enable-rbac-authorization", "false")
        return self._arm("GET", self.vault(group, name), "2026-02-01")

    def set_secret(self, vault: str, name: str, value: str) -> Json:
        """`az keyvault secret set`."""
        self._az("keyvault", "secret", "set", "-n", name, "--vault-name", vault, "--value", value)
        url = f"https://{vault}.vault.azure.net/secrets/{name}?api-version=7.4"
        return self._send("GET", url, "https://vault.azure.net/.default")

    def create_identity(self, group: str, name: str, location: str) -> Json:
        """`az identity create`, which takes the location of the group."""
        del location
        self._az("identity", "create", "-n", name, "-g", group)
        return self._arm("GET", self.identity(group, name), "2025-05-31-preview")

    def create_federated_credential(self, group: str, identity: str, name: str, issuer: str, subject: str) -> Json:
        """`az identity federated-credential create`."""
        words = ("-n", name, "--identity-name", identity, "-g", group, "--issuer", issuer, "--subject", subject)
        self._az("identity", "federated-credential", "create", *words, "--audiences", EXCHANGE_AUDIENCE)
        path = f"{self.identity(group, identity)}/federatedIdentityCredentials/{name}"
        return self._arm("GET", path, CREDENTIAL_VERSION)

    def assign_role(self, role: str, principal: str, scope: str) -> Json:
        """`az role assignment create`."""
        self._az("role", "assignment", "create", "--role", role, "--assignee", principal, "--scope", scope)
        path = f"{scope}/providers/Microsoft.Authorization/roleAssignments"
        for assignment in self._arm("GET", path, "2022-04-01")["value"]:
            answer: Json = assignment
            if (
                assignment["properties"]["principalId"] == principal
                and assignment["properties"]["scope"].lower() == scope.lower()
            ):
                return answer
        raise LabError(f"az assigned the role {role} at {scope}, and ARM does not list it; see `podidentity lab log`")

    def set_policy(self, group: str, vault: str, client_id: str) -> Json:
        """`az keyvault set-policy`."""
        self._az("keyvault", "set-policy", "-n", vault, "--secret-permissions", "get", "list", "--spn", client_id)
        return self._arm("GET", self.vault(group, vault), "2026-02-01")

    def assign_to_scale_set(self, group: str, name: str, identity: str) -> None:
        """`az vmss identity assign`."""
        once_free(lambda: self._az("vmss", "identity", "assign", "-n", name, "-g", group, "--identities", identity))

    def _az(self, *words: str) -> None:
        if not self._signed_in:
            names = ("LAB_OWNER_CLIENT_ID", "LAB_OWNER_CLIENT_SECRET", "LAB_TENANT_ID")
            client_id, secret, tenant = (self._variables[name] for name in names)
            self._type("login", "--service-principal", "-u", client_id, "-p", secret, "--tenant", tenant)
            self._signed_in = True
        self._type(*words)

    def _type(self, *words: str) -> None:
        process = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", "--", self._program, *words],
            env=self._variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if process.returncode:
            message = (process.stderr.strip().splitlines() or ["nothing"])[-1]
            raise LabError(f"az {' '.join(words[:3])} failed with status {process.returncode}: {message}")
