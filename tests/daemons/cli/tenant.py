"""The lab's Azure behind TLS, found by its public names, and its owner, who has signed in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from daemons.cli.published import Site, reachable
from podidentity_lab.azure import Azure, AzureSettings
from podidentity_lab.azure.state import Json
from serving import served

ARM = "https://management.azure.com"
GRAPH = "https://graph.microsoft.com"
HOSTS = ("management.azure.com", "graph.microsoft.com", "login.microsoftonline.com")


class Tenant:
    """A tenant with an identity `reader` and an application `writer`."""

    def __init__(self) -> None:
        """Create the identity and the application in this process."""
        self.azure = Azure(AzureSettings())
        self.azure.faults.federation_write_seconds = 0
        self.http = TestClient(self.azure.app)
        group = f"/subscriptions/{self.azure.settings.subscription_id}/resourceGroups/rg"
        self.ask("PUT", f"{ARM}{group}?api-version=2021-04-01", {"location": "westeurope"})
        self.identity = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader"
        document = self.ask("PUT", f"{ARM}{self.identity}?api-version=2023-01-31", {"location": "westeurope"})
        self.client_id = str(document["properties"]["clientId"])
        application = self.ask("POST", f"{GRAPH}/v1.0/applications", {"displayName": "writer"})
        self.application_client_id = str(application["appId"])

    def ask(self, method: str, url: str, body: Json | None = None) -> Json:
        """Send a request as the owner; return its answer."""
        host = "/".join(url.split("/")[:3])
        owner, tenant = self.azure.settings.owner, self.azure.settings.tenant_id
        form = {
            "grant_type": "client_credentials",
            "client_id": owner.client_id,
            "client_secret": owner.secret,
            "scope": f"{host}/.default",
        }
        sign_in = self.http.post(f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token", data=form)
        headers = {"Authorization": f"Bearer {sign_in.json()['access_token']}"}
        answer = self.http.request(method, url, json=body, headers=headers)
        assert answer.is_success, answer.text
        document: Json = answer.json()
        return document

    def credentials(self, identity: str = "") -> list[Json]:
        """Return the credentials that ARM lists for the reader."""
        path = f"{identity or self.identity}/federatedIdentityCredentials?api-version=2023-01-31"
        items: list[Json] = self.ask("GET", f"{ARM}{path}")["value"]
        return items

    def fill(self, count: int) -> None:
        """Give the reader so many credentials of other service accounts."""
        for number in range(count):
            properties = {
                "issuer": "https://other.example",
                "subject": f"system:serviceaccount:default:n{number}",
                "audiences": ["api://AzureADTokenExchange"],
            }
            path = f"{self.identity}/federatedIdentityCredentials/other-{number}"
            self.ask("PUT", f"{ARM}{path}?api-version=2023-01-31", {"properties": properties})


@contextlib.contextmanager
def signed_in(
    tenant: Tenant, folder: Path, monkeypatch: pytest.MonkeyPatch, *, site: Site | None = None
) -> Iterator[None]:
    """Let this process reach the tenant as its owner, and a site as well."""
    more_ports, authorities = (site.ports, site.authority.cert_pem.bytes()) if site else ({}, b"")
    owner = tenant.azure.settings.owner
    for name, value in (
        ("AZURE_TENANT_ID", tenant.azure.settings.tenant_id),
        ("AZURE_CLIENT_ID", owner.client_id),
        ("AZURE_CLIENT_SECRET", owner.secret),
    ):
        monkeypatch.setenv(name, value)
    with (
        served(tenant.azure.app, tenant.azure.tls_context()) as port,
        reachable(dict.fromkeys(HOSTS, port) | more_ports, tenant.azure.ca_pem + authorities, folder, monkeypatch),
    ):
        yield
