"""The environment in which a person's or a program's own tools work with a lab, or are an identity in it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

from podidentity.errors import LabError
from podidentity_lab import control
from podidentity_lab.azure.local_identity import APP_SERVICE_PATH, ARC_PATH
from podidentity_lab.azure.tls import JAVA_PASSWORD
from podidentity_lab.directory import Directory

Dialect = Literal["app-service", "arc"]
"""How a process asks for tokens: as on App Service, or as on a machine of Azure Arc."""

_DIRECT = "127.0.0.1,localhost"  # the Kubernetes API and everything else of the machine's own
_TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_FACTS = (
    "tenant_id",
    "subscription_id",
    "location",
    "node_resource_group",
    "owner_client_id",
    "owner_client_secret",
    "cluster_client_id",
    "cluster_client_secret",
    "logs",
    "name",
    "registry",
)
UNSET = ("SSL_CERT_DIR",)
"""What must not be set: it would add the machine's own certificates to the lab's."""
_OTHER_CREDENTIALS = (
    *("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH"),
    *("AZURE_FEDERATED_TOKEN_FILE", "AZURE_USERNAME", "AZURE_PASSWORD", "AZURE_AUTHORITY_HOST"),
    *("AZURE_POD_IDENTITY_AUTHORITY_HOST", "MSI_ENDPOINT", "MSI_SECRET", "IDENTITY_SERVER_THUMBPRINT"),
    *("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IMDS_ENDPOINT"),
)
"""What would make a client somebody else, or ask somewhere else."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A managed identity of the lab, and the secret with which a process of the host is that identity."""

    name: str
    client_id: str
    principal_id: str
    resource_id: str
    secret: str

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, ...)"


def variables(lab: Directory) -> dict[str, str]:
    """Return the variables that a shell needs: kubectl's file, the proxy, the certificates and the lab's own facts.

    `lab` must be ready: before that it has no facts.
    """
    facts = lab.facts() or {}
    proxy = f"http://127.0.0.1:{facts['gateway_port']}"
    environment = {"KUBECONFIG": str(lab.kubeconfig)}
    for name, value in (("HTTPS_PROXY", proxy), ("HTTP_PROXY", proxy), ("NO_PROXY", _DIRECT)):
        environment |= {name: value, name.lower(): value}  # curl reads only http_proxy, others only HTTP_PROXY
    environment |= dict.fromkeys(_TRUST, str(lab.ca))
    environment |= {f"LAB_{name.upper()}": str(facts[name]) for name in _FACTS}
    environment["LAB_SIGN_IN"] = sign_in_url(lab)
    # az keeps who is signed in: not in the user's own profile.
    return {**environment, "AZURE_CONFIG_DIR": str(lab.path / "az"), "LAB_DIRECTORY": str(lab.path)}


def sign_in_url(lab: Directory) -> str:
    """Return the URL of the host at which a browser of this machine finds the pages of Entra ID."""
    return f"http://127.0.0.1:{(lab.facts() or {})['identity_port']}"


def identity(lab: Directory, text: str) -> Identity:
    """Find an identity of the lab by its name, client ID or ARM ID. Raises `LabError`."""
    answer = control.ask(lab, "POST", f"/azure/local?{urlencode({'identity': text})}")
    if "error" in answer:
        raise LabError(answer["error"])
    return Identity(**answer)


def identity_variables(lab: Directory, managed: Identity, dialect: Dialect) -> dict[str, str | None]:
    """Return what makes a process `managed` for every client of Azure; None: the variable must not be set.

    With the dialect `arc` the process must find the secret where `key_file` shows it.
    """
    endpoint = f"http://127.0.0.1:{(lab.facts() or {})['identity_port']}"
    result: dict[str, str | None] = {
        **dict.fromkeys(_OTHER_CREDENTIALS),
        **dict.fromkeys(UNSET),
        **variables(lab),
        # `az login --identity` is not to sign the owner out.
        "AZURE_CONFIG_DIR": str(lab.path / f"az-{managed.client_id}"),
        "LAB_IDENTITY_NAME": managed.name,
        "LAB_IDENTITY_CLIENT_ID": managed.client_id,
    }
    if dialect == "app-service":
        return result | {"IDENTITY_ENDPOINT": f"{endpoint}{APP_SERVICE_PATH}", "IDENTITY_HEADER": managed.secret}
    return result | {"IDENTITY_ENDPOINT": f"{endpoint}{ARC_PATH}", "IMDS_ENDPOINT": endpoint}


def merge(base: Mapping[str, str], changes: Mapping[str, str | None], lab: Directory) -> dict[str, str]:
    """Return `base` with `changes`, and with what Java needs, whose options a user may have already."""
    environment = {**base, **{name: value for name, value in changes.items() if value is not None}}
    for name in (*UNSET, *(name for name, value in changes.items() if value is None)):
        environment.pop(name, None)
    environment["JAVA_TOOL_OPTIONS"] = f"{base.get('JAVA_TOOL_OPTIONS', '')} {_java_options(lab)}".strip()
    return environment


def _java_options(lab: Directory) -> str:
    """Certificates and proxy for Java, which reads neither from the environment's usual variables."""
    port = (lab.facts() or {})["gateway_port"]
    proxy = {f"{scheme}.proxy{key}": value for scheme in ("http", "https") for key, value in _proxy(port)}
    properties = {
        "javax.net.ssl.trustStore": lab.java_trust_store,
        "javax.net.ssl.trustStorePassword": JAVA_PASSWORD,
        "javax.net.ssl.trustStoreType": "PKCS12",
        **proxy,
        "http.nonProxyHosts": _DIRECT.replace(",", "|"),
    }
    return " ".join(f"-D{name}={value}" for name, value in properties.items())


def _proxy(port: int) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("Host", "127.0.0.1"), ("Port", str(port))


def path() -> str:
    """PATH with the directory of this Python behind it: kubectl and `podidentity` are there."""
    return f"{os.environ.get('PATH', os.defpath)}:{Path(sys.executable).parent}"
