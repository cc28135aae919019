"""`podidentity doctor`: gathers the facts of an installation and prints the findings of `diagnosing`."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import click

from podidentity.azure.sign_in import is_signed_in
from podidentity.cli import broker_facts, door_facts, report
from podidentity.cli.azure_access import gather_trusts
from podidentity.cli.cluster_options import ClusterOptions, cluster_options, home
from podidentity.cli.daemon_settings import read_settings
from podidentity.core.model.crd import GROUP
from podidentity.core.model.identities import ObjectKey
from podidentity.core.report import brokers, diagnosing, doors
from podidentity.core.report.diagnosing import Daemon, Facts, Right
from podidentity.core.report.findings import Finding
from podidentity.errors import KubernetesError, NotFoundError
from podidentity.kube import resources
from podidentity.kube.api import Api, ObjectList
from podidentity.kube.connection import open_client
from podidentity.kube.installation import find_daemons, find_missing_rights
from podidentity.kube.locks import EndpointsLock
from podidentity.kube.resources import Kind
from podidentity.timing import parse_rfc3339

T = TypeVar("T")


@click.command(short_help="Check an installation: roles, definitions, daemons, identities.")
@click.option(
    "--azure/--no-azure",
    default=None,
    help="Whether Azure is asked for the federated credentials of brokers' identities; else when you are signed in.",
)
@report.OUTPUT
@cluster_options
def doctor(output: str, cluster: ClusterOptions, *, azure: bool | None) -> int:
    """Check an installation as a platform engineer would. With --namespace, only its identities and bindings.

    Exit status 0: all is well; 6: not yet, it passes by itself; 1: something is wrong.

    Example: podidentity doctor --output json
    """
    findings = asyncio.run(_diagnose(cluster, asks_azure=is_signed_in(os.environ, home()) if azure is None else azure))
    if output in {"json", "yaml"}:
        report.show_document(report.document("Diagnosis", findings), output)
    else:
        report.show(findings, output)
    return report.status_of([report.outcome_of(findings)])


async def _diagnose(cluster: ClusterOptions, *, asks_azure: bool) -> tuple[Finding, ...]:
    access = cluster.find()
    async with open_client(access) as http:
        api, attempts = Api(http), _Attempts()
        facts = await gather(api, access.server)
        of_brokers = await broker_facts.gather(api, attempts.attempt)
        of_doors = await door_facts.gather(api, attempts.attempt, facts.nmi, of_brokers.brokers)
    if asks_azure and of_brokers.grants:
        of_brokers = replace(of_brokers, trusts=await gather_trusts(sorted(of_brokers.grants)))
    facts = _of_namespace(facts, cluster.namespace) if cluster.namespace else facts
    of_brokers = replace(of_brokers, unavailable=tuple(attempts.failures))
    return (*brokers.diagnose_all(facts, of_brokers), *doors.diagnose(of_doors))


def _of_namespace(facts: Facts, namespace: str) -> Facts:
    """Return the facts with the objects of one namespace alone; those about the daemons stay."""
    return replace(
        facts,
        identities=tuple(item for item in facts.identities if item.key.namespace == namespace),
        bindings=tuple(item for item in facts.bindings if item.key.namespace == namespace),
        assigned_identities=tuple(item for item in facts.assigned_identities if item.pod.namespace == namespace),
        unreadable={key: message for key, message in facts.unreadable.items() if key.namespace == namespace},
    )


@dataclass(slots=True)
class _Attempts:
    """Requests that may fail one by one: each failure becomes a finding of its own."""

    failures: list[tuple[str, str]] = field(default_factory=list)

    async def attempt(self, check: str, request: Awaitable[T], otherwise: T) -> T:
        try:
            return await request
        except KubernetesError as error:
            self.failures.append((check, str(error)))
            return otherwise


async def gather(api: Api, server: str) -> Facts:
    """Return the facts of an installation. Raises KubernetesError when the API server itself does not answer."""
    version = await api.server_version()
    attempts = _Attempts()
    definitions = await attempts.attempt("definitions", _definitions(api), {})
    nodes = await attempts.attempt("nodes", _values(api, resources.NODES), ())
    mics = await attempts.attempt("mic", find_daemons(api, "mic"), ())
    nmis = await attempts.attempt("nmi", find_daemons(api, "nmi"), ())
    settings = read_settings(mics, nmis)
    ages: tuple[Any, Any] = ({}, {})
    if diagnosing.KINDS[0] in definitions or not settings.managed_mode:
        ages = await attempts.attempt("assigned", _assigned_identities(api), ages)
    identities_with_age, unreadable = ages
    managed, allow_list, taint = settings.managed_mode, settings.policy.allow_list, settings.startup_taint
    identities = await attempts.attempt("identities", _values(api, resources.IDENTITIES), ())
    of_nmi = diagnosing.nmi_rights(managed=managed, allow_list=allow_list, startup_taint=taint)
    of_nmi += diagnosing.secret_rights(identities)
    of_mic = diagnosing.mic_rights(allow_list=allow_list, lock=settings.lock, record=settings.record)
    required: list[tuple[str, Daemon, tuple[Right, ...]]] = [
        *[("MIC", daemon, of_mic) for daemon in mics[:1]],
        *[("NMI", daemon, of_nmi) for daemon in nmis[:1]],
    ]
    tainted_nodes: frozenset[str] = frozenset()
    if taint:
        tainted_nodes = await attempts.attempt("startup taint", _tainted_nodes(api, taint), tainted_nodes)
    roles = {}
    for name, daemon, rights in required:
        missing = await attempts.attempt("role", _missing_rights(api, daemon, rights), None)
        if missing is not None:
            roles[name] = missing
    return Facts(
        server=f"{server}, {version}",
        definitions=definitions,
        nodes=nodes,
        mic=mics,
        nmi=nmis,
        leader=await attempts.attempt("leader", _leader(api, settings.lock), ""),
        missing_rights=roles,
        identities=identities,
        bindings=await attempts.attempt("bindings", _values(api, resources.BINDINGS), ()),
        assigned_identities=tuple(identity for identity, _ in identities_with_age.values()),
        created_seconds={key: age for key, (_, age) in identities_with_age.items()},
        unreadable=unreadable,
        unavailable=tuple(attempts.failures),
        managed_mode=settings.managed_mode,
        assign_on_binding=settings.policy.assign_on_binding,
        startup_taint=taint,
        tainted_nodes=tainted_nodes,
    )


async def _tainted_nodes(api: Api, key: str) -> frozenset[str]:
    """Return the names of the nodes that carry a taint of this key, whatever its value and effect."""
    nodes = await api.list(resources.NODES.as_json())
    return frozenset(
        name.name
        for name, node in nodes.items.items()
        if any(taint.get("key") == key for taint in (node.value.get("spec") or {}).get("taints") or ())
    )


async def _missing_rights(api: Api, daemon: Daemon, rights: tuple[Right, ...]) -> tuple[Right, ...] | None:
    return await find_missing_rights(api, daemon, rights)


async def _values(api: Api, kind: Kind[T]) -> tuple[T, ...]:
    return (await api.list(kind)).values


async def _definitions(api: Api) -> dict[str, bool]:
    """Return which of our definitions are installed, and for each whether it has conditions."""
    definitions: dict[str, bool] = {}
    for plural in diagnosing.KINDS:
        try:
            definition = await api.get(resources.CRDS.as_json(), ObjectKey("", f"{plural}.{GROUP}"))
        except NotFoundError:
            continue
        definitions[plural] = any(map(_has_conditions, definition["spec"].get("versions") or ()))
    return definitions


def _has_conditions(version: Mapping[str, Any]) -> bool:
    place: Any = version
    for name in ("schema", "openAPIV3Schema", "properties", "status", "properties"):
        place = (place or {}).get(name)
    return "conditions" in (place or {})


async def _assigned_identities(api: Api) -> tuple[dict[ObjectKey, tuple[Any, float]], Mapping[ObjectKey, str]]:
    """Return all assigned identities, each with its age in seconds; and the malformed ones, each with the reason."""
    objects: ObjectList[dict[str, Any]] = await api.list(resources.ASSIGNED_IDENTITIES.as_json())
    ages = {key: _age_seconds(obj.value) for key, obj in objects.items.items()}
    identities = await api.list(resources.ASSIGNED_IDENTITIES)
    return {key: (identity.value, ages.get(key, 0.0)) for key, identity in identities.items.items()}, identities.odd


def _age_seconds(obj: Mapping[str, Any], clock: Callable[[], float] = time.time) -> float:
    created_at = parse_rfc3339(str((obj.get("metadata") or {}).get("creationTimestamp")))
    return 0.0 if created_at is None else clock() - created_at


async def _leader(api: Api, lock: ObjectKey) -> str:
    """Return the holder of MIC's lock; empty when there is none."""
    lease = await EndpointsLock(api, lock).read()
    return lease.record.holder if lease else ""
