"""`podidentity doctor`: gathers the facts of an installation and shows what `core.diagnosing` makes of them."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import click

from podidentity.cli import showing
from podidentity.cli.told import told
from podidentity.core import diagnosing
from podidentity.core.crd import GROUP
from podidentity.core.diagnosing import Daemon, Facts, Right
from podidentity.core.findings import Finding, Verdict
from podidentity.core.identities import ObjectKey
from podidentity.errors import KubernetesError, NotFoundError
from podidentity.kube import resources
from podidentity.kube.api import Api, Listed
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.installation import denied, find_daemons
from podidentity.kube.locks import EndpointsLock
from podidentity.kube.resources import Kind

LOCK = "aad-pod-identity-mic"
T = TypeVar("T")


@click.command(short_help="Check an installation: roles, definitions, daemons, identities.")
@showing.OUTPUT
@showing.KUBECONFIG
def doctor(output: str, kubeconfig: str) -> int:
    """Check an installation as a platform engineer would. Exit status 1 when something is wrong.

    Example: podidentity doctor --output json
    """
    findings = asyncio.run(_diagnosed(kubeconfig))
    showing.show(findings, output)
    return int(any(one.verdict == Verdict.PROBLEM for one in findings))


async def _diagnosed(kubeconfig: str) -> tuple[Finding, ...]:
    where = find_cluster(kubeconfig, os.environ, home=showing.home())
    async with open_client(where) as http:
        return diagnosing.diagnose(await gather(Api(http), where.server))


@dataclass(slots=True)
class _Looks:
    """Looks that may fail one by one: what could not be seen is a finding of its own."""

    unseen: list[tuple[str, str]] = field(default_factory=list)

    async def at(self, check: str, look: Awaitable[T], otherwise: T) -> T:
        try:
            return await look
        except KubernetesError as error:
            self.unseen.append((check, str(error)))
            return otherwise


async def gather(api: Api, server: str) -> Facts:
    """Look at everything. Raises KubernetesError when the API server itself does not answer."""
    version = await api.server_version()
    looks = _Looks()
    definitions = await looks.at("definitions", _definitions(api), {})
    nodes = await looks.at("nodes", _values(api, resources.NODES), ())
    mics = await looks.at("mic", find_daemons(api, "mic"), ())
    nmis = await looks.at("nmi", find_daemons(api, "nmi"), ())
    assigned, unreadable = await looks.at("assigned", _assigned(api), ({}, {}))
    settings = told(mics, nmis)
    managed, allow_list, taint = settings.managed_mode, settings.policy.allow_list, settings.startup_taint
    of_nmi = diagnosing.nmi_rights(managed=managed, allow_list=allow_list, startup_taint=taint)
    asked: list[tuple[str, Daemon, tuple[Right, ...]]] = [
        *[("MIC", one, diagnosing.mic_rights(allow_list=allow_list)) for one in mics[:1]],
        *[("NMI", one, of_nmi) for one in nmis[:1]],
    ]
    tainted: frozenset[str] = frozenset()
    if taint:
        tainted = await looks.at("startup taint", _tainted(api, taint), tainted)
    roles = {}
    for name, daemon, rights in asked:
        found = await looks.at("role", _denied(api, daemon, rights), None)
        if found is not None:
            roles[name] = found
    return Facts(
        server=f"{server}, {version}",
        definitions=definitions,
        nodes=nodes,
        mic=mics,
        nmi=nmis,
        leader=await looks.at("leader", _leader(api, mics), ""),
        denied=roles,
        identities=await looks.at("identities", _values(api, resources.IDENTITIES), ()),
        bindings=await looks.at("bindings", _values(api, resources.BINDINGS), ()),
        assigned=tuple(one for one, _ in assigned.values()),
        created_seconds={key: age for key, (_, age) in assigned.items()},
        unreadable=unreadable,
        unseen=tuple(looks.unseen),
        managed_mode=settings.managed_mode,
        assign_on_binding=settings.policy.assign_on_binding,
        startup_taint=taint,
        tainted=tainted,
    )


async def _tainted(api: Api, key: str) -> frozenset[str]:
    """Name the nodes that carry a taint of this key, whatever its value and effect."""
    listed = await api.list(resources.NODES.whole())
    return frozenset(
        name.name
        for name, stored in listed.items.items()
        if any(taint.get("key") == key for taint in (stored.value.get("spec") or {}).get("taints") or ())
    )


async def _denied(api: Api, daemon: Daemon, rights: tuple[Right, ...]) -> tuple[Right, ...] | None:
    return await denied(api, daemon, rights)


async def _values(api: Api, kind: Kind[T]) -> tuple[T, ...]:
    return (await api.list(kind)).values


async def _definitions(api: Api) -> dict[str, bool]:
    """Which of our definitions there are, and whether each has conditions."""
    found: dict[str, bool] = {}
    for plural in diagnosing.KINDS:
        try:
            one = await api.get(resources.CRDS.whole(), ObjectKey("", f"{plural}.{GROUP}"))
        except NotFoundError:
            continue
        found[plural] = any(map(_has_conditions, one["spec"].get("versions") or ()))
    return found


def _has_conditions(version: Mapping[str, Any]) -> bool:
    place: Any = version
    for name in ("schema", "openAPIV3Schema", "properties", "status", "properties"):
        place = (place or {}).get(name)
    return "conditions" in (place or {})


async def _assigned(api: Api) -> tuple[dict[ObjectKey, tuple[Any, float]], Mapping[ObjectKey, str]]:
    """All assigned identities, each with its age in seconds; and those that nobody can read, with the reason."""
    whole: Listed[dict[str, Any]] = await api.list(resources.ASSIGNED_IDENTITIES.whole())
    ages = {key: _age_seconds(one.value) for key, one in whole.items.items()}
    parsed = await api.list(resources.ASSIGNED_IDENTITIES)
    return {key: (one.value, ages.get(key, 0.0)) for key, one in parsed.items.items()}, parsed.odd


def _age_seconds(obj: Mapping[str, Any], clock: Callable[[], float] = time.time) -> float:
    try:
        return clock() - datetime.fromisoformat(obj["metadata"]["creationTimestamp"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


async def _leader(api: Api, mics: tuple[Daemon, ...]) -> str:
    """Who holds the lock, in the namespace that MIC was told, or else `default`."""
    namespace, name = "default", LOCK
    for word in mics[0].arguments if mics else ():
        flag, _, value = word.lstrip("-").partition("=")
        if value and flag == "leader-election-namespace":
            namespace = value
        if value and flag == "leader-election-name":
            name = value
    held = await EndpointsLock(api, ObjectKey(namespace, name)).read()
    return held.record.holder if held else ""
