"""NMI put together and run: the only place that constructs what the others use. Called by `cli.nmi`.

Order at the start: guard, ip rules, listen, nat, conntrack; pods come in once it is known who they are. At the end
(SIGTERM): new connections are held back, what is in flight is finished; everything else stays as it is, closed to pods
until the next NMI listens.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import time
from collections.abc import Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, Protocol

from podidentity.azure.entra import Entra
from podidentity.core.cluster import Pod
from podidentity.core.identities import ObjectKey, SecretReference
from podidentity.core.imds import Rules
from podidentity.core.sources import Source
from podidentity.errors import HostError
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.events import Recorder
from podidentity.linux import routing
from podidentity.linux.link import link_of
from podidentity.linux.listening import is_listening
from podidentity.linux.original_destination import original_destination
from podidentity.linux.peer_owner import owner_uid
from podidentity.nmi.access import Access
from podidentity.nmi.anti_spoof import AntiSpoof, AntiSpoofSettings
from podidentity.nmi.app import App
from podidentity.nmi.cache import Cached
from podidentity.nmi.cluster import Cluster, Follower
from podidentity.nmi.credentials import Credentials
from podidentity.nmi.events import tell_first_token
from podidentity.nmi.finding import Finding
from podidentity.nmi.heads import Heads
from podidentity.nmi.host_token import HostTokens, PodsByName
from podidentity.nmi.http import Listener, Site
from podidentity.nmi.observe import Metrics, Observer
from podidentity.nmi.ports import Clock, Grants, Peer, Pods, Secrets, Tokens
from podidentity.nmi.principals import ByKind, Principals
from podidentity.nmi.proxy import Proxy
from podidentity.nmi.redirect import Redirect, RedirectSettings
from podidentity.nmi.settings import Settings
from podidentity.nmi.sources import Imds, Limited, Measured, Retrying, open_imds_client
from podidentity.nmi.startup_taint import remove_startup_taint
from podidentity.nmi.token import TokenFlow
from podidentity.nmi.waiting import Waiting
from podidentity.serving import memory
from podidentity.serving.logs import Lines
from podidentity.serving.metrics import make_registry, render
from podidentity.serving.probes import METRICS_TYPE, Page, Pages, serve_pages

_LEAVING_SECONDS = 20.0  # an NMI that was told to stop finishes what is in flight within 10
_LOOK_AGAIN_SECONDS = 0.5
_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
DRAIN_SECONDS = 10.0
SYNC_SECONDS = 10.0
"""How long new connections are held back for the first lists; after that they are told that nothing is known yet."""
IMDS_PER_SECOND = 20.0
IMDS_AT_ONCE = 5
ENTRA_PER_SECOND = 20.0
ENTRA_AT_ONCE = 8  # each holds a thread; Entra ID has no limit of its own that would be reached


class SystemClock:
    """The machine's clocks. Boot time, as `kube` uses: it goes on while the machine is suspended."""

    wall = staticmethod(time.time)
    """Seconds since 1970."""

    steady = staticmethod(functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME))
    """Seconds since boot. Without a function of ours around it: several are read with every request."""

    @staticmethod
    async def sleep(seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)


def redirect_settings(settings: Settings) -> RedirectSettings:
    """Say what is intercepted on this host. Raises `HostError` when the node's address cannot be found."""
    return RedirectSettings(
        settings.metadata_address,
        settings.metadata_port,
        settings.listen_address or routing.node_address(settings.metadata_address),
        settings.port,
        settings.redirect_check_seconds,
        settings.anti_spoof,
        settings.accept_ebpf,
    )


async def uninstall(settings: Settings) -> None:
    """Take the interception away once no NMI runs: it would put it up again. Raises `HostError`."""
    await _wait_until_alone(settings.port)
    where = RedirectSettings(settings.metadata_address, settings.metadata_port, "", settings.port)
    await Redirect(where, lambda _: None).uninstall()


async def _wait_until_alone(port: int) -> None:
    """Every NMI listens on loopback; one that was deleted a moment ago may still be ending."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + _LEAVING_SECONDS
    while is_listening("127.0.0.1", port):
        if loop.time() > ends:
            raise HostError(
                f"An NMI still listens at 127.0.0.1:{port} and would put the interception up again. "
                "Delete the DaemonSet nmi first, with --cascade=foreground."
            )
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises `PodIdentityError` when it cannot start or go on."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    daemon = Daemon(settings)
    await daemon.close_off()
    async with contextlib.AsyncExitStack() as opened:
        try:
            async with asyncio.TaskGroup() as tasks:
                await _serve_until(stop, daemon, opened, tasks)
        except* _Stopped:
            pass


async def _serve_until(
    stop: asyncio.Event, daemon: "Daemon", opened: contextlib.AsyncExitStack, tasks: asyncio.TaskGroup
) -> NoReturn:
    await daemon.serve(opened, tasks)
    await stop.wait()
    _log.info("stopping: new connections are held back until the next NMI listens")
    await daemon.stop()
    raise _Stopped  # which ends every task of the group


class _Stopped(Exception):  # noqa: N818  # no error: the way out of a task group
    """The daemon was asked to stop and has."""


class View(Pods, Grants, PodsByName, Secrets, Protocol):
    """All that NMI asks of Kubernetes."""


class Parts(NamedTuple):
    """What `assemble` made: for connections, for changes in the cluster, for changes on this host."""

    listener: Listener
    follower: Follower
    finding: Finding


def assemble(
    settings: Settings, cluster: View, http: Any, clock: Clock, observer: Observer, tasks: asyncio.TaskGroup
) -> Parts:
    """Connect the parts of a token's way. `http` is the client for IMDS."""
    base = f"http://{settings.metadata_address}:{settings.metadata_port}"
    metrics = observer.metrics
    tokens = _tokens(settings, cluster, Imds(http, base, clock), clock, metrics, tasks)
    access = Access(cluster, settings)
    finding, waiting = Finding(cluster, clock), Waiting()
    flow = TokenFlow(finding, access, waiting, tokens, clock, settings)
    owner_of = functools.partial(_owner_of, settings.port)
    host_tokens = HostTokens(flow, cluster, owner_of, clock, enabled=settings.host_token)
    app = App(flow, host_tokens, Proxy(http, base, clock), observer)
    heads = Heads(Rules(settings.metadata_header_required, settings.block_instance_metadata))
    listener = Listener(app, heads, functools.partial(_create_task, tasks))
    metrics.connections.set_function(lambda: len(listener.connections))
    metrics.waiting.set_function(lambda: len(waiting))
    return Parts(listener, _Follower(waiting, finding, access, tokens, listener), finding)


def _tokens(
    settings: Settings, secrets: Secrets, imds: Tokens, clock: Clock, metrics: Metrics, tasks: asyncio.TaskGroup
) -> Tokens:
    """Stack the sources of tokens: limits and retries of each, and the cache in front of both."""
    cache: Cached | None = None

    def changed(secret: SecretReference) -> None:
        if cache is not None:
            cache.forget_secret(secret)

    credentials = Credentials(secrets, clock, changed)
    principals = Principals(credentials, Entra(ThreadPoolExecutor(ENTRA_AT_ONCE, "entra")), clock)
    sources = ByKind(
        Retrying(Limited(Measured(imds, metrics), clock, per_second=IMDS_PER_SECOND, at_once=IMDS_AT_ONCE), clock),
        Retrying(
            Limited(Measured(principals, metrics), clock, per_second=ENTRA_PER_SECOND, at_once=ENTRA_AT_ONCE), clock
        ),
    )
    if not settings.token_cache:
        return sources
    cache = Cached(sources, clock, tasks.create_task)
    cache.standing = credentials
    return cache


class Daemon:
    """The parts, from the outside in."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._registry = make_registry()
        self._metrics = Metrics(self._registry)
        self._where = redirect_settings(settings)
        self._redirect = Redirect(self._where, self._repaired) if settings.redirect else None
        spoofing = AntiSpoofSettings(self._where.metadata_address, settings.anti_spoof, settings.redirect_check_seconds)
        self._anti_spoof = (
            AntiSpoof(spoofing, self._pods_now, self._look, self, self._clock) if settings.redirect else None
        )
        self._cluster: Cluster | None = None
        self._listener: Listener | None = None
        self._finding: Finding | None = None
        self._metrics.stands.set_function(self._intercepting)
        self._metrics.proven.set_function(lambda: self._anti_spoof.proven if self._anti_spoof else 0)
        self._metrics.unproven.set_function(lambda: self._anti_spoof.unproven if self._anti_spoof else 0)

    async def close_off(self) -> None:
        """Cut pods off from the real IMDS: first of all, before anything can fail."""
        if self._redirect is not None:
            await self._redirect.put_up_guard()

    async def serve(self, opened: contextlib.AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        """Start everything; returns when pods are being answered."""
        settings, where = self._settings, self._where
        await self._open_pages(opened)
        found = find_cluster(settings.kubeconfig)
        api = Api(await opened.enter_async_context(open_client(found, settings.user_agent)))
        cluster = Cluster(api, settings, gc.freeze, self._metrics.api_failed)
        http = await opened.enter_async_context(open_imds_client(settings.user_agent))
        recorder = Recorder(api, settings.node)
        tasks.create_task(recorder.run())
        tasks.create_task(memory.keep_giving_back())
        lines = Lines(settings.log_format, "audit")
        observer = Observer(self._metrics, lines, functools.partial(tell_first_token, recorder))
        listener, follower, self._finding = assemble(settings, cluster, http, self._clock, observer, tasks)
        cluster.tell(follower)
        if self._anti_spoof is not None:
            self._finding.held = self._anti_spoof.holds
        await listener.listen(where.listen_address, where.listen_port, Site(listener.app.answer, self._admit))
        if where.listen_address != LOOPBACK:
            node_site = Site(listener.app.answer_node, lambda _, client: Peer(client[0], port=client[1]))
            await listener.listen(LOOPBACK, where.listen_port, node_site)
        self._cluster, self._listener = cluster, listener
        tasks.create_task(cluster.run())
        tasks.create_task(listener.run())
        await self._let_in(cluster, tasks)
        if settings.startup_taint:
            work = remove_startup_taint(api, settings.node, settings.startup_taint, self._is_ready, self._clock)
            tasks.create_task(work)
        _log.info("answering the pods of node %s on %s:%d", settings.node, where.listen_address, where.listen_port)

    async def _let_in(self, cluster: Cluster, tasks: asyncio.TaskGroup) -> None:
        """Redirect pods, and answer them as soon as it is known who they are."""
        if self._redirect is None or self._anti_spoof is None:
            return
        await self._redirect.send_pods_here()
        tasks.create_task(self._redirect.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SYNC_SECONDS):
                await cluster.wait_until_synced()
        cluster.on_pods(self._anti_spoof.look_again)
        await self._anti_spoof.keep()
        tasks.create_task(self._anti_spoof.run())
        await self._redirect.let_in()

    async def stop(self) -> None:
        """Finish what is in flight and leave the interception standing."""
        if self._redirect is not None:
            try:
                await self._redirect.hold_new_connections()
            except HostError as error:
                _log.warning("new connections will be refused until the next NMI listens: %s", error)
        if self._listener is not None:
            await self._listener.drain(DRAIN_SECONDS)

    async def _open_pages(self, opened: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        pages: Pages = {"/healthz": self._health, "/readyz": self._readiness}
        metrics: Pages = {"/metrics": lambda: Page(200, render(self._registry), METRICS_TYPE)}
        if settings.probe_port == settings.prometheus_port:
            await opened.enter_async_context(serve_pages(settings.probe_port, {**pages, **metrics}))
            return
        await opened.enter_async_context(serve_pages(settings.probe_port, pages))
        await opened.enter_async_context(serve_pages(settings.prometheus_port, metrics))

    def expect(self, uid: str, interface: int) -> None:
        """Pass on by which interface a pod's packets come in."""
        if self._finding is not None:
            self._finding.expect(uid, interface)

    def interface_gone(self, interface: int) -> None:
        """Reset the connections of a pod whose interface is gone."""
        if self._listener is not None:
            self._listener.reset_link(interface)

    def unplugged(self, uid: str) -> None:
        """Reset the connections of a pod that hangs on its bridge no more."""
        if self._listener is not None:
            self._listener.reset_pod(uid)

    def replugged(self, uid: str) -> None:
        """Learn anew where a pod's packets come in."""
        if self._finding is not None:
            self._finding.release(uid)

    def _health(self) -> Page:
        """Upstream's probe: always 200, the body says whether pods are intercepted."""
        return Page(200, b"Active" if self._intercepting() else b"Not Active")

    def _readiness(self) -> Page:
        missing = self._missing()
        if missing:
            return Page(503, "\n".join((*missing, "")).encode())
        warnings = self._anti_spoof.warnings() if self._anti_spoof else ()
        return Page(200, "\n".join(("ok", *(f"warning: {told}" for told in warnings), "")).encode())

    def _is_ready(self) -> bool:
        return not self._missing()

    def _missing(self) -> tuple[str, ...]:
        """Say what stands between this node's pods and their tokens, one sentence each."""
        behind = self._cluster.behind() if self._cluster else ("not connected to the cluster yet",)
        return behind if self._redirect is None else (*self._redirect.troubles(), *behind)

    def _intercepting(self) -> bool:
        return self._listener is not None and (self._redirect is None or self._redirect.stands)

    def _admit(self, connection: socket.socket, client: tuple[str, int]) -> Peer | None:
        """Only a connection that the redirect brought here speaks for a pod."""
        wanted = (self._where.metadata_address, self._where.metadata_port)
        if self._redirect is not None and original_destination(connection) != wanted:
            self._metrics.direct.inc()
            return None
        return Peer(client[0], link_of(connection), port=client[1])

    def _pods_now(self) -> Collection[Pod] | None:
        return self._cluster.with_addresses() if self._cluster else None

    async def _look(self) -> Collection[Pod]:
        return await self._cluster.look_at_all() if self._cluster else ()

    def _repaired(self, wrong: tuple[str, ...]) -> None:
        self._metrics.repairs.inc()
        for sentence in wrong:
            _log.warning("the redirect was changed by somebody and has been put right: %s", sentence)


class _Follower:
    """What each change in the cluster means for the parts."""

    def __init__(self, waiting: Waiting, finding: Finding, access: Access, tokens: Tokens, listener: Listener) -> None:
        self._waiting = waiting
        self._finding = finding
        self._access = access
        self._tokens = tokens
        self._listener = listener

    def pod_changed(self, pod: ObjectKey) -> None:
        self._waiting.wake(pod)

    def pod_at(self, address: str) -> None:
        self._waiting.wake(address)

    def pod_gone(self, uid: str) -> None:
        self._finding.forget(uid)
        self._access.forget(uid)
        self._listener.reset_pod(uid)

    def source_unused(self, source: Source) -> None:
        if isinstance(self._tokens, Cached):
            self._tokens.forget(source)

    def anything_changed(self) -> None:
        self._waiting.wake_all()


async def _owner_of(port: int, peer: Peer) -> int | None:
    return await owner_uid((peer.address, peer.port), (LOOPBACK, port))


def _create_task(tasks: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
    return tasks.create_task(work)
