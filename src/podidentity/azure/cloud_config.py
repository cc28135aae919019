"""azure.json, or the environment variables in its place: which subscription, and who MIC is.

Field and variable names are upstream's (`pkg/config`). Read at start-up and again when the file changes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from podidentity.azure.clouds import Cloud, find_cloud
from podidentity.core.model.arm import fold_case
from podidentity.errors import ConfigurationError

_VARIABLES = {
    "cloud": "CLOUD",
    "tenantId": "TENANT_ID",
    "aadClientId": "CLIENT_ID",
    "aadClientSecret": "CLIENT_SECRET",
    "aadClientCertPath": "",
    "aadClientCertPassword": "",
    "subscriptionId": "SUBSCRIPTION_ID",
    "resourceGroup": "RESOURCE_GROUP",
    "vmType": "VM_TYPE",
    "useManagedIdentityExtension": "USE_MSI",
    "userAssignedIdentityID": "USER_ASSIGNED_MSI_CLIENT_ID",
}
"""The variable for each field; the certificate's have none, as upstream has no certificate and the cloud provider's
(kubernetes-sigs/cloud-provider-azure, `pkg/provider/config`) are fields only."""
_DOCS = "see docs/configure/azure-json.md"
ENVIRONMENT_FILE_VARIABLE = "AZURE_ENVIRONMENT_FILEPATH"


@dataclass(frozen=True, slots=True)
class CloudConfig:
    """The configuration, complete and valid.

    With `managed_identity` MIC asks IMDS for tokens; else it signs in with its client ID and a secret, or a certificate
    (PKCS#12) when there is no secret. `user_assigned_identity` is a client ID or a resource ID, in lower case; MIC
    never takes it off a machine. `origin` and `certificate_origin` tell a reader of errors what to correct.
    """

    cloud: Cloud
    tenant_id: str
    subscription_id: str
    resource_group: str
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    certificate_path: str = ""
    certificate_password: str = field(default="", repr=False)
    managed_identity: bool = False
    user_assigned_identity: str = ""
    origin: str = "azure.json"
    certificate_origin: str = "aadClientCertPath and aadClientCertPassword in azure.json"


def load_cloud_config(path: str, environ: Mapping[str, str]) -> CloudConfig:
    """Read azure.json at `path`, or the environment when `path` is empty. Raises ConfigurationError."""
    if not path:
        values = {name: environ.get(variable, "") for name, variable in _VARIABLES.items() if variable}
        return _validate(values, "the environment", _VARIABLES, environ)
    return _validate(_read(Path(path)), path, {name: f'"{name}"' for name in _VARIABLES}, environ)


def _read(path: Path) -> Mapping[str, Any]:
    """Read JSON or YAML: every JSON document is YAML too, but json says more clearly where it is broken."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name azure.json with --cloudconfig, {_DOCS}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not UTF-8 text; name azure.json with --cloudconfig, {_DOCS}") from None
    try:
        content = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON: {error}; correct the file") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: neither JSON nor YAML: {' '.join(str(error).split())}; correct it") from None
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{path}: holds no fields; {_DOCS}")
    return content


def _validate(
    values: Mapping[str, Any], source: str, names: Mapping[str, str], environ: Mapping[str, str]
) -> CloudConfig:
    by_lower_case = {str(name).lower(): value for name, value in values.items()}
    text = {name: str(by_lower_case.get(name.lower()) or "") for name in _VARIABLES}
    managed = text["useManagedIdentityExtension"].lower() == "true"
    required = ["subscriptionId", "resourceGroup"]
    if not managed:
        required += ["tenantId", "aadClientId", *([] if text["aadClientCertPath"] else ["aadClientSecret"])]
    for name in required:
        if not text[name]:
            raise ConfigurationError(f"{source}: {names[name]} is empty; MIC needs it to reach ARM, {_DOCS}")
    return CloudConfig(
        cloud=find_cloud(text["cloud"], environ.get(ENVIRONMENT_FILE_VARIABLE, "")),
        tenant_id=text["tenantId"],
        subscription_id=text["subscriptionId"],
        resource_group=text["resourceGroup"],
        client_id=text["aadClientId"],
        client_secret=text["aadClientSecret"],
        certificate_path=text["aadClientCertPath"],
        certificate_password=text["aadClientCertPassword"],
        managed_identity=managed,
        user_assigned_identity=fold_case(text["userAssignedIdentityID"]),
    )
