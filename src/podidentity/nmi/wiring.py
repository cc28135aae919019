"""Builds the parts of NMI and connects them: everything or nothing, before any of them runs."""

import asyncio
import functools
import gc
import logging
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import httpx2

from podidentity.azure.entra import Entra
from podidentity.core.tokens.imds import Rules
from podidentity.issuance.cache import Cache, NoCache, TokenCache
from podidentity.issuance.limits import LimitedTokens, RetryingTokens
from podidentity.issuance.measured import MeasuredTokens
from podidentity.issuance.ports import Tokens
from podidentity.kube.api import Api
from podidentity.kube.events import Recorder
from podidentity.linux import routing
from podidentity.linux.link import record_links
from podidentity.linux.reuseport import listen_by_client
from podidentity.nmi.access import Access
from podidentity.nmi.adapters import peers
from podidentity.nmi.adapters.anti_spoof import AntiSpoof, AntiSpoofSettings
from podidentity.nmi.adapters.broker import Broker, BrokerAddress
from podidentity.nmi.adapters.cluster import Cluster
from podidentity.nmi.adapters.events import record_first_token
from podidentity.nmi.adapters.imds import Imds
from podidentity.nmi.adapters.principals import Principals, TokensByKind
from podidentity.nmi.adapters.redirect import Redirect, RedirectSettings
from podidentity.nmi.app import App
from podidentity.nmi.changes import ClusterChanges, HostChanges
from podidentity.nmi.credentials import Credentials
from podidentity.nmi.doors import QUEUES
from podidentity.nmi.heads import TOKEN_FILE, Heads
from podidentity.nmi.health import Health
from podidentity.nmi.host_token import HostTokens, PodsByName
from podidentity.nmi.listener import Admit, Listener, Site
from podidentity.nmi.metrics import Metrics, Observer
from podidentity.nmi.places import Limits
from podidentity.nmi.pod_lookup import PodLookup
from podidentity.nmi.ports import Grants, Pods, Secrets
from podidentity.nmi.proxy import Proxy
from podidentity.nmi.settings import Settings
from podidentity.nmi.token import TokenFlow
from podidentity.nmi.token_file import TokenFileDoor
from podidentity.nmi.waiting import Waiting
from podidentity.nmi.warming import Warming
from podidentity.serving.logs import Lines
from podidentity.timing import SYSTEM_CLOCK, Clock

_log = logging.getLogger(__name__)

IMDS_PER_SECOND = 15.0  # of 20 that IMDS answers for a machine: a quarter is for the node's own programs
IMDS_AT_ONCE = 4  # of 5, likewise
ENTRA_PER_SECOND = 20.0
ENTRA_AT_ONCE = 8  # each holds a thread
BROKER_PER_SECOND = 100.0
BROKER_AT_ONCE = 32
BROKER_PER_NAMESPACE = 8
TOKEN_FILE_LIMITS = Limits(per_address=256, in_all=2048)
ENTRA_PER_NAMESPACE = 2  # at once: opening a tenant's archives may take seconds


class View(Pods, Grants, PodsByName, Secrets, Protocol):
    """All that the token path asks of Kubernetes."""


class TokenPath(NamedTuple):
    """What answers pods: connections, the pods behind them, and what the cluster's changes mean for both."""

    listener: Listener
    cluster_changes: ClusterChanges
    pod_lookup: PodLookup


class TokenServers(NamedTuple):
    """What tokens come from: an HTTP client for IMDS, and the broker."""

    imds: httpx2.AsyncClient
    broker: Broker


class Clients(NamedTuple):
    """Open connections to the API server, and to where tokens come from."""

    api: Api
    servers: TokenServers


class Parts(NamedTuple):
    """Everything that NMI consists of. `redirect` and `anti_spoof` are None when something else intercepts."""

    settings: Settings
    interception: RedirectSettings
    metrics: Metrics
    api: Api
    recorder: Recorder
    cluster: Cluster
    listener: Listener
    pod_site: Site
    redirect: Redirect | None
    anti_spoof: AntiSpoof | None
    health: Health


def redirect_settings(settings: Settings) -> RedirectSettings:
    """Return what is intercepted on this host. Raises `HostError` when the node's address cannot be found."""
    return RedirectSettings(
        settings.metadata_address,
        settings.metadata_port,
        settings.listen_address or routing.node_address(settings.metadata_address),
        settings.port,
        settings.redirect_check_seconds,
        settings.anti_spoof,
        settings.accept_ebpf,
        settings.accept_cards,
        settings.block_wireserver,
    )


def broker_address(settings: Settings) -> BrokerAddress:
    """Return where the broker is, and what is needed to ask it."""
    return BrokerAddress(settings.broker, settings.broker_ca, settings.broker_token)


def build_redirect(interception: RedirectSettings, metrics: Metrics) -> Redirect:
    """Return the interception alone: its guard must stand before anything else is built, which may fail."""

    def note_repair(differences: tuple[str, ...]) -> None:
        metrics.repairs.inc()
        for difference in differences:
            _log.warning("the redirect was changed by somebody and has been put right: %s", difference)

    return Redirect(interception, note_repair)


def assemble(
    settings: Settings,
    interception: RedirectSettings,
    redirect: Redirect | None,
    metrics: Metrics,
    clients: Clients,
    tasks: asyncio.TaskGroup,
) -> Parts:
    """Build and connect everything; nothing runs yet. `redirect` is the one whose guard stands already."""
    api = clients.api
    cluster = Cluster(api, settings, gc.freeze, metrics.api_failed)
    recorder = Recorder(api, settings.node)
    observer = Observer(metrics, Lines(settings.log_format, "audit"), functools.partial(record_first_token, recorder))
    listener, changes, pod_lookup = assemble_token_path(
        settings, cluster, clients.servers, SYSTEM_CLOCK, observer, tasks
    )
    cluster.subscribe(changes)
    admit: Admit = peers.admit_pod
    anti_spoof: AntiSpoof | None = None
    if redirect is not None:
        metadata_service = (interception.metadata_address, interception.metadata_port)
        admit = functools.partial(peers.admit_redirected_pod, metadata_service, metrics.direct.inc)
        anti_spoof = _anti_spoof(settings, cluster, HostChanges(pod_lookup, listener))
        metrics.proven_pods.set_function(lambda: anti_spoof.proven_pods)
        metrics.unproven_pods.set_function(lambda: anti_spoof.unproven_pods)
    health = Health(cluster, listener, redirect, anti_spoof)
    metrics.is_intercepting.set_function(health.is_intercepting)
    site = Site(listener.app.answer, admit, prepare=record_links, queues=QUEUES)
    return Parts(settings, interception, metrics, api, recorder, cluster, listener, site, redirect, anti_spoof, health)


def assemble_token_path(
    settings: Settings,
    cluster: View,
    servers: TokenServers,
    clock: Clock,
    observer: Observer,
    tasks: asyncio.TaskGroup,
) -> TokenPath:
    """Build and connect what stands between a pod's connection and its token."""
    base = f"http://{settings.metadata_address}:{settings.metadata_port}"
    metrics = observer.metrics
    credentials = Credentials(cluster, clock)
    tokens = _sources(Imds(servers.imds, base, clock), servers.broker, credentials, clock, metrics)
    cache = _cache(settings, tokens, credentials, clock, tasks)
    credentials.subscribe(cache.forget_secret)
    access = Access(cluster, settings)
    pod_lookup, waiting = PodLookup(cluster, clock), Waiting()
    enabled = settings.token_cache and bool(settings.broker)
    warming = Warming(cluster, access, cache, clock, tasks.create_task, enabled=enabled)
    flow = TokenFlow(pod_lookup, access, waiting, cache, clock, settings, note_fetched=warming.note_fetched)
    owner_of = functools.partial(peers.owner_of, settings.port)
    host_tokens = HostTokens(
        flow, cluster, owner_of, clock, enabled=settings.host_token, loopback=settings.host_token_loopback
    )
    by_proof = RetryingTokens(_limited_broker(servers.broker, clock, metrics), clock)
    wait_seconds = settings.wait_known_seconds
    token_file = TokenFileDoor(cluster, by_proof, waiting, routing.is_own_address, clock, wait_seconds)
    app = App(flow, host_tokens, token_file, Proxy(servers.imds, base, clock), observer)
    heads = Heads(Rules(settings.metadata_header_required, settings.block_instance_metadata))
    listener = Listener(app, heads, functools.partial(_create_task, tasks), listen_by_client)
    metrics.connections.set_function(lambda: len(listener.connections))
    metrics.waiting.set_function(lambda: len(waiting))
    changes = ClusterChanges(waiting, pod_lookup, access, cache, warming, listener)
    return TokenPath(listener, changes, pod_lookup)


def _sources(imds: Tokens, broker: Tokens, credentials: Credentials, clock: Clock, metrics: Metrics) -> Tokens:
    """Return where tokens come from, each source behind its own limits and retries."""
    entra = Principals(credentials, Entra(ThreadPoolExecutor(ENTRA_AT_ONCE, "entra")), clock)
    imds = MeasuredTokens(imds, metrics.note_call)
    imds = LimitedTokens(imds, clock, per_second=IMDS_PER_SECOND, at_once=IMDS_AT_ONCE)
    principals = LimitedTokens(
        MeasuredTokens(entra, metrics.note_call),
        clock,
        per_second=ENTRA_PER_SECOND,
        at_once=ENTRA_AT_ONCE,
        per_asker=ENTRA_PER_NAMESPACE,
    )
    broker = _limited_broker(broker, clock, metrics)
    return TokensByKind(RetryingTokens(imds, clock), RetryingTokens(principals, clock), RetryingTokens(broker, clock))


def _limited_broker(broker: Tokens, clock: Clock, metrics: Metrics) -> LimitedTokens:
    """Return the broker within limits of their own for each way that leads to it."""
    return LimitedTokens(
        MeasuredTokens(broker, metrics.note_call),
        clock,
        per_second=BROKER_PER_SECOND,
        at_once=BROKER_AT_ONCE,
        per_asker=BROKER_PER_NAMESPACE,
        shared_pause=False,
    )


def token_file_site(app: App) -> Site:
    """Return what is served at the token-file door: pods, with places of their own."""
    return Site(
        app.answer_by_proof,
        peers.admit_pod,
        prepare=record_links,
        queues=QUEUES,
        limits=TOKEN_FILE_LIMITS,
        heads=Heads(Rules(), TOKEN_FILE),
        client_of=app.client_by_proof,
    )


def _cache(
    settings: Settings, tokens: Tokens, credentials: Credentials, clock: Clock, tasks: asyncio.TaskGroup
) -> Cache:
    if not settings.token_cache:
        return NoCache(tokens, clock)
    return TokenCache(tokens, clock, tasks.create_task, secret_check=credentials)


def _anti_spoof(settings: Settings, cluster: Cluster, changes: HostChanges) -> AntiSpoof:
    spoofing = AntiSpoofSettings(settings.metadata_address, settings.anti_spoof, settings.redirect_check_seconds)
    return AntiSpoof(spoofing, cluster.with_addresses, cluster.look_at_all, changes, SYSTEM_CLOCK)


def _create_task(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    return tasks.create_task(work)
