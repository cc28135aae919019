"""Runs MIC: starts the watches and pages, stands for election, begins and ends terms, and stops at a signal."""

import asyncio
import gc
import logging
import os
import signal

import httpx2

from podidentity.azure.cloud_config import CloudConfig
from podidentity.azure.credentials import ArmCredential
from podidentity.azure.reloading import ReloadedConfig
from podidentity.core.model.identities import ObjectKey
from podidentity.mic.adapters.azure import is_same_cloud, machines_of, policy_of, warn_of_plain_http
from podidentity.mic.adapters.cluster import require_namespaces
from podidentity.mic.commands import type_upgrade
from podidentity.mic.settings import Settings
from podidentity.mic.wiring import Mic, open_mic
from podidentity.serving import memory, metrics, probes

_ANY_NAMESPACE = (
    "namespaces are not kept apart: whoever may create pods in any namespace may give them any bound identity; "
    "start MIC and NMI with --forceNamespaced unless bindings for pods of other namespaces are needed"
)
_log = logging.getLogger(__name__)


async def run(settings: Settings) -> None:
    """Run MIC until SIGTERM or SIGINT. Raises PodIdentityError when it cannot start."""
    config = ReloadedConfig(settings.cloud_config, os.environ)
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine runs in a task
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        async with open_mic(settings) as (mic, azure):
            await Lifecycle(mic, config, azure).run()
    except asyncio.CancelledError:
        _log.info("MIC stops: it received a signal")


async def follow_cluster(mic: Mic) -> None:
    """Keep the watches running and send events, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for reflector in mic.cluster.reflectors:
            group.create_task(reflector.run())
        group.create_task(mic.recorder.run())


class Lifecycle:
    """One MIC from its start to its end."""

    def __init__(self, mic: Mic, config: ReloadedConfig, azure: httpx2.AsyncClient) -> None:
        self._mic = mic
        self._config = config
        self._azure = azure
        self._config_changed = asyncio.Event()
        self._credential = ArmCredential(config.current, azure)

    async def run(self) -> None:
        """Serve the pages, follow the cluster, and lead when elected, until cancelled."""
        mic, settings = self._mic, self._mic.settings
        if settings.allow_list:
            await require_namespaces(mic.api)
        probe_pages = {"/healthz": self._health, "/readyz": self._readiness}
        metrics_pages = {"/metrics": lambda: probes.Page(200, metrics.render(mic.registry), probes.METRICS_TYPE)}
        async with (
            probes.serve_pages(settings.probe_port, probe_pages),
            probes.serve_pages(settings.prometheus_port, metrics_pages),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(follow_cluster(mic))
            group.create_task(memory.keep_giving_back())
            group.create_task(memory.keep_collecting())
            await mic.cluster.wait_until_synced()
            gc.freeze()  # the first lists stay in memory: the collector need not look at them again and again
            _log.info("MIC follows the cluster: %d pods with the label", len(mic.cluster.pods))
            if not settings.force_namespaced:
                _log.warning(_ANY_NAMESPACE)
            warn_of_plain_http(self._config.current)
            group.create_task(self._config.run(self._use))
            group.create_task(mic.election.run(self._lead))

    def _use(self, config: CloudConfig) -> None:
        """Use a changed azure.json: its credentials at once, the rest in a new term."""
        _log.info("azure.json changed and is used")
        warn_of_plain_http(config)
        self._credential.use(config)
        self._config_changed.set()

    async def _lead(self) -> None:
        """Be the leader until cancelled; begin a new term whenever azure.json changes what decisions depend on."""
        self._mic.metrics.elections.inc()
        while True:
            config = self._config.current
            self._config_changed.clear()
            async with asyncio.TaskGroup() as group:
                term = group.create_task(self._run_term(config))
                while is_same_cloud(config, self._config.current):
                    await self._config_changed.wait()
                    self._config_changed.clear()
                term.cancel()

    async def _run_term(self, config: CloudConfig) -> None:
        mic, settings = self._mic, self._mic.settings
        if settings.type_upgrade_key:
            config_map = ObjectKey(settings.namespace, settings.config_map)
            await type_upgrade.try_upgrade(mic.api, config_map, settings.type_upgrade_key)
        machines = machines_of(config, self._credential, self._azure)
        await mic.new_term(policy_of(settings, config), machines).run()

    def _health(self) -> probes.Page:
        """Return status 200 always; as in upstream, only the leader's page says Active."""
        return probes.Page(200, b"Active" if self._mic.election.leading else b"Not Active")

    def _readiness(self) -> probes.Page:
        waiting = [str(reflector.kind) for reflector in self._mic.cluster.reflectors if not reflector.store.synced]
        if waiting:
            return probes.Page(503, f"not yet listed: {', '.join(waiting)}\n".encode())
        if self._mic.election.refusal:
            return probes.Page(503, f"cannot stand for election: {self._mic.election.refusal}\n".encode())
        return probes.Page(200, b"ok\n")
