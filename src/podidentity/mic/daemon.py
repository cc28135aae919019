"""Puts MIC together and runs it: the one place where its real parts are constructed."""

import asyncio
import gc
import logging
import os
import signal
import socket

import httpx2

from podidentity.azure.cloud_config import CloudConfig
from podidentity.azure.compute import Machines
from podidentity.azure.credentials import IMDS_HOST, ArmCredential
from podidentity.azure.management import Management
from podidentity.azure.reloading import ReloadedConfig
from podidentity.core.assigning import Policy
from podidentity.core.identities import ObjectKey
from podidentity.errors import ConfigurationError, ForbiddenError
from podidentity.kube.api import EVERYTHING, Api, Pace
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.election import Candidate, Election
from podidentity.kube.events import Recorder
from podidentity.kube.resources import NAMESPACES
from podidentity.mic import draining, upgrading
from podidentity.mic.book import Book
from podidentity.mic.changes import Changes
from podidentity.mic.cluster import WatchedCluster
from podidentity.mic.fencing import AZURE_WRITES, KUBERNETES_WRITES, fence
from podidentity.mic.following import IdentityChanges
from podidentity.mic.measuring import ArmMetrics, FailingIdentities, Measured
from podidentity.mic.objects import AssignedObjects
from podidentity.mic.observe import Counted, Metrics
from podidentity.mic.records import ConfigMapRecords
from podidentity.mic.settings import Settings
from podidentity.mic.statuses import Statuses
from podidentity.mic.stories import BindingEvents
from podidentity.mic.sync import Pacing, Surroundings, Sync, first_record
from podidentity.mic.targets import Tools, Workers
from podidentity.serving import memory, metrics, probes

_AZURE_TIMEOUT_SECONDS = 60.0
_log = logging.getLogger(__name__)


async def run(settings: Settings) -> None:
    """Run MIC until SIGTERM or SIGINT. Raises PodIdentityError when it cannot start."""
    config = ReloadedConfig(settings.cloud_config, os.environ)
    where = find_cluster(settings.kubeconfig)
    this = asyncio.current_task()
    assert this is not None  # noqa: S101  # a coroutine runs in a task
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, this.cancel)
    try:
        # The lock has a client of its own: its renewal must never wait behind a busy sync.
        async with (
            open_client(where, settings.user_agent) as http,
            open_client(where, settings.user_agent) as lock_http,
            httpx2.AsyncClient(
                timeout=_AZURE_TIMEOUT_SECONDS,
                headers={"User-Agent": settings.user_agent},
                mounts={f"all://{IMDS_HOST}": None},  # no proxy of the environment's may see the way to IMDS
            ) as azure,
        ):
            mic = Mic(settings, config, Api(http, pace=Pace(settings.requests_per_second)), Api(lock_http))
            unsent = settings.leader_seconds / 3  # the next one begins half a lease after the last moment of this one
            http.event_hooks["request"].append(fence(lambda: mic.leading, KUBERNETES_WRITES, unsent))
            azure.event_hooks["request"].append(fence(lambda: mic.leading, AZURE_WRITES, unsent))
            await mic.run(azure)
    except asyncio.CancelledError:
        _log.info("MIC was told to stop")


async def uninstall(settings: Settings) -> int:
    """Remove all assigned identities; how many. Raises PodIdentityError."""
    async with open_client(find_cluster(settings.kubeconfig), settings.user_agent) as http:
        return await draining.drain(Api(http), ObjectKey(settings.leader_namespace, settings.leader_name))


class Mic:
    """One MIC."""

    def __init__(self, settings: Settings, config: ReloadedConfig, api: Api, lock_api: Api) -> None:
        self._settings = settings
        self._config = config
        self._policy_changed = asyncio.Event()
        self._workers: Workers | None = None
        self._api = api
        self._cluster = WatchedCluster(api, allow_list=settings.allow_list)
        self._recorder = Recorder(api)
        instance = settings.leader_instance or socket.gethostname()
        candidate = Candidate(instance, settings.leader_name, settings.leader_namespace, settings.leader_seconds)
        self._election = Election(lock_api, candidate)
        self._changes = Changes()
        self._registry = metrics.make_registry()
        self._metrics = Metrics(self._registry)
        self._arm_metrics = ArmMetrics(self._registry)
        self._registry.register(FailingIdentities(lambda: self._workers.failing if self._workers else ()))
        self._cluster.tell(self._changes)

    @property
    def leading(self) -> bool:
        """Whether this MIC may change anything now."""
        return self._election.leading

    async def run(self, azure: httpx2.AsyncClient) -> None:
        """Serve the probes, follow the cluster, and lead when elected."""
        if self._settings.allow_list:
            await require_namespaces(self._api)
        pages = {"/healthz": self._health, "/readyz": self._ready}
        registry_pages = {"/metrics": lambda: probes.Page(200, metrics.render(self._registry), probes.METRICS_TYPE)}
        async with (
            probes.serve_pages(self._settings.probe_port, pages),
            probes.serve_pages(self._settings.prometheus_port, registry_pages),
            asyncio.TaskGroup() as group,
        ):
            for reflector in self._cluster.reflectors:
                group.create_task(reflector.run())
            group.create_task(self._recorder.run())
            group.create_task(memory.keep_giving_back())
            await self._cluster.wait_until_synced()
            gc.freeze()  # what was listed stays: the collector need not look at it again and again
            _log.info("MIC follows the cluster: %d pods with the label", len(self._cluster.pods))
            credential = ArmCredential(self._config.current, azure)
            _warn_in_the_clear(self._config.current)
            group.create_task(self._config.run(lambda fresh: self._reload(fresh, credential)))
            group.create_task(self._election.run(lambda: self._lead(credential, azure)))

    def _reload(self, fresh: CloudConfig, credential: ArmCredential) -> None:
        """azure.json says something else: sign in anew; what decisions depend on starts the term's work anew."""
        _log.info("azure.json changed and is used")
        _warn_in_the_clear(fresh)
        credential.use(fresh)
        self._policy_changed.set()

    async def _lead(self, credential: ArmCredential, azure: httpx2.AsyncClient) -> None:
        """Be the leader, until cancelled."""
        self._metrics.elections.inc()
        while True:
            config = self._config.current
            self._policy_changed.clear()
            async with asyncio.TaskGroup() as group:
                machines = Machines(Management(config.cloud.arm, credential, azure))
                work = group.create_task(self._work(policy_of(self._settings, config), machines))
                while _same_place(config, self._config.current):
                    await self._policy_changed.wait()
                    self._policy_changed.clear()
                work.cancel()

    async def _work(self, policy: Policy, machines: Machines) -> None:
        """Plan, write and assign, until cancelled."""
        settings = self._settings
        key = ObjectKey(settings.namespace, settings.config_map)
        if settings.type_upgrade_key:
            await upgrading.try_upgrade(self._api, key, settings.type_upgrade_key)
        records = ConfigMapRecords(self._api, key, policy)
        put = await first_record(records, self._cluster, policy)
        story = BindingEvents(self._recorder, self._cluster)
        measured = Measured(machines, self._arm_metrics)
        tools = Tools(measured, Book(records, put), story, policy, self._changes.target, settings.reconcile_seconds)
        objects = Counted(AssignedObjects(self._api, self._cluster), self._metrics)
        board = Statuses(self._api, self._cluster)
        around = Surroundings(self._cluster, objects, story, board, self._changes, self._metrics.cycle)
        pacing = Pacing(settings.sync_seconds, settings.batch, settings.unassign_delay_seconds)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(board.run())
                self._workers = Workers(tools, group)
                with IdentityChanges(self._cluster.identities, self._workers):
                    await Sync(around, policy, pacing).run(self._workers)
        finally:
            self._workers = None

    def _health(self) -> probes.Page:
        """Answer 200 always; only the leader says Active, as upstream does."""
        return probes.Page(200, b"Active" if self._election.leading else b"Not Active")

    def _ready(self) -> probes.Page:
        waiting = [str(one.kind) for one in self._cluster.reflectors if not one.store.synced]
        if waiting:
            return probes.Page(503, f"not yet listed: {', '.join(waiting)}\n".encode())
        return probes.Page(200, b"ok\n")


def policy_of(settings: Settings, config: CloudConfig) -> Policy:
    """Make the policy that decisions depend on."""
    return Policy(
        force_namespaced=settings.force_namespaced,
        immutable_client_ids=frozenset(one.lower() for one in settings.immutable_client_ids),
        cluster_client_id=config.user_assigned_identity,
        subscription=config.subscription_id,
        group=config.resource_group,
        allow_list=settings.allow_list,
        assign_on_binding=settings.assign_on_binding,
    )


def _same_place(one: CloudConfig, other: CloudConfig) -> bool:
    """Whether what decisions depend on is the same; credentials do not count."""
    places = ((it.cloud, it.subscription_id, it.resource_group, it.user_assigned_identity) for it in (one, other))
    return next(places) == next(places)


def _warn_in_the_clear(config: CloudConfig) -> None:
    for address in config.cloud.in_the_clear:
        _log.warning("MIC's credentials go to %s without TLS; give that endpoint a certificate", address)


async def require_namespaces(api: Api) -> None:
    """Make sure that namespaces can be followed: an allow-list that cannot be read would allow nothing, or stay old.

    Raises ConfigurationError when the role lacks the right. Used by both daemons' allow-lists.
    """
    try:
        listed = await api.list(NAMESPACES)
        async with api.watch(NAMESPACES, EVERYTHING, listed.version, silence_seconds=5.0, duration_seconds=1):
            pass
    except ForbiddenError as error:
        raise ConfigurationError(
            f"--namespace-allow-list needs the right to list and watch namespaces ({error}); "
            "add it to the ClusterRole, or leave the flag out"
        ) from error
