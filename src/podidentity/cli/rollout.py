"""`podidentity rollout`: waits for a DaemonSet, where no kubectl is at hand. The chart's uninstall hook runs it."""

import asyncio

import click

from podidentity.cli import report
from podidentity.cli.cluster_options import ClusterOptions, cluster_options
from podidentity.core.model.identities import ObjectKey
from podidentity.errors import UsageError
from podidentity.kube.api import Api
from podidentity.kube.connection import open_client
from podidentity.kube.rollout import Progress, wait_until_everywhere


@click.command(short_help="Wait until a DaemonSet is ready on every node.")
@click.argument("daemonset", metavar="NAME")
@click.option("--timeout", "seconds", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds.")
@report.OUTPUT
@cluster_options
def rollout(daemonset: str, seconds: float, output: str, cluster: ClusterOptions) -> None:
    """Wait until a DaemonSet is ready on every node that it wants. NAME may be NAMESPACE/NAME.

    Example: podidentity rollout nmi --namespace default
    """
    namespace, slash, name = daemonset.rpartition("/")
    if not name or (slash and not namespace) or "/" in namespace:
        raise UsageError(f'"{daemonset}" names no DaemonSet; write NAME or NAMESPACE/NAME')
    key = ObjectKey(namespace or cluster.namespace or cluster.find().namespace, name)
    is_document = output in {"json", "yaml"}
    progress = asyncio.run(_wait(key, seconds, cluster, is_silent=is_document))
    if is_document:
        fields = {"daemonset": str(key), "ready": progress.ready, "desired": progress.desired}
        report.show_document({"apiVersion": report.API_VERSION, "kind": "Rollout", **fields}, output)
    else:
        click.echo(f"daemonset {key} is ready on every node")


async def _wait(key: ObjectKey, seconds: float, cluster: ClusterOptions, *, is_silent: bool) -> Progress:
    async with open_client(cluster.find(), "podidentity-rollout") as http:
        latest: list[Progress] = []

        def tell(now: Progress) -> None:
            latest[:] = [now]
            if not is_silent:
                click.echo(
                    f"{now.ready} of {now.desired} nodes" if now.is_current else "not yet seen by its controller"
                )

        await wait_until_everywhere(Api(http), key, seconds, tell)
        return latest[0]
