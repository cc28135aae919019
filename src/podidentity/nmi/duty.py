"""What only the NMI that serves does: it takes connections, answers probes, and keeps this host's rules.

An NMI begins its duty afresh, or takes over from one that serves or has crashed. When another takes over from it, it
stands by: it finishes what is in flight, and serves again should the other die. At most one keeps the rules, and
neither takes anything away.
"""

import asyncio
import contextlib
import functools
import logging
import socket  # noqa: TC003  # as everywhere
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from podidentity.errors import HostError
from podidentity.nmi.adapters.peers import admit_node, admit_root
from podidentity.nmi.adapters.sockets import ListeningSockets
from podidentity.nmi.adapters.succession import MOVED_WORD, SERVING_WORD, Succession
from podidentity.nmi.doors import AddressMissingError, PortTakenError
from podidentity.nmi.listener import NODE_LIMITS, Site
from podidentity.nmi.pages import StatusPages
from podidentity.nmi.ports import LOOPBACK
from podidentity.nmi.wiring import Parts, token_file_site
from podidentity.serving.probes import Pages, serve_pages_on
from podidentity.supervisor import STARTED_NAME

_log = logging.getLogger(__name__)

DRAIN_SECONDS = 10.0
SYNC_SECONDS = 10.0
"""How long new connections are held back for the first lists; after that they get a 503."""
_SUCCESSOR_SECONDS = 10.0
"""How long one that is told to stop goes on serving while its successor gets ready."""
_PORT_SECONDS = 0.02  # between two tries at a port: pods wait
_PROCESS_NAME = Path("/proc/self/comm")


class Duty:
    """The duty of this NMI. `tasks` is the daemon's task group."""

    def __init__(
        self, parts: Parts, sockets: ListeningSockets, succession: Succession, tasks: asyncio.TaskGroup
    ) -> None:
        self._parts = parts
        self._sockets = sockets
        self._succession = succession
        self._tasks = tasks
        self._keepers: list[asyncio.Task[None]] = []
        self._pages = contextlib.AsyncExitStack()
        self._page_sockets: dict[int, Sequence[socket.socket]] = {}

    async def begin(self) -> None:
        """Return when pods are being answered. Raises `HostError`."""
        if self._succession.is_linked or self._sockets.has(*self._address):
            await self._take_over()
        else:
            await self._begin_afresh()
        self._sockets.settle()
        _mark_started()
        _log.info("answering the pods of node %s on %s:%d", self._parts.settings.node, *self._address)

    async def stand_by(self) -> None:
        """Leave the duty to the NMI that has taken it over, and finish what is in flight."""
        _log.info("another NMI serves this node now; finishing what is in flight")
        listener = self._parts.listener
        if self._succession.successor_word == SERVING_WORD:  # what waits in the queues is the other's
            listener.doors.leave()
        await self._stop_keeping()
        self._succession.close()
        await listener.finish(DRAIN_SECONDS)
        listener.doors.leave()

    async def stop(self) -> None:
        """Finish what is in flight, for good. Unless another NMI takes over, new connections are held back for one."""
        if await self._succession.leave(_SUCCESSOR_SECONDS):
            await self.stand_by()
        else:
            _log.info("stopping: new connections are held back until the next NMI listens")
            await self._hold_back()
            await self._parts.listener.finish(DRAIN_SECONDS)
        await self.abandon()

    async def abandon(self) -> None:
        """Close everything now; no rule is taken away."""
        self._parts.listener.close()
        await self._pages.aclose()

    async def _hold_back(self) -> None:
        if self._parts.redirect is not None:
            try:
                await self._parts.redirect.hold_new_connections()
            except HostError as error:
                _log.warning("new connections will be refused until the next NMI listens: %s", error)

    # Afresh

    async def _begin_afresh(self) -> None:
        """Listen, put everything up, and let pods in as soon as it is known who they are."""
        parts = self._parts
        await self._open_doors_afresh()
        if parts.redirect is not None and parts.anti_spoof is not None:
            await parts.redirect.send_pods_here()
            self._keep(parts.redirect.run())
            await self._wait_for_lists()
            await parts.anti_spoof.keep()
            self._keep(parts.anti_spoof.run())
            await parts.redirect.let_in()
        self._succession.serve(MOVED_WORD)

    async def _open_doors_afresh(self) -> None:
        """Listen. A port of another NMI, one that hands nothing over, is waited for: it is about to be stopped."""
        is_taken = False
        try:
            await self._open_door(self._address)
        except PortTakenError as error:
            _log.warning("%s", error)
            is_taken = True
        is_waiting = await self._open_other_doors()
        await self._open_pages(patient=is_taken or is_waiting)
        if is_taken:
            _log.warning("waiting until the other NMI of this node ends")
            await self._wait_for_lists()
            _mark_started()
            await _until_free(functools.partial(self._open_door, self._address))
        await self._open_local_door()

    # Taking over

    async def _take_over(self) -> None:
        """Go on where another NMI serves, or has crashed. Connections wait in the queues, which nobody closes."""
        parts, has_queues = self._parts, self._sockets.has(*self._address)
        await self._wait_for_lists()
        if parts.anti_spoof is not None:
            await parts.anti_spoof.keep()
        if parts.listener.doors:
            await parts.listener.go_on()
        else:
            await self._open_door(self._address)
            await self._open_other_doors()
            await self._open_local_door()
        if parts.redirect is not None and parts.anti_spoof is not None:
            await parts.redirect.take_over()
            self._keep(parts.redirect.run())
            self._keep(parts.anti_spoof.run())
        await self._open_pages(patient=self._succession.is_linked)
        self._succession.serve(SERVING_WORD if has_queues else MOVED_WORD)

    async def _wait_for_lists(self) -> None:
        """Wait until it is known who pods are: as long as another NMI serves, or else for a while."""
        synced = asyncio.ensure_future(self._parts.cluster.wait_until_synced())
        if self._succession.is_linked:
            bereft = asyncio.ensure_future(self._succession.bereft.wait())
            await asyncio.wait({synced, bereft}, return_when=asyncio.FIRST_COMPLETED)
            bereft.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(synced, SYNC_SECONDS)

    # Both

    @property
    def _address(self) -> tuple[str, int]:
        interception = self._parts.interception
        return interception.listen_address, interception.listen_port

    def _sites(self) -> dict[tuple[str, int], Site]:
        """Return what is served where: pods, on loopback the node's own programs, and pods that prove themselves."""
        parts, (address, port) = self._parts, self._address
        sites = {
            (LOOPBACK, port): Site(parts.listener.app.answer_node, admit_node, NODE_LIMITS),
            self._address: parts.pod_site,
        }
        settings = parts.settings
        if settings.token_file_port:
            site = token_file_site(parts.listener.app)
            addresses = filter(None, (address, settings.token_file_ipv6_address))
            sites |= {(host, settings.token_file_port): site for host in addresses}
        return sites

    async def _open_other_doors(self) -> bool:
        """Listen wherever it is not the pods' own requests; return whether some port is another's, and waited for.

        An address that is not there is waited for as well: pods on IPv4 need not do without tokens meanwhile.
        """
        is_waiting = False
        for place in self._sites().keys() - {self._address}:
            try:
                await self._open_door(place)
            except (PortTakenError, AddressMissingError) as error:
                _log.warning("%s", error)
                self._tasks.create_task(_until_free(functools.partial(self._open_door, place)))
                is_waiting |= isinstance(error, PortTakenError)
        return is_waiting

    async def _open_door(self, place: tuple[str, int]) -> None:
        site = self._sites()[place]
        listening = self._sockets.tcp(*place, site.queues, site.prepare)
        await self._parts.listener.serve(listening, site)
        self._sockets.keep()

    async def _open_local_door(self) -> None:
        settings, listener = self._parts.settings, self._parts.listener
        if settings.host_token and settings.host_token_socket:
            listening = self._sockets.local(Path(settings.host_token_socket))
            await listener.serve([listening], Site(listener.app.answer_node, admit_root, NODE_LIMITS))

    async def _open_pages(self, *, patient: bool) -> None:
        """Answer probes. A port that is taken is waited for by the `patient`. Raises `HostError`."""
        for port, pages, strangers in _pages(self._parts):
            try:
                await self._serve_pages(port, pages, strangers)
            except HostError:
                if not patient:
                    raise
                self._keep(_until_free(functools.partial(self._serve_pages, port, pages, strangers)))

    async def _serve_pages(self, port: int, pages: Pages, strangers: Pages) -> None:
        if port not in self._page_sockets:
            self._page_sockets[port] = self._sockets.pages(port)
            self._sockets.keep()
        listening = [bound.dup() for bound in self._page_sockets[port]]
        await self._pages.enter_async_context(serve_pages_on(listening, pages, strangers=strangers))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what this NMI does as long as it serves."""
        self._keepers.append(self._tasks.create_task(work))

    async def _stop_keeping(self) -> None:
        """Leave rules and probes to another NMI."""
        for task in self._keepers:
            task.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        self._keepers.clear()
        await self._pages.aclose()


def _pages(parts: Parts) -> list[tuple[int, Pages, Pages]]:
    """Return each port with its pages for this host, and those for everybody else."""
    settings, health = parts.settings, parts.health
    pages = StatusPages(
        parts.metrics.registry,
        health.is_intercepting,
        health.missing,
        health.warnings,
        details_for_all=settings.metrics_details,
    )
    if settings.probe_port == settings.prometheus_port:
        strangers = {**pages.probes_of_strangers, **pages.metrics_of_strangers}
        return [(settings.probe_port, {**pages.probes, **pages.metrics}, strangers)]
    return [
        (settings.probe_port, pages.probes, pages.probes_of_strangers),
        (settings.prometheus_port, pages.metrics, pages.metrics_of_strangers),
    ]


async def _until_free(act: Callable[[], Awaitable[None]]) -> None:
    """Try until it does not fail for a port that is taken, or an address that is missing."""
    while True:
        try:
            await act()
        except HostError:
            await asyncio.sleep(_PORT_SECONDS)
        else:
            return


def _mark_started() -> None:
    """Tell the startup probe (`podidentity started`)."""
    with contextlib.suppress(OSError):
        _PROCESS_NAME.write_text(STARTED_NAME)
