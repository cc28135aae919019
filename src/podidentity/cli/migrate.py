"""`podidentity migrate`: reads a cluster of one of the predecessors, and writes the manifests of another way."""

import asyncio
import sys
from typing import TypeVar

import click
import yaml

from podidentity.cli import report
from podidentity.cli.cluster_options import ClusterOptions, cluster_options
from podidentity.core.injection.rules import CLIENT_ID, USE_LABEL
from podidentity.core.model.identities import POD_LABEL
from podidentity.core.report import migrating
from podidentity.core.report.findings import Verdict
from podidentity.core.report.migrating import Migration, MigrationFacts, Way
from podidentity.errors import ForbiddenError, NotFoundError
from podidentity.kube import resources
from podidentity.kube.api import Api, Selection
from podidentity.kube.connection import open_client
from podidentity.kube.issuer import read_issuer
from podidentity.kube.resources import Kind

T = TypeVar("T")


@click.command(short_help="Write the manifests of another way of getting tokens.")
@click.option("--to", "way", type=click.Choice([str(way) for way in Way]), required=True, help="The way to get tokens.")
@click.option("--check", is_flag=True, help="Only report: no manifests, and exit status 1 when something is open.")
@report.OUTPUT
@cluster_options
def migrate(*, way: str, check: bool, output: str, cluster: ClusterOptions) -> int:
    """Write the manifests that move pods of aad-pod-identity or azure-workload-identity to another way.

    Manifests go to the standard output, as YAML; what is left to do or to decide goes to the standard error, a sentence
    each. Nothing in the cluster is changed. Apply with `kubectl apply --server-side`, which leaves other fields alone.

    Example: podidentity migrate --to broker > manifests.yaml
    """
    migration = asyncio.run(_read(cluster, Way(way)))
    if check:
        return _report(migration, output)
    print(yaml.safe_dump_all(migration.manifests, sort_keys=False), end="")
    for finding in migration.findings:
        if finding.verdict != Verdict.OK:
            print(f"{finding.check}: {finding.message}; {finding.todo}".removesuffix("; "), file=sys.stderr)
    return 0


def _report(migration: Migration, output: str) -> int:
    if output in {"json", "yaml"}:
        report.show_document(report.document("Migration", migration.findings), output)
    else:
        report.show(migration.findings, output)
    return report.status_of([report.outcome_of(migration.findings)])


async def _read(cluster: ClusterOptions, way: Way) -> Migration:
    async with open_client(cluster.find()) as http:
        return migrating.plan(await gather(Api(http), cluster.namespace), way)


async def gather(api: Api, namespace: str = "") -> MigrationFacts:
    """Return the objects of both projects, of one namespace or of all. Raises KubernetesError."""
    pods = {}
    for label in (POD_LABEL, f"{USE_LABEL}=true"):
        pods[label] = (await api.list(resources.PODS, Selection(namespace, label))).values
    accounts = (await api.list(resources.SERVICE_ACCOUNTS, Selection(namespace))).values
    try:
        issuer = str(((await read_issuer(api)).configuration or {}).get("issuer", ""))
    except (ForbiddenError, NotFoundError):
        issuer = ""
    *_, workload_pods = pods.values()
    annotations = {
        account.key: account.annotations for account in accounts if account.annotations.get(CLIENT_ID, "").strip()
    }
    unique = {pod.key: pod for group in pods.values() for pod in group if pod.live}
    return MigrationFacts(
        await _values(api, resources.IDENTITIES, namespace),
        await _values(api, resources.BINDINGS, namespace),
        tuple(unique[key] for key in sorted(unique)),
        frozenset(pod.key for pod in workload_pods),
        {key: annotations[key] for key in sorted(annotations)},
        issuer,
    )


async def _values(api: Api, kind: Kind[T], namespace: str) -> tuple[T, ...]:
    """Return the objects of a kind; none where the kind is not installed."""
    try:
        return (await api.list(kind, Selection(namespace))).values
    except NotFoundError:
        return ()
