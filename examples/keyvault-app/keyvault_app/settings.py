"""What the application is told by its environment. Read once, at the start, by `__main__`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

VAULT = "AZURE_KEYVAULT_NAME"
SECRET = "AZURE_KEYVAULT_SECRET_NAME"  # noqa: S105  the name of a variable
VERSION = "AZURE_KEYVAULT_SECRET_VERSION"
CLIENT = "AZURE_CLIENT_ID"
PORT = "PORT"

# Lengths and letters that Key Vault allows: learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates
_VAULT_NAME = re.compile(r"[0-9A-Za-z-]{3,24}")
_SECRET_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")


class SettingsError(Exception):
    """The environment does not say what to show; the message says which variable to set, and to what."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Which secret to show, and where. Empty: the newest `version`; no choice of `client_id`."""

    vault: str
    secret: str
    version: str = ""
    client_id: str = ""
    port: int = 8080

    @property
    def vault_url(self) -> str:
        """Where the vault answers."""
        return f"https://{self.vault}.vault.azure.net"


def read(environment: Mapping[str, str]) -> Settings:
    """Check the environment. Raises SettingsError."""
    return Settings(
        vault=_named(environment, VAULT, "the Key Vault", _VAULT_NAME),
        secret=_named(environment, SECRET, "the secret to show", _SECRET_NAME),
        version=environment.get(VERSION, ""),
        client_id=environment.get(CLIENT, ""),
        port=_port(environment.get(PORT, "8080")),
    )


def _named(environment: Mapping[str, str], variable: str, meaning: str, form: re.Pattern[str]) -> str:
    value = environment.get(variable, "")
    if not value:
        raise SettingsError(f"{variable} is not set; set it to the name of {meaning}")
    if not form.fullmatch(value):
        raise SettingsError(f'{variable}: "{value}" cannot be a name in Key Vault; set it to the name of {meaning}')
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 1 << 16:
        raise SettingsError(f'{PORT}: "{text}" is not a port; set it to a number from 1 to 65535, or leave it out')
    return int(text)
