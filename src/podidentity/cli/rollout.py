"""`podidentity rollout`: waits for a DaemonSet, where no kubectl is at hand. The chart's uninstall hook runs it."""

import asyncio

import click

from podidentity.core.identities import ObjectKey
from podidentity.errors import UsageError
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.rollout import Progress, wait_until_everywhere


@click.command(short_help="Wait until a DaemonSet is ready on every node.")
@click.argument("daemonset", metavar="NAMESPACE/NAME")
@click.option("--timeout", "seconds", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds.")
@click.option("--kubeconfig", default="", help="Path of a kubeconfig; empty: KUBECONFIG or the service account.")
def rollout(daemonset: str, seconds: float, kubeconfig: str) -> None:
    """Wait until a DaemonSet is ready on every node that it wants.

    Example: podidentity rollout default/nmi-uninstall
    """
    namespace, slash, name = daemonset.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise UsageError(f'"{daemonset}" names no DaemonSet; write NAMESPACE/NAME')
    asyncio.run(_wait(ObjectKey(namespace, name), seconds, kubeconfig))


async def _wait(key: ObjectKey, seconds: float, kubeconfig: str) -> None:
    async with open_client(find_cluster(kubeconfig), "podidentity-rollout") as http:
        await wait_until_everywhere(Api(http), key, seconds, _tell)
    click.echo(f"daemonset {key} is ready on every node")


def _tell(now: Progress) -> None:
    click.echo(f"{now.ready} of {now.wanted} nodes" if now.seen else "not yet seen by its controller")
