"""`podidentity verify`: checks the whole on a real cluster and a real Azure: creates, looks, removes, reports."""

import asyncio
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from podidentity import __version__
from podidentity.azure.clouds import find_cloud
from podidentity.azure.management import Management
from podidentity.azure.sign_in import credential_of
from podidentity.cli import report
from podidentity.cli.cluster_options import ClusterOptions, cluster_options
from podidentity.cli.trial.objects import Names
from podidentity.cli.trial.subscription import Subscription
from podidentity.cli.trial.trial import Trial
from podidentity.core.model.arm import target_of
from podidentity.core.report.findings import Finding
from podidentity.errors import ConfigurationError, UsageError
from podidentity.kube import resources
from podidentity.kube.api import Api
from podidentity.kube.connection import open_client
from podidentity.mic.adapters.azure import open_azure


@dataclass(frozen=True, slots=True)
class Options:
    """The command's own options, by their names; "" where the default depends on the cluster."""

    yes: bool
    subscription: str
    resource_group: str
    cloud: str
    image: str
    timeout: float
    keep: bool


@click.command(short_help="Check the whole on your cluster and your Azure subscription.")
@click.option("--yes", is_flag=True, help="Do it: without, it only says what it would create.")
@click.option("--subscription", default="", help="Where the identity is created; empty: the nodes' subscription.")
@click.option("--resource-group", default="", help="Its resource group; empty: the nodes' own.")
@click.option("--cloud", default="", help="Azure cloud, such as AzureChinaCloud; empty: the public one.")
@click.option("--image", default="", help="Image of the pods that ask, with a python3; empty: NMI's.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds for each step."
)
@click.option("--keep", is_flag=True, help="Remove nothing at the end.")
@report.OUTPUT
@cluster_options
def verify(*, output: str, cluster: ClusterOptions, **options: Any) -> int:
    """Check podidentity on a cluster in Azure, from a new identity to a pod's token and back.

    It creates a user-assigned identity, and a namespace with an AzureIdentity, a binding and two pods; waits until one
    pod has a token of that identity and the other was refused; looks at the VM or scale set; and removes everything
    again. It needs az, signed in, or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET; the right to create
    identities in the resource group and namespaces in the cluster; and an installation in standard mode, whose MIC may
    assign identities of that resource group. It costs nothing but minutes.

    Exit status 0: everything was as it should be; 1: something was not.

    Example: podidentity verify --yes --output yaml
    """
    is_document = output in {"json", "yaml"}

    def tell(finding: Finding) -> None:
        if not is_document:
            report.show([finding], output)
            sys.stdout.flush()

    findings = asyncio.run(_try(Options(**options), cluster, tell))
    if is_document:
        report.show_document(report.document("Verification", findings, version=__version__), output)
    return report.status_of([report.outcome_of(findings)])


async def _try(options: Options, cluster: ClusterOptions, tell: Callable[[Finding], None]) -> tuple[Finding, ...]:
    cloud = find_cloud(options.cloud, os.environ.get("AZURE_ENVIRONMENT_FILEPATH", ""))
    access = cluster.find()
    async with open_client(access) as http, open_azure(f"podidentity-verify/{__version__}") as azure:
        api = Api(http)
        subscription, group = await _place(api, options)
        if not options.yes:
            raise UsageError(
                f"verify creates an identity in resource group {group} of subscription {subscription}, "
                f"and a namespace in {access.server}, and removes both; agree with --yes"
            )
        arm = Management(cloud.arm, credential_of(cloud, os.environ, azure), azure)
        trial = Trial(
            api,
            http,
            Subscription(arm, subscription, group),
            Names(f"podidentity-verify-{secrets.token_hex(4)}"),
            f"{cloud.audience.rstrip('/')}/",
            options.image,
            options.timeout,
            tell=tell,
        )
        return await trial.run(keep=options.keep)


async def _place(api: Api, options: Options) -> tuple[str, str]:
    """Return subscription and resource group: those that were named, else those of the first node that has them."""
    for node in (await api.list(resources.NODES)).values:
        subscription, group, _ = target_of(node.name, node.provider_id, "", "").spelling
        if subscription:
            return options.subscription or subscription, options.resource_group or group
    if options.subscription and options.resource_group:
        return options.subscription, options.resource_group
    raise ConfigurationError(
        "no node has a providerID of Azure, so this is no cluster in Azure; name --subscription and --resource-group"
    )
