"""The Azure of the person at the keyboard: ARM and Graph, with `az login` or a service principal."""

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click
import httpx2

from podidentity import __version__
from podidentity.azure import directory
from podidentity.azure.clouds import find_cloud
from podidentity.azure.federated import ApplicationCredentials, Credentials, IdentityCredentials, Requests
from podidentity.azure.management import Management
from podidentity.azure.sign_in import credential_of
from podidentity.core.model.arm import IdentityId, parse_identity_id
from podidentity.core.report.trusts import Trust
from podidentity.errors import AzureError, HostError, UsageError

CLOUD = click.option("--cloud", default="", help="Azure cloud, such as AzureChinaCloud; empty: AZURE_ENVIRONMENT.")
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)


@dataclass(frozen=True, slots=True)
class AzureAccess:
    """ARM and Graph of one cloud; requests wait where Azure says so, and say that on stderr."""

    arm: Management
    graph: Management

    def arm_requests(self) -> Requests:
        """Return a way to ask ARM about one identity."""
        return Requests(self.arm, _tell)

    def graph_requests(self) -> Requests:
        """Return a way to ask Graph about one application."""
        return Requests(self.graph, _tell)

    async def identity(self, text: str) -> IdentityId:
        """Return the identity with a resource ID or client ID. Raises UsageError when there is none, AzureError."""
        identity = parse_identity_id(text)
        if identity is not None:
            return identity
        identities = await directory.find_identities(self.arm_requests())
        if text.lower() not in identities:
            raise UsageError(
                f'--identity: "{text}" is no resource ID, and no client ID in the subscriptions that you see; '
                "give one, or --application for an application"
            )
        return identities[text.lower()]

    async def application(self, text: str) -> directory.Application:
        """Return the application with a client ID or name. Raises UsageError when there is none, AzureError."""
        for field in ("appId", "displayName"):
            application = await directory.find_application(self.graph_requests(), field, text)
            if application is not None:
                return application
        raise UsageError(f'--application: "{text}" is no client ID or name of an application of the tenant; give one')

    async def credentials_of(self, identity: str, application: str) -> Credentials:
        """Return the credentials of an identity or application, of which one is given. Raises as those two."""
        check_owner(identity, application)
        if application:
            return ApplicationCredentials(self.graph_requests(), (await self.application(application)).object_id)
        return IdentityCredentials(self.arm_requests(), str(await self.identity(identity)))


def check_owner(identity: str, application: str) -> None:
    """Raise UsageError unless one of the two is given."""
    if bool(identity) == bool(application):
        raise UsageError("whose credentials is not clear; give either --identity or --application")


async def gather_trusts(client_ids: Iterable[str], cloud_name: str = "") -> dict[str, Trust]:
    """Return the federated credentials of each client ID; what cannot be seen says why. Raises nothing of Azure's."""
    async with open_azure(cloud_name) as azure:
        try:
            identities, failure = await directory.find_identities(azure.arm_requests()), ""
        except (AzureError, HostError) as error:
            identities, failure = {}, str(error)
        return {
            client_id: await _trust(azure, client_id, identities.get(client_id), failure) for client_id in client_ids
        }


async def _trust(azure: AzureAccess, client_id: str, identity: IdentityId | None, failure: str) -> Trust:
    try:
        if identity is not None:
            owner = IdentityCredentials(azure.arm_requests(), str(identity))
            return Trust(client_id, identity, credentials=await owner.list())
        application = await directory.find_application(azure.graph_requests(), "appId", client_id)
        if application is not None:
            credentials = await ApplicationCredentials(azure.graph_requests(), application.object_id).list()
            return Trust(client_id, is_application=True, credentials=credentials)
    except (AzureError, HostError) as error:
        return Trust(client_id, identity, failure=failure or str(error))
    absence = (
        "neither an identity in the subscriptions that you see nor an application of your tenant has this client ID"
    )
    return Trust(client_id, failure=failure or absence)


@asynccontextmanager
async def open_azure(cloud_name: str = "", environ: Mapping[str, str] = os.environ) -> AsyncIterator[AzureAccess]:
    """Open a client; `environ` says who signs in. Raises ConfigurationError for an unknown cloud."""
    cloud = find_cloud(
        cloud_name or environ.get("AZURE_ENVIRONMENT", ""), environ.get("AZURE_ENVIRONMENT_FILEPATH", "")
    )
    graph = directory.GRAPHS.get(cloud.name, directory.GRAPH)
    headers = {"User-Agent": f"podidentity/{__version__}"}
    async with httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT, follow_redirects=False) as http:
        yield AzureAccess(
            Management(cloud.arm, credential_of(cloud, environ, http), http),
            Management(graph, credential_of(cloud, environ, http, graph), http, "Graph"),
        )


def _tell(message: str) -> None:
    click.echo(f"Azure asks to wait: {message}", err=True)
