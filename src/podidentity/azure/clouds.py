"""Where each Azure cloud answers. Names as azure.json and upstream spell them, in any case.

Endpoints: learn.microsoft.com/azure/developer/identity/national-cloud and the clouds' ARM metadata endpoints.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podidentity.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Cloud:
    """Base addresses without a trailing slash; `audience` is what ARM's tokens are for."""

    name: str
    login: str
    arm: str
    audience: str

    @property
    def in_the_clear(self) -> tuple[str, ...]:
        """Addresses to which secrets and tokens go without TLS; only a custom cloud has such."""
        return tuple(address for address in (self.login, self.arm) if address.lower().startswith("http:"))


_PUBLIC = Cloud(
    "AzurePublicCloud",
    "https://login.microsoftonline.com",
    "https://management.azure.com",
    "https://management.azure.com/",
)
_GOVERNMENT = Cloud(
    "AzureUSGovernmentCloud",
    "https://login.microsoftonline.us",
    "https://management.usgovcloudapi.net",
    "https://management.usgovcloudapi.net/",
)
_CHINA = Cloud(
    "AzureChinaCloud",
    "https://login.chinacloudapi.cn",
    "https://management.chinacloudapi.cn",
    "https://management.chinacloudapi.cn/",
)
_GERMAN = Cloud(
    "AzureGermanCloud",
    "https://login.microsoftonline.de",
    "https://management.microsoftazure.de",
    "https://management.microsoftazure.de/",
)
_BY_NAME = {
    "": _PUBLIC,
    "azurecloud": _PUBLIC,
    "azurepubliccloud": _PUBLIC,
    "azureusgovernment": _GOVERNMENT,
    "azureusgovernmentcloud": _GOVERNMENT,
    "azurechinacloud": _CHINA,
    "azuregermancloud": _GERMAN,
}
_CUSTOM = "azurestackcloud"

KNOWN_LOGINS = frozenset(cloud.login for cloud in _BY_NAME.values()) | {
    "https://login.microsoft.com",
    "https://login.windows.net",
    "https://sts.windows.net",
    "https://login-us.microsoftonline.com",
    "https://login.usgovcloudapi.net",
    "https://login.partner.microsoftonline.cn",
    "https://login.sovcloud-identity.fr",
    "https://login.sovcloud-identity.de",
    "https://login.sovcloud-identity.sg",
}
"""Where Entra ID answers in all clouds of Microsoft's, under every name (msal: `WELL_KNOWN_AUTHORITY_HOSTS`)."""


def find_cloud(name: str, environment_file: str = "") -> Cloud:
    """Find a cloud by name; `environment_file` (AZURE_ENVIRONMENT_FILEPATH) describes a custom one.

    Raises ConfigurationError for an unknown name or an unreadable file.
    """
    cloud = _BY_NAME.get(name.lower())
    if cloud is not None:
        return cloud
    if name.lower() != _CUSTOM:
        names = ", ".join(sorted({cloud.name for cloud in _BY_NAME.values()}))
        raise ConfigurationError(f'cloud "{name}" is unknown; it must be AzureStackCloud or one of: {names}')
    if not environment_file:
        raise ConfigurationError(
            "cloud AzureStackCloud needs its endpoints; set AZURE_ENVIRONMENT_FILEPATH to their file"
        )
    return _custom(Path(environment_file))


def logins(environment_file: str = "") -> frozenset[str]:
    """Return the addresses, lower-case, to which a secret may be sent: known clouds' and the described one's.

    Raises ConfigurationError for an unreadable file.
    """
    custom_login = {_custom(Path(environment_file)).login.lower()} if environment_file else set()
    return KNOWN_LOGINS | custom_login


def _custom(path: Path) -> Cloud:
    """Read the endpoints of a custom cloud, which are taken as they stand. Names in any case, as Go reads them."""
    try:
        endpoints = {str(name).lower(): value for name, value in json.loads(path.read_text()).items()}
        arm, login = (_address(endpoints, name) for name in ("resourceManagerEndpoint", "activeDirectoryEndpoint"))
    except (OSError, ValueError, AttributeError) as error:
        message = f"{path}: the endpoints of AzureStackCloud cannot be read: {error}; correct the file"
        raise ConfigurationError(message) from None
    audience = endpoints.get("servicemanagementendpoint") or endpoints.get("tokenaudience") or f"{arm}/"
    return Cloud(str(endpoints.get("name") or "AzureStackCloud"), login, arm, str(audience))


def _address(endpoints: dict[str, Any], name: str) -> str:
    text = str(endpoints.get(name.lower()) or "").rstrip("/")
    if not text.lower().startswith(("https://", "http://")):
        raise ValueError(f'"{name}" must be an address that begins with https://')
    return text
