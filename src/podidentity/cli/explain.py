"""`podidentity explain pod NAMESPACE/NAME`: gathers what a pod's token depends on and shows what `core` makes of it."""

import asyncio
import os

import click

from podidentity.cli import showing
from podidentity.cli.told import told
from podidentity.core import allowing, explaining
from podidentity.core.cluster import Node, Snapshot
from podidentity.core.explaining import Case
from podidentity.core.findings import Finding, Verdict
from podidentity.core.identities import ObjectKey
from podidentity.errors import ForbiddenError, NotFoundError, UsageError
from podidentity.kube import resources
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.installation import find_daemons


@click.group(short_help="What a pod would get when it asks for a token, and why.")
def explain() -> None:
    """Say what a pod would get when it asks for a token, and why; or what is missing, and what to do."""


@explain.command("pod")
@click.argument("pod", metavar="NAMESPACE/NAME")
@showing.OUTPUT
@showing.KUBECONFIG
def explain_pod(pod: str, output: str, kubeconfig: str) -> int:
    """Tell the story of a pod's token, step by step. Exit status 1 when the pod would get none.

    Example: podidentity explain pod default/demo
    """
    findings = asyncio.run(_explained(_key(pod), kubeconfig))
    showing.show(findings, output)
    return int(any(one.verdict in (Verdict.PROBLEM, Verdict.WAIT) for one in findings))


def _key(text: str) -> ObjectKey:
    namespace, slash, name = text.partition("/")
    if not (slash and namespace and name) or "/" in name:
        raise UsageError(f'"{text}" names no pod; write NAMESPACE/NAME, for example default/demo')
    return ObjectKey(namespace, name)


async def _explained(key: ObjectKey, kubeconfig: str) -> tuple[Finding, ...]:
    where = find_cluster(kubeconfig, os.environ, home=showing.home())
    async with open_client(where) as http:
        return explaining.explain(await gather(Api(http), key))


async def gather(api: Api, key: ObjectKey) -> Case:
    """Look at everything that decides about a pod. Raises KubernetesError; NotFoundError when there is no such pod."""
    try:
        pod = await api.get(resources.PODS, key)
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no pod {key}; see kubectl -n {key.namespace} get pods", status=error.status
        ) from None
    identities = await api.list(resources.IDENTITIES)
    bindings = await api.list(resources.BINDINGS)
    assigned = await api.list(resources.ASSIGNED_IDENTITIES)
    exceptions = await api.list(resources.EXCEPTIONS)
    mics, nmis = await find_daemons(api, "mic"), await find_daemons(api, "nmi")
    settings = told(mics, nmis)
    here = [one.ready for one in nmis if one.node == pod.node]
    snapshot = Snapshot(
        pods=(pod,),
        nodes={pod.node: Node(pod.node)} if pod.node else {},
        identities={one.key: one for one in identities.values},
        bindings=bindings.values,
        assigned=tuple(one for one in assigned.values if one.pod == pod.key),
        allowed=await _allowed(api) if settings.policy.allow_list else {},
    )
    return Case(
        pod,
        snapshot,
        settings.policy,
        exceptions.values,
        managed_mode=settings.managed_mode,
        mic_namespace=settings.mic_namespace,
        nmi_ready=any(here) if here or nmis else None,
        mic_ready=any(one.ready for one in mics) if mics else None,
    )


async def _allowed(api: Api) -> allowing.AllowList:
    try:
        listed = await api.list(resources.NAMESPACES)
    except ForbiddenError as error:
        raise ForbiddenError(f"--namespace-allow-list is on, and {error}", status=error.status) from None
    return {one.name: text for one in listed.values if (text := one.annotations.get(allowing.ANNOTATION))}
