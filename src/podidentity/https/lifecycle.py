"""Runs a daemon that serves TLS: certificates first, then the server, and an end without a failed request.

At the end (SIGTERM) it is not ready any more, goes on answering until Services have taken it out, and asks each client
with its answer to connect anew.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from prometheus_client import CollectorRegistry, Gauge

from podidentity.certificates.rotation import Certificates
from podidentity.https.server import Server
from podidentity.serving import memory
from podidentity.serving.metrics import render
from podidentity.serving.probes import METRICS_TYPE, Page, serve_pages

_log = logging.getLogger(__name__)


class StopRequest(Exception):  # noqa: N818  # no error: the way out of a task group
    """The daemon was asked to stop and has."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a daemon serves: TLS on `address` ("" for all) and `port`, its pages on the others."""

    address: str
    port: int
    probe_port: int
    prometheus_port: int


@dataclass(frozen=True, slots=True)
class Daemon:
    """What a daemon consists of. `background` are its other tasks, which run until the end."""

    name: str
    ports: Ports
    server: Server
    certificates: Certificates
    registry: CollectorRegistry
    certificate_expiry: Gauge
    drain_seconds: float
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def serve(daemon: Daemon, stop: asyncio.Event, tasks: asyncio.TaskGroup) -> NoReturn:
    """Serve until `stop`, then raise `StopRequest`, which ends `tasks`. Raises `HostError` for a port that is taken."""
    async with contextlib.AsyncExitStack() as resources:
        await _open_pages(daemon, stop, resources)
        for work in (*daemon.background, memory.keep_giving_back):
            tasks.create_task(work())
        starting = tasks.create_task(daemon.certificates.start())
        if not await _first(starting, stop):
            raise StopRequest
        tasks.create_task(daemon.certificates.run())
        ports = daemon.ports
        async with daemon.server.listen(ports.address, ports.port, daemon.certificates.context) as port:
            _log.info("%s answers on port %d", daemon.name, port)
            await stop.wait()
            _log.info(
                "%s stops: it answers for %g s more, until no Service names it", daemon.name, daemon.drain_seconds
            )
            daemon.server.drain()
            await asyncio.sleep(daemon.drain_seconds)
        raise StopRequest


async def _first(starting: "asyncio.Task[Any]", stop: asyncio.Event) -> bool:
    """Wait for the start or for the wish to stop; return whether it was the start."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    return starting.done()


async def _open_pages(daemon: Daemon, stop: asyncio.Event, resources: contextlib.AsyncExitStack) -> None:
    def ready() -> Page:
        reasons = readiness(daemon, is_stopping=stop.is_set())
        return Page(503, "\n".join((*reasons, "")).encode()) if reasons else Page(200, b"ok\n")

    def metrics() -> Page:
        serving = daemon.certificates.serving
        daemon.certificate_expiry.set(serving.end if serving is not None else 0)
        return Page(200, render(daemon.registry), METRICS_TYPE)

    probes = {"/healthz": lambda: Page(200, b"ok\n"), "/readyz": ready}
    ports = daemon.ports
    if ports.probe_port == ports.prometheus_port:
        probes["/metrics"] = metrics
    else:
        await resources.enter_async_context(serve_pages(ports.prometheus_port, {"/metrics": metrics}))
    await resources.enter_async_context(serve_pages(ports.probe_port, probes))


def readiness(daemon: Daemon, *, is_stopping: bool) -> tuple[str, ...]:
    """Return what keeps a daemon from answering, in sentences."""
    reasons = []
    if is_stopping:
        reasons.append(f"{daemon.name} is stopping")
    if not daemon.certificates.is_ready:
        reasons.append(f"there is no serving certificate yet: {daemon.certificates.problem or 'it is being made'}")
    return tuple(reasons)
