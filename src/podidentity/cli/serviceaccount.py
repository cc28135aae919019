"""`podidentity serviceaccount create|delete [phase NAME]`: azwi's phases and flags."""

import asyncio
import base64
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from podidentity.azure import principals
from podidentity.azure.directory import Application
from podidentity.azure.federated import ApplicationCredentials
from podidentity.cli import report
from podidentity.cli.azure_access import AzureAccess, open_azure
from podidentity.cli.cluster_options import ClusterOptions, cluster_options
from podidentity.cli.flags import parse_duration
from podidentity.core.injection import rules
from podidentity.core.model import federation
from podidentity.core.model.federation import EXCHANGE_AUDIENCE, FederatedCredential
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.object_names import is_label, is_subdomain
from podidentity.errors import ConflictError, NotFoundError, UsageError
from podidentity.kube.api import Api
from podidentity.kube.connection import open_client
from podidentity.kube.issuer import read_issuer
from podidentity.kube.resources import SERVICE_ACCOUNTS

F = TypeVar("F", bound=Callable[..., Any])
CREATION = ("aad-application", "service-account", "federated-identity", "role-assignment")
DELETION = ("role-assignment", "federated-identity", "service-account", "aad-application")
_AUTH_METHODS = ("cli", "client_secret", "client_certificate")


@dataclass(frozen=True, slots=True)
class Options:
    """azwi's flags by their names; "" is what the phase finds out by itself."""

    service_account_name: str
    service_account_namespace: str
    service_account_issuer_url: str
    service_account_token_expiration: str
    aad_application_name: str
    aad_application_client_id: str
    aad_application_object_id: str
    service_principal_name: str
    service_principal_object_id: str
    azure_scope: str
    azure_role: str
    role_assignment_id: str
    skip_phases: str
    subscription_id: str
    azure_env: str
    auth_method: str
    client_id: str
    client_secret: str
    certificate_path: str
    private_key_path: str

    @property
    def account(self) -> ObjectKey:
        """The service account."""
        return ObjectKey(self.service_account_namespace, self.service_account_name)

    def environ(self) -> dict[str, str]:
        """Return the environment by which to sign in. Raises UsageError."""
        if self.private_key_path:
            raise UsageError("--private-key-path: keys of their own are not read; give PKCS#12 as --certificate-path")
        environ = dict(os.environ)
        if self.auth_method == "cli":
            return {name: text for name, text in environ.items() if not name.startswith("AZURE_CLIENT_")}
        environ |= {
            name: text
            for name, text in (
                ("AZURE_CLIENT_ID", self.client_id),
                ("AZURE_CLIENT_SECRET", self.client_secret),
                ("AZURE_CLIENT_CERTIFICATE_PATH", self.certificate_path),
            )
            if text
        }
        proof = f"AZURE_{self.auth_method.upper()}{'_PATH' if self.auth_method == 'client_certificate' else ''}"
        missing = [name for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", proof) if not environ.get(name)]
        if missing:
            raise UsageError(f"--auth-method {self.auth_method}: it is not said who signs in; set {', '.join(missing)}")
        return environ


_FLAGS: Mapping[str, tuple[str, str]] = {
    "--service-account-name": ("", "Name of the service account."),
    "--service-account-namespace": ("default", "Its namespace."),
    "--service-account-issuer-url": ("", "Issuer of its tokens; empty: the cluster's own."),
    "--service-account-token-expiration": ("1h", "How long its tokens in pods are valid, 1h to 24h."),
    "--aad-application-name": ("", "Name of the application; empty: NAMESPACE-NAME-DIGEST OF THE ISSUER."),
    "--aad-application-client-id": ("", "Its client ID, in the place of its name."),
    "--aad-application-object-id": ("", "Its object ID; found by itself."),
    "--service-principal-name": ("", "Name of its service principal, which is the application's."),
    "--service-principal-object-id": ("", "Object ID of its service principal; found by itself."),
    "--azure-scope": ("", "Scope of the role, such as a resource group's ID."),
    "--azure-role": ("", "Role that the application gets there, such as Reader."),
    "--role-assignment-id": ("", "The assignment that is deleted, in the place of scope and role."),
    "--skip-phases": ("", "Phases that are left out, comma-separated."),
    "--azure-env": ("AzurePublicCloud", "Azure cloud."),
    "--client-id": ("", "Client ID to sign in with, for --auth-method client_secret and client_certificate."),
    "--client-secret": ("", "Its secret; better in AZURE_CLIENT_SECRET, which no list of processes shows."),
    "--certificate-path": ("", "Its certificate and key, PKCS#12."),
    "--private-key-path": ("", "Not supported: --certificate-path holds the key."),
}


def _flags(command: F) -> F:
    method = click.Choice(_AUTH_METHODS)
    command = click.option("--auth-method", type=method, default="cli", show_default=True, help="Who signs in.")(
        command
    )
    command = click.option("--subscription-id", "-s", default="", help="Subscription; scopes name their own.")(command)
    for name, (default, text) in reversed(tuple(_FLAGS.items())):
        command = click.option(name, default=default, show_default=bool(default), help=text)(command)
    return command


@click.group(short_help="Workload identity for one service account, as azwi sets it up.")
def serviceaccount() -> None:
    """Set workload identity up for one service account, with azwi's phases and flags, or take it away.

    For managed identities: podidentity credential.
    """


@serviceaccount.command("create")
@click.argument("words", nargs=-1, metavar="[phase NAME]")
@_flags
@report.OUTPUT
@cluster_options
def create(words: tuple[str, ...], output: str, cluster: ClusterOptions, **options: str) -> None:
    """Create application, service account, federated credential and role assignment, or what is missing of them.

    Phases: aad-application, service-account, federated-identity, role-assignment.

    Example: podidentity serviceaccount create --service-account-name app --azure-role Reader --azure-scope ID
    """
    _show(_run(CREATION, _phases(words, CREATION, options), Options(**options), cluster, _teller(output)), output)


@serviceaccount.command("delete")
@click.argument("words", nargs=-1, metavar="[phase NAME]")
@_flags
@report.OUTPUT
@cluster_options
def delete(words: tuple[str, ...], output: str, cluster: ClusterOptions, **options: str) -> None:
    """Delete role assignment, federated credential, service account and application; what is gone is no error.

    Phases: role-assignment, federated-identity, service-account, aad-application.

    Example: podidentity serviceaccount delete --service-account-name app --skip-phases role-assignment
    """
    _show(_run(DELETION, _phases(words, DELETION, options), Options(**options), cluster, _teller(output)), output)


def _phases(words: tuple[str, ...], order: tuple[str, ...], options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the phases to run, in their order. Raises UsageError."""
    names = [name.strip() for name in options["skip_phases"].split(",") if name.strip()]
    match words:
        case ():
            phases = tuple(name for name in order if name not in names)
        case ("phase", name):
            phases, names = (name,), [*names, name]
        case _:
            raise UsageError(f'"{" ".join(words)}" is not known here; write phase NAME, or nothing for all phases')
    for name in names:
        if name not in order:
            raise UsageError(f'there is no phase "{name}"; give one of {", ".join(order)}')
    if not options["service_account_name"]:
        raise UsageError("--service-account-name is missing; give the name of the service account")
    for option, is_name in (("service_account_name", is_subdomain), ("service_account_namespace", is_label)):
        if not is_name(options[option]):
            flag = f"--{option.replace('_', '-')}"
            raise UsageError(f'{flag}: "{options[option]}" is no name of Kubernetes; use a to z, 0 to 9 and -')
    _token_seconds(options["service_account_token_expiration"])  # before anything is created
    has_assignment = bool(options["role_assignment_id"]) and order == DELETION
    if "role-assignment" in phases and not has_assignment and not (options["azure_scope"] and options["azure_role"]):
        raise UsageError("--azure-scope and --azure-role are missing; give both, or --skip-phases role-assignment")
    return phases


def _token_seconds(text: str) -> float:
    """Return how long tokens in pods are valid. Raises UsageError."""
    seconds = parse_duration(text)
    if seconds is None or not rules.EXPIRATION_SECONDS <= seconds <= rules.LONGEST_EXPIRATION_SECONDS:
        raise UsageError(f'--service-account-token-expiration: "{text}" is not from 1h to 24h; write for example 2h')
    return seconds


def _teller(output: str) -> Callable[[str], None]:
    """Return what says that a phase is over: nothing, where programs read."""
    return (lambda _line: None) if output in {"json", "yaml"} else click.echo


def _show(work: Coroutine[Any, Any, list[dict[str, str]]], output: str) -> None:
    """Do the work, and print it for programs."""
    items = asyncio.run(work)
    if output in {"json", "yaml"}:
        report.show_document(report.list_document("PhaseList", items), output)


async def _run(
    order: tuple[str, ...],
    phases: tuple[str, ...],
    options: Options,
    cluster: ClusterOptions,
    tell: Callable[[str], None],
) -> list[dict[str, str]]:
    async with (
        open_client(cluster.find()) as http,
        open_azure(options.azure_env, options.environ()) as azure,
    ):
        api = Api(http)
        issuer = options.service_account_issuer_url
        issuer = issuer or str(((await read_issuer(api)).configuration or {}).get("issuer", ""))
        work = _Work(api, azure, options, issuer)
        steps = work.creation() if order == CREATION else work.deletion()
        items = []
        for phase in phases:
            items.append({"phase": phase, "what": await steps[phase]()})
            tell(f"{phase}: {items[-1]['what']}")
        return items


Step = Callable[[], Awaitable[str]]


class _Work:
    """The phases; each returns what it did, as a sentence's end."""

    def __init__(self, api: Api, azure: AzureAccess, options: Options, issuer: str) -> None:
        self._api = api
        self._azure = azure
        self._options = options
        self._issuer = issuer
        self._name = options.aad_application_name or application_name(options.account, issuer)

    def creation(self) -> Mapping[str, Step]:
        """Return the phases that create."""
        steps = (self._create_application, self._create_account, self._create_credential, self._create_role)
        return dict(zip(CREATION, steps, strict=True))

    def deletion(self) -> Mapping[str, Step]:
        """Return the phases that delete."""
        steps = (self._delete_role, self._delete_credential, self._delete_account, self._delete_application)
        return dict(zip(DELETION, steps, strict=True))

    async def _application(self) -> Application:
        options = self._options
        if options.aad_application_client_id and options.aad_application_object_id:
            client_id = options.aad_application_client_id.lower()
            return Application(options.aad_application_object_id, client_id, self._name)
        return await self._azure.application(options.aad_application_client_id or self._name)

    async def _principal(self) -> str:
        if self._options.service_principal_object_id:
            return self._options.service_principal_object_id
        client_id = (await self._application()).client_id
        principal = await principals.find_principal(self._azure.graph_requests(), client_id)
        if not principal:
            raise UsageError(f"application {client_id} has no service principal; run the phase aad-application")
        return principal

    async def _create_application(self) -> str:
        graph = self._azure.graph_requests()
        application, is_new = await principals.ensure_application(graph, self._name)
        await principals.ensure_principal(graph, application.client_id)
        return f"{'created' if is_new else 'is there already:'} {application.name}, client ID {application.client_id}"

    async def _create_account(self) -> str:
        key, options = self._options.account, self._options
        seconds = _token_seconds(options.service_account_token_expiration)
        annotations = {rules.CLIENT_ID: (await self._application()).client_id, rules.EXPIRATION: f"{seconds:.0f}"}
        tenant = options.environ().get("AZURE_TENANT_ID")
        annotations |= {rules.TENANT_ID: tenant} if tenant else {}
        kind = SERVICE_ACCOUNTS.as_json()
        try:
            await self._api.create(kind, {"metadata": {**key._asdict(), "annotations": annotations}})
        except ConflictError:
            await self._api.patch(kind, key, {"metadata": {"annotations": annotations}})
            return f"annotated {key}"
        return f"created {key}"

    async def _create_credential(self) -> str:
        key = self._options.account
        credential = FederatedCredential(
            federation.name_of(self._issuer, *key),
            self._issuer,
            federation.subject_of(*key),
            EXCHANGE_AUDIENCE,
        )
        owner = await self._credentials()
        present = await owner.list()
        if any((item.issuer, item.subject) == (credential.issuer, credential.subject) for item in present):
            return f"is there already: {credential.subject}"
        refusal = federation.refuse(credential, present)
        if refusal:
            raise UsageError(f"{credential.name}: {refusal}")
        await owner.write(credential)
        return f"created {credential.name} for {credential.subject} of {credential.issuer}"

    async def _credentials(self) -> ApplicationCredentials:
        return ApplicationCredentials(self._azure.graph_requests(), (await self._application()).object_id)

    async def _create_role(self) -> str:
        options, arm = self._options, self._azure.arm_requests()
        is_new = await principals.assign_role(arm, options.azure_scope, options.azure_role, await self._principal())
        return f"{options.azure_role} at {options.azure_scope} {'assigned' if is_new else 'is there already'}"

    async def _delete_role(self) -> str:
        options, arm = self._options, self._azure.arm_requests()
        if options.role_assignment_id:
            await principals.delete_assignment(arm, options.role_assignment_id)
            return f"deleted {options.role_assignment_id}"
        count = await principals.unassign_role(arm, options.azure_scope, options.azure_role, await self._principal())
        return f"deleted {count} assignments of {options.azure_role} at {options.azure_scope}"

    async def _delete_credential(self) -> str:
        owner, subject = await self._credentials(), federation.subject_of(*self._options.account)
        names = [item.name for item in await owner.list() if (item.issuer, item.subject) == (self._issuer, subject)]
        for name in names:
            await owner.delete(name)
        return f"deleted {', '.join(names)}" if names else f"there is none for {subject}"

    async def _delete_account(self) -> str:
        with contextlib.suppress(NotFoundError):
            await self._api.delete(SERVICE_ACCOUNTS, self._options.account)
            return f"deleted {self._options.account}"
        return f"{self._options.account} is not there"

    async def _delete_application(self) -> str:
        application = await self._application()
        await self._azure.graph_requests().write("DELETE", f"/v1.0/applications/{application.object_id}")
        return f"deleted {application.name}, client ID {application.client_id}"


def application_name(account: ObjectKey, issuer: str) -> str:
    """Return azwi's name for the application of a service account."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(issuer.encode()).digest()).decode()
    return f"{account.namespace}-{account.name}-{digest}"
