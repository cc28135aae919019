"""`podidentity credential create|list|delete`: federated credentials of managed identities and applications."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from podidentity.cli import report
from podidentity.cli.azure_access import CLOUD, check_owner, open_azure
from podidentity.cli.cluster_options import ClusterOptions, cluster_options
from podidentity.core.model import federation
from podidentity.core.model.federation import CREDENTIALS_LIMIT, EXCHANGE_AUDIENCE, FederatedCredential
from podidentity.core.model.object_names import is_label, is_subdomain
from podidentity.errors import UsageError
from podidentity.kube.api import Api
from podidentity.kube.connection import open_client
from podidentity.kube.issuer import read_issuer

_KIND = "FederatedCredentialList"
F = TypeVar("F", bound=Callable[..., Any])


def _owner_options(command: F) -> F:
    for option in (
        CLOUD,
        click.option("--application", default="", metavar="ID", help="Client ID or name of an application."),
        click.option("--identity", default="", metavar="ID", help="Resource ID or client ID of a managed identity."),
    ):
        command = option(command)
    return command


@click.group(short_help="Federated credentials: create, list, delete.")
def credential() -> None:
    """Say whose tokens an identity or application trusts: federated credentials.

    Signs in as you are in az, or with AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or
    AZURE_CLIENT_CERTIFICATE_PATH (PKCS#12).
    """


@dataclass(frozen=True, slots=True)
class _Wish:
    """The options of `create` that say what is to be trusted."""

    accounts: tuple[str, ...]
    subject: str
    issuer: str
    audience: str
    name: str


@credential.command("create")
@click.option("--service-account", "accounts", multiple=True, metavar="NAMESPACE/NAME", help="May be given again.")
@click.option("--subject", default="", help="In the place of a service account: the subject as it is.")
@click.option("--issuer", default="", help="Empty: the cluster's own.")
@click.option("--audience", default=EXCHANGE_AUDIENCE, show_default=True, help="Other clouds have others.")
@click.option("--name", default="", help="Name of the credential; empty: made of the service account and the issuer.")
@_owner_options
@report.OUTPUT
@cluster_options
def create(*, identity: str, application: str, cloud: str, output: str, cluster: ClusterOptions, **wish: Any) -> None:
    """Let an identity or application trust service accounts, of this cluster or of another issuer.

    Credentials are created one after the other, at most one in four seconds, as Azure demands. What is there already
    stays. That there is no room for them is said before the first one.

    Example: podidentity credential create --identity CLIENT_ID --service-account podidentity-broker/podidentity-broker
    """
    is_document = output in {"json", "yaml"}
    tell = (lambda _line: None) if is_document else click.echo
    credentials = asyncio.run(_create((identity, application, cloud), cluster, _Wish(**wish), tell))
    if is_document:
        report.show_document(report.list_document(_KIND, list(map(_document, credentials))), output)


@credential.command("list")
@report.OUTPUT
@_owner_options
def list_credentials(identity: str, application: str, cloud: str, output: str) -> None:
    """List the federated credentials of an identity or application.

    Example: podidentity credential list --identity CLIENT_ID
    """
    credentials = asyncio.run(_list(identity, application, cloud))
    if output in {"json", "yaml"}:
        report.show_document(report.list_document(_KIND, list(map(_document, credentials))), output)
        return
    rows = [(item.name, item.issuer, item.subject, item.audience) for item in credentials]
    report.show_table(("NAME", "ISSUER", "SUBJECT", "AUDIENCE"), rows)
    click.echo(f"{len(rows)} of {CREDENTIALS_LIMIT} are used", err=True)


@credential.command("delete")
@click.option("--name", required=True, help="Name of the credential.")
@_owner_options
def delete(identity: str, application: str, cloud: str, name: str) -> None:
    """Delete a federated credential. One that is not there is no error.

    Tokens that were given for it stay good until they expire: of a managed identity about a day.

    Example: podidentity credential delete --identity CLIENT_ID --name podidentity-broker
    """
    click.echo(f"{name}: {'deleted' if asyncio.run(_delete(identity, application, cloud, name)) else 'was not there'}")


def _document(item: FederatedCredential) -> dict[str, str]:
    return {"name": item.name, "issuer": item.issuer, "subject": item.subject, "audience": item.audience}


async def _create(
    owner_options: tuple[str, str, str], cluster: ClusterOptions, wish: _Wish, tell: Callable[[str], None]
) -> Sequence[FederatedCredential]:
    identity, application, cloud = owner_options
    check_owner(identity, application)
    _credentials(wish, "")  # what is wrong with the options is said before anybody is asked
    issuer = wish.issuer or await _issuer(cluster)
    credentials = _credentials(wish, issuer)
    async with open_azure(cloud) as azure:
        owner = await azure.credentials_of(identity, application)
        present = await owner.list()
        new = [item for item in credentials if item not in present]
        for number, item in enumerate(new):
            refusal = federation.refuse(item, (*present, *new[:number]))
            if refusal:
                raise UsageError(f"{item.name}: {refusal}")
        for item in credentials:
            if item in present:
                tell(f"{item.name}: is there already")
            else:
                await owner.write(item)
                tell(f"{item.name}: trusts {item.subject} of {item.issuer}")
    if new:
        tell("Entra ID takes seconds to minutes until it knows a new credential everywhere.")
    return credentials


def _credentials(wish: _Wish, issuer: str) -> Sequence[FederatedCredential]:
    if bool(wish.accounts) == bool(wish.subject):
        raise UsageError("whom to trust is not clear; give either --service-account NAMESPACE/NAME or --subject")
    if wish.subject:
        if not wish.name:
            raise UsageError("--name is missing; a credential for --subject needs one")
        return [FederatedCredential(wish.name, issuer, wish.subject, wish.audience)]
    if wish.name and len(wish.accounts) > 1:
        raise UsageError("--name is for one service account; leave it out, and each credential gets a name of its own")
    keys = [_account(text) for text in dict.fromkeys(wish.accounts)]
    return [
        FederatedCredential(
            wish.name or federation.name_of(issuer, *key), issuer, federation.subject_of(*key), wish.audience
        )
        for key in keys
    ]


def _account(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    if not (slash and is_label(namespace) and is_subdomain(name)):
        raise UsageError(f'--service-account: "{text}" is no service account; write NAMESPACE/NAME')
    return namespace, name


async def _issuer(cluster: ClusterOptions) -> str:
    async with open_client(cluster.find()) as http:
        return str(((await read_issuer(Api(http))).configuration or {}).get("issuer", ""))


async def _list(identity: str, application: str, cloud: str) -> tuple[FederatedCredential, ...]:
    async with open_azure(cloud) as azure:
        return await (await azure.credentials_of(identity, application)).list()


async def _delete(identity: str, application: str, cloud: str, name: str) -> bool:
    async with open_azure(cloud) as azure:
        return await (await azure.credentials_of(identity, application)).delete(name)
