"""`podidentity explain`: gathers what the token of a pod, or of every pod, depends on, and prints the findings."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

from podidentity.cli import report, workload_facts
from podidentity.cli.cluster_options import ClusterOptions, cluster_options
from podidentity.cli.daemon_settings import DaemonSettings, read_settings
from podidentity.core.model import allow_list
from podidentity.core.model.identities import (
    POD_LABEL,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    AzurePodIdentityException,
    ObjectKey,
)
from podidentity.core.model.machine_state import LABEL, MachineState, object_name, published_target
from podidentity.core.model.snapshot import Node, Pod, Snapshot
from podidentity.core.report import explaining
from podidentity.core.report.diagnosing import Daemon
from podidentity.core.report.explaining import Case
from podidentity.core.report.findings import Finding, Verdict
from podidentity.errors import ForbiddenError, NotFoundError, UsageError
from podidentity.kube import resources
from podidentity.kube.api import Api, Selection
from podidentity.kube.connection import open_client
from podidentity.kube.installation import find_daemons

KIND = "Explanation"
Explanation = tuple[Pod, tuple[Finding, ...]]


@click.group(
    short_help="What a pod would get when it asks for a token, and why.",
    invoke_without_command=True,
)
@click.option("--all", "every_pod", is_flag=True, help="Every pod that has a label, one line each.")
@report.OUTPUT
@cluster_options
@click.pass_context
def explain(context: click.Context, *, every_pod: bool, output: str, cluster: ClusterOptions) -> int:
    """Say what a pod would get when it asks for a token, and why; or what is missing, and what to do.

    Exit status 0: each gets a token; 6: not yet, it passes by itself; 1: none, until somebody acts.

    Example: podidentity explain --all
    """
    if context.invoked_subcommand is not None:
        return 0
    if not every_pod:
        raise UsageError("explain: it is not said what; name a pod, `podidentity explain pod NAME`, or give --all")
    explanations = asyncio.run(_explain_pods(cluster, None))
    if output in {"json", "yaml"}:
        items = [report.document(KIND, findings, pod=str(pod.key)) for pod, findings in explanations]
        report.show_document(report.list_document(f"{KIND}List", items), output)
    else:
        _show_table(explanations, is_wide=output == "wide")
    return report.status_of(report.outcome_of(findings) for _, findings in explanations)


@explain.command("pod")
@click.argument("pod", metavar="NAME")
@report.OUTPUT
@cluster_options
def explain_pod(pod: str, output: str, cluster: ClusterOptions) -> int:
    """Follow the way from a pod to its token, step by step. NAME may be NAMESPACE/NAME.

    Exit status 0: it gets a token; 6: not yet, it passes by itself; 1: none, until somebody acts.

    Example: podidentity explain pod demo --namespace default
    """
    key = _key(pod, cluster.namespace or cluster.find().namespace)
    (_, findings), *_ = asyncio.run(_explain_pods(cluster, key))
    if output in {"json", "yaml"}:
        report.show_document(report.document(KIND, findings, pod=str(key)), output)
    else:
        report.show(findings, output)
    return report.status_of([report.outcome_of(findings)])


def _key(text: str, namespace: str) -> ObjectKey:
    prefix, slash, name = text.rpartition("/")
    if not name or (slash and not prefix) or "/" in prefix:
        raise UsageError(f'"{text}" names no pod; write NAME or NAMESPACE/NAME, for example default/demo')
    return ObjectKey(prefix or namespace, name)


async def _explain_pods(cluster: ClusterOptions, key: ObjectKey | None) -> list[Explanation]:
    """Return the findings on one pod, or on every pod with the label of the namespace, or of all namespaces."""
    async with open_client(cluster.find()) as http:
        api = Api(http)
        pods = [await _pod(api, key)] if key is not None else await _labelled_pods(api, cluster.namespace)
        stories = await workload_facts.explain(api, cluster.namespace, key)
        by_binding = [pod for pod in pods if pod.selector or pod.key not in stories]
        surroundings = await gather(api) if by_binding else None
        return [(pod, _findings(pod, stories.get(pod.key, ()), surroundings)) for pod in pods]


def _findings(pod: Pod, story: tuple[Finding, ...], surroundings: "ClusterState | None") -> tuple[Finding, ...]:
    """Return the story of workload identity, and that of bindings where the pod has their label or nothing else."""
    if surroundings is None or (story and not pod.selector):
        return story
    return (*story, *explaining.explain(surroundings.case_of(pod)))


async def _labelled_pods(api: Api, namespace: str) -> Sequence[Pod]:
    """Return the pods with the label of bindings or of workload identity."""
    pods: dict[ObjectKey, Pod] = {}
    for labels in (POD_LABEL, workload_facts.SELECTOR):
        pods |= {pod.key: pod for pod in (await api.list(resources.PODS, Selection(namespace, labels))).values}
    return [pods[key] for key in sorted(pods)]


async def _pod(api: Api, key: ObjectKey) -> Pod:
    try:
        return await api.get(resources.PODS, key)
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no pod {key}; see kubectl -n {key.namespace} get pods", status=error.status
        ) from None


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Everything that decides about any pod of a cluster."""

    identities: tuple[AzureIdentity, ...]
    bindings: tuple[AzureIdentityBinding, ...]
    assigned_identities: tuple[AzureAssignedIdentity, ...]
    exceptions: tuple[AzurePodIdentityException, ...]
    mics: Sequence[Daemon]
    nmis: Sequence[Daemon]
    settings: DaemonSettings
    permissions: allow_list.AllowList
    machines: Mapping[str, MachineState]
    """What MIC says of each node's machine, by node."""

    def case_of(self, pod: Pod) -> Case:
        """Return the part of it that is about one pod."""
        snapshot = Snapshot(
            pods=(pod,),
            nodes={pod.node: Node(pod.node)} if pod.node else {},
            identities={identity.key: identity for identity in self.identities},
            bindings=self.bindings,
            assigned_identities=tuple(item for item in self.assigned_identities if item.pod == pod.key),
            allow_list=self.permissions,
        )
        return Case(
            pod,
            snapshot,
            self.settings.policy,
            self.exceptions,
            managed_mode=self.settings.managed_mode,
            mic_namespace=self.settings.mic_namespace,
            nmi_ready=any(daemon.ready for daemon in self.nmis if daemon.node == pod.node),
            mic_ready=any(daemon.ready for daemon in self.mics) if self.mics else None,
            machine=self.machines.get(pod.node),
        )


async def gather(api: Api) -> ClusterState:
    """Return everything that decides about pods. Raises KubernetesError."""
    mics, nmis = await find_daemons(api, "mic"), await find_daemons(api, "nmi")
    settings = read_settings(mics, nmis)
    return ClusterState(
        (await api.list(resources.IDENTITIES)).values,
        (await api.list(resources.BINDINGS)).values,
        await _assigned_identities(api, managed_mode=settings.managed_mode),
        (await api.list(resources.EXCEPTIONS)).values,
        mics,
        nmis,
        settings,
        await _permissions(api) if settings.policy.allow_list else {},
        await _machines(api, settings.mic_namespace),
    )


async def _assigned_identities(api: Api, *, managed_mode: bool) -> tuple[AzureAssignedIdentity, ...]:
    """Return what MIC has assigned; nothing where NMI was installed without MIC, and so without their definition."""
    try:
        return (await api.list(resources.ASSIGNED_IDENTITIES)).values
    except NotFoundError:
        if managed_mode:
            return ()
        raise


async def _machines(api: Api, namespace: str) -> Mapping[str, MachineState]:
    """Return what MIC says of machines; nothing where one may not see it: then its assigned identities count."""
    try:
        nodes = (await api.list(resources.NODES)).values
        states = await api.list(resources.MACHINE_STATES, Selection(namespace=namespace, labels=f"{LABEL}=true"))
    except (ForbiddenError, NotFoundError):
        return {}
    by_name = {key.name: item.value for key, item in states.items.items()}
    names = {node.name: object_name(published_target(node.name, node.provider_id)) for node in nodes}
    return {node: by_name[name] for node, name in names.items() if name in by_name}


async def _permissions(api: Api) -> allow_list.AllowList:
    try:
        namespaces = await api.list(resources.NAMESPACES)
    except ForbiddenError as error:
        raise ForbiddenError(f"--namespace-allow-list is on, and {error}", status=error.status) from None
    annotations = {namespace.name: namespace.annotations.get(allow_list.ANNOTATION) for namespace in namespaces.values}
    return {name: text for name, text in annotations.items() if text}


def _show_table(explanations: Sequence[Explanation], *, is_wide: bool) -> None:
    """Print a line for each pod: its outcome, and the finding that decides it."""
    if not explanations:
        click.echo(f"no pod has the label {POD_LABEL} or {workload_facts.SELECTOR}", err=True)
        return
    rows = []
    for pod, findings in explanations:
        outcome = report.outcome_of(findings)
        deciding = next((finding for finding in findings if finding.verdict == outcome != Verdict.OK), findings[-1])
        wide_cells = [pod.node or "-", deciding.todo or "-"] if is_wide else []
        rows.append([pod.key.namespace, pod.key.name, str(outcome), *wide_cells, deciding.message])
    report.show_table(["NAMESPACE", "POD", "OUTCOME", *(["NODE", "TO DO"] if is_wide else []), "WHY"], rows)
